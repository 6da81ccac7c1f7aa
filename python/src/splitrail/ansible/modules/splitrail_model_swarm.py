#!/usr/bin/python
"""Look what a node lacks of a model, and run the agent that brings it and gives it to the others."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.splitrail_checks import check, unmade
from ansible.module_utils.splitrail_models.folder import bytes_needed, is_whole
from ansible.module_utils.splitrail_models.manifest import Manifest, ManifestError

DOCUMENTATION = r"""
module: splitrail_model_swarm
short_description: Bring a model to a node, together with the others
description:
  - O(state=examined) looks what is here and whether the disk has room for the rest; changes nothing.
  - O(state=started) starts the agent as the transient unit C(splitrail-model), which goes on by itself when
    it is killed; O(state=finished) waits until the model is whole or the agent gives up; O(state=stopped)
    ends it and removes what it needed. The agent serves the others until then.
options:
  state:
    description: Which of these.
    type: str
    choices: [examined, started, finished, stopped]
    required: true
  path:
    description: The model's folder.
    type: path
    required: true
  manifest:
    description: The model's files, as M(splitrail_model_manifest) returns them; for examined and started.
    type: dict
    default: {}
  rehash:
    description: Whether files are read and compared that look untouched.
    type: bool
    default: false
  reserve_gib:
    description: GiB that must stay free.
    type: float
    default: 0
  job:
    description: What the agent is to do, less tokens, folder, manifest and status; for started.
    type: dict
    default: {}
  token:
    description: A secret of this run, the same on all nodes; for started.
    type: str
  source_token:
    description: The hub's token; for started.
    type: str
    default: ""
author: The splitrail authors
"""

RETURN = r"""
checks:
  description: The findings, for M(splitrail_verdict).
  returned: O(state=examined) and O(state=finished)
  type: list
  elements: dict
whole:
  description: Whether the model is here.
  returned: O(state=examined)
  type: bool
status:
  description: What the agent has reached; bytes from the source, from peers and given to them among it.
  returned: O(state=finished)
  type: dict
"""

Check = dict[str, Any]

UNIT = "splitrail-model"
HOME = Path("/run/splitrail/model")
JOB, STATUS = HOME / "job.json", HOME / "status.json"
GIB = 1 << 30
POLL_S = 1.0

# The agent reads a source, listens on one address and writes one folder. It owns what it writes; the two
# capabilities are for models that lie in a folder of somebody else.
SANDBOX = (
    "NoNewPrivileges=yes",
    "CapabilityBoundingSet=CAP_DAC_OVERRIDE CAP_FOWNER",
    "ProtectSystem=strict",
    "ProtectHome=read-only",
    "PrivateTmp=yes",
    "PrivateDevices=yes",
    "ProtectClock=yes",
    "ProtectControlGroups=yes",
    "ProtectHostname=yes",
    "ProtectKernelLogs=yes",
    "ProtectKernelModules=yes",
    "ProtectKernelTunables=yes",
    "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6",
    "RestrictNamespaces=yes",
    "RestrictRealtime=yes",
    "RestrictSUIDSGID=yes",
    "LockPersonality=yes",
    "MemoryDenyWriteExecute=yes",
    "SystemCallArchitectures=native",
    "UMask=0022",
)
SERVICE = (
    "Type=exec",
    # Killed, it goes on with what it has; 3 says that going on is in vain.
    "Restart=on-failure",
    "RestartPreventExitStatus=3",
    "RestartSec=1",
    f"WorkingDirectory={HOME}",
    "Environment=PYTHONDONTWRITEBYTECODE=1",
)


def gib(size: float) -> float:
    """Bytes in GiB, for people."""
    return round(size / GIB, 3)


def existing(path: Path) -> Path:
    """The nearest folder that is there already."""
    return path if path.is_dir() else existing(path.parent)


def space_check(folder: Path, needed: int, reserve: float) -> Check:
    """Whether the disk has room for what is still to come, and for the reserve beyond it. needed: bytes."""
    name, subject = "model_store.space", str(folder.parent)
    hint = "Free space there, or set model_store_path to a larger disk; nothing is removed unasked."
    try:
        free = shutil.disk_usage(existing(folder.parent)).free
    except OSError as error:
        unknown: Check = unmade(name, subject, str(error), gib(needed), unit="GiB free", hint=hint)
        return unknown
    required = needed + reserve * GIB if needed else 0
    found: Check = check(
        name, subject, free >= required, gib(free), gib(required), unit="GiB free", hint=hint
    )
    return found


def start_command(folder: Path) -> list[str]:
    """How the agent is started: it may write its own folder and the one that models lie in, and no other."""
    options = [*SERVICE, *SANDBOX, f"ReadWritePaths={HOME} {folder.parent}"]
    return [
        *("systemd-run", f"--unit={UNIT}", "--collect", "--quiet", "--description=Brings a model"),
        *(f"--property={option}" for option in options),
        *("/usr/bin/python3", "-m", "splitrail_models.agent", str(JOB)),
    ]


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command; what it says is in stdout and stderr."""
    return subprocess.run(command, capture_output=True, text=True, check=False)


