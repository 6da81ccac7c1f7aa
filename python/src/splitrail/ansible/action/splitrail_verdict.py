"""File the checks of a host as its verdict, and fail the host when one of them is not ok.

Arguments:
  verb: what was being done (``preflight``); names the folder of the verdict.
  checks: the check dictionaries that modules returned (see ``module_utils/splitrail_checks.py``).
  seconds: wall time that the checks took, optional.

Runs on the controller, in check mode too, and never reports a change. The verdict lands in the run record as
``verdicts/<verb>/<host>.json``; a later call for the same verb and host replaces the checks of the same name
and subject and keeps the others. An empty list is an error: nothing was checked.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from pydantic import ValidationError

from splitrail.verdict import Check, Verdict, VerdictError, verdict_file


class ActionModule(ActionBase):  # type: ignore[misc]  # Ansible ships no types
    """See the head of this file."""

    _requires_connection = False
    _supports_check_mode = True
    _supports_async = False
    TRANSFERS_FILES = False

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        _, arguments = self.validate_argument_spec(
            argument_spec={
                "verb": {"type": "str", "required": True},
                "checks": {"type": "list", "elements": "dict", "required": True},
                "seconds": {"type": "float", "default": 0.0},
            }
        )
        host = str((task_vars or {})["inventory_hostname"])
        verb = str(arguments["verb"])
        try:
            # Through JSON: Ansible's values are subclasses of str, int, ... that carry tags.
            raw = json.loads(json.dumps(arguments["checks"]))
            verdict = Verdict.of((Check(**{"host": host, **check}) for check in raw), arguments["seconds"])
            path = verdict_file(_run_dir(), verb, host)
            whole = Verdict.load(path).updated(verdict) if path.exists() else verdict
            whole.save(path)
        except (ValidationError, VerdictError, ValueError, TypeError) as error:
            raise AnsibleActionFail(f"{verb} on {host}: {error}") from error
        except OSError as error:
            raise AnsibleActionFail(f"{verb} on {host}: the verdict could not be written: {error}") from error

        result.update(changed=False, failed=not verdict.ok)
        if verdict.ok:
            result["msg"] = f"all {len(verdict.checks)} checks passed"
        else:
            lines = "\n".join(f"- {check}" for check in verdict.failed)
            result["msg"] = f"{len(verdict.failed)} of {len(verdict.checks)} checks failed:\n{lines}"
        return result


def _run_dir() -> Path:
    folder = os.environ.get("SPLITRAIL_RUN_DIR")
    if not folder:
        raise ValueError(
            "no run record to file the verdict in: enable the callback splitrail_record in ansible.cfg "
            "(callbacks_enabled), or set SPLITRAIL_RUN_DIR to a folder"
        )
    return Path(folder)
