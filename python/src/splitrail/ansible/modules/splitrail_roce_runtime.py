#!/usr/bin/python
"""Bring what NICs forget at each boot into its declared state, by the program that does so at boot."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.splitrail_checks import unmade

DOCUMENTATION = r"""
module: splitrail_roce_runtime
short_description: Bring what NICs forget at each boot into its declared state
description:
  - Runs the program that the unit C(splitrail-roce.service) runs at boot. The unit itself is not restarted,
    for that would restart what requires it.
options:
  program: {description: The program., type: path, default: /usr/local/lib/splitrail/roce_runtime.py}
  state: {description: Whether to change anything., type: str, choices: [applied, measured], default: applied}
author: The splitrail authors
"""

EXAMPLES = r"""
- splitrail_roce_runtime:
    state: measured
"""

RETURN = r"""
checks: {description: The findings., type: list, elements: dict, returned: always}
seconds: {description: How long it took., type: float, returned: always}
"""

CANNOT_RUN = 2


def ask(program: str, action: str) -> list[dict[str, Any]]:
    """The program's checks; one that failed where it gave none."""
    try:
        done = subprocess.run(
            ["python3", program, action, "--json"], capture_output=True, text=True, timeout=600, check=False
        )
        if done.returncode < CANNOT_RUN and done.returncode >= 0:
            checks: list[dict[str, Any]] = json.loads(done.stdout)["checks"]
            return checks
        said = done.stderr.strip() or f"exit code {done.returncode}"
    except (OSError, subprocess.TimeoutExpired, ValueError, KeyError) as error:
        said = str(error)
    hint = f"Run `{program} {action}` by hand; the role roce_nic writes it and its configuration."
    return [unmade("roce_nic.runtime", "splitrail-roce", said, "checks", hint=hint)]


def main() -> None:
    """Entry point of the module."""
    module = AnsibleModule(
        argument_spec={
            "program": {"type": "path", "default": "/usr/local/lib/splitrail/roce_runtime.py"},
            "state": {"type": "str", "choices": ["applied", "measured"], "default": "applied"},
        },
        supports_check_mode=True,
    )
    program, started = module.params["program"], time.monotonic()
    changed = False
    if module.check_mode and not Path(program).exists():
        # A first run in check mode has not written it.
        module.exit_json(changed=module.params["state"] == "applied", checks=[], seconds=0.0)
    checks = ask(program, "check")
    if module.params["state"] == "applied" and not all(made["ok"] for made in checks):
        if module.check_mode:
            changed = True
        else:
            before, checks = checks, ask(program, "apply")
            # What cannot be mended is not a change each time.
            changed = [made["measured"] for made in checks] != [made["measured"] for made in before]
    module.exit_json(changed=changed, checks=checks, seconds=round(time.monotonic() - started, 1))


if __name__ == "__main__":
    main()