def stop() -> None:
    """End an agent, this run's or one that an earlier run left."""
    run(["systemctl", "stop", UNIT])
    run(["systemctl", "reset-failed", UNIT])


def read_status() -> dict[str, Any]:
    """What the agent wrote last; nothing before it did."""
    try:
        found: dict[str, Any] = json.loads(STATUS.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found


def wait() -> dict[str, Any]:
    """The agent's last word."""
    gone = 0
    while True:
        status = read_status()
        if status.get("state") in ("done", "failed"):
            return status
        # Between a kill and its restart a unit is activating; twice nothing is the end.
        active = run(["systemctl", "is-active", UNIT]).stdout.strip() in ("active", "activating")
        gone = 0 if active else gone + 1
        if gone > 1:
            return {**status, "state": "failed", "error": f"the agent ended: journalctl --unit {UNIT}"}
        time.sleep(POLL_S)


def finished_checks(folder: str, status: dict[str, Any]) -> list[Check]:
    """What the agent's last word means."""
    hint = (
        "Correct what is said and run playbooks/image.yml again: what is here already is not fetched again."
    )
    done = status["state"] == "done"
    checks = [
        check(
            "model_store.brought",
            folder,
            done,
            "whole" if done else status.get("error", "no word"),
            "whole",
            hint=hint,
        )
    ]
    altered = "Compare the file at the source with its published digest, then run playbooks/image.yml again."
    checks += [
        check(
            "model_store.digest",
            f"{folder}/{each['path']}",
            False,
            each["found"],
            each["wanted"],
            hint=altered,
        )
        for each in status.get("wrong", [])
    ]
    return checks


def start(module: AnsibleModule, manifest: Manifest) -> None:
    """Write the job, for root's eyes only, and start the agent. Raises OSError."""
    want = module.params
    folder = Path(want["path"])
    stop()
    STATUS.unlink(missing_ok=True)
    job = {
        **want["job"],
        "folder": str(folder),
        "manifest": manifest.as_dict(),
        "rehash": want["rehash"],
        "status": str(STATUS),
        "token": want["token"],
        "source_token": want["source_token"],
    }
    JOB.unlink(missing_ok=True)
    JOB.touch(mode=0o600)
    JOB.write_text(json.dumps(job), encoding="utf-8")
    begun = run(start_command(folder))
    if begun.returncode:
        module.fail_json(msg=f"the agent cannot be started: {begun.stderr.strip()}")


def main() -> None:
    """Do what ``state`` asks."""
    module = AnsibleModule(
        argument_spec={
            "state": {
                "type": "str",
                "choices": ["examined", "started", "finished", "stopped"],
                "required": True,
            },
            "path": {"type": "path", "required": True},
            "manifest": {"type": "dict", "default": {}},
            "rehash": {"type": "bool", "default": False},
            "reserve_gib": {"type": "float", "default": 0},
            "job": {"type": "dict", "default": {}},
            "token": {"type": "str", "no_log": True},
            "source_token": {"type": "str", "default": "", "no_log": True},
        },
        required_if=[("state", "started", ["token", "job"])],
        supports_check_mode=True,
    )
    want = module.params
    folder = Path(want["path"])
    try:
        if want["state"] == "finished":
            status = wait()
            module.exit_json(changed=False, checks=finished_checks(str(folder), status), status=status)
        if want["state"] == "stopped":
            stop()
            shutil.rmtree(HOME, ignore_errors=True)
            module.exit_json(changed=False)
        manifest = Manifest.from_dict(want["manifest"])
        if want["state"] == "started":
            start(module, manifest)
            module.exit_json(changed=True)
        whole = is_whole(folder, manifest, rehash=want["rehash"])
        needed = 0 if whole else bytes_needed(folder, manifest)
        module.exit_json(
            changed=False, whole=whole, checks=[space_check(folder, needed, want["reserve_gib"])]
        )
    except (OSError, ManifestError) as error:
        module.fail_json(msg=f"{folder}: {error}")


if __name__ == "__main__":
    main()
