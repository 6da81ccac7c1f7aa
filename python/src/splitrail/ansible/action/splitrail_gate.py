"""Let a role start something only on a fabric that is proven for these very hosts, NICs and this image.

Arguments:
  cluster, transport, image: what is about to be started; the transport is the declared one.
  hosts: every host that takes part. Each must be in the proof.
  identities: what hosts are now, by name, as splitrail_fabric_identity returned it. A host that is in no
    proof, was rebooted or has another NIC since is refused.
  max_age_h: oldest proof that counts, in hours.
  waiver: reason for starting without a proof; empty for none. It goes into the run record.

Runs on the controller and never reports a change. The proof is the newest of the cluster among the run
records, so a verb that runs alone finds that of an earlier run. The findings are filed as the verdict
``gate``. In check mode a refusal is a warning, not a failure: on a first check run nothing has been proven
yet, and nothing will be started.
"""

from __future__ import annotations

import json
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from splitrail.proof import Claim, ProofError, judge, waive
from splitrail.verdict import Verdict, VerdictError, verdict_file


class ActionModule(ActionBase):  # type: ignore[misc]  # Ansible ships no types
    """See the head of this file."""

    _requires_connection = False
    _supports_check_mode = True
    _supports_async = False
    TRANSFERS_FILES = False

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        required = {"type": "str", "required": True}
        _, given = self.validate_argument_spec(
            argument_spec={
                "cluster": required,
                "transport": {**required, "choices": ["rdma", "tcp"]},
                "image": required,
                "hosts": {"type": "list", "elements": "str", "required": True},
                "identities": {"type": "dict", "required": True},
                "max_age_h": {"type": "float", "required": True},
                "waiver": {"type": "str", "default": ""},
            }
        )
        host = str((task_vars or {})["inventory_hostname"])
        role = self._task._role.get_name() if self._task._role else "play"
        folder = os.environ.get("SPLITRAIL_RUN_DIR")
        if not folder:
            raise AnsibleActionFail(
                "no run record to look for a proof in: enable the callback splitrail_record in ansible.cfg "
                "(callbacks_enabled), or set SPLITRAIL_RUN_DIR to a folder"
            )
        # Through JSON: Ansible's values are subclasses of str, int, ... that carry tags.
        plain = json.loads(json.dumps(given))
        if not plain["hosts"] or not plain["identities"]:
            raise AnsibleActionFail(
                f"{host}: {role} named no host to look for in the proof: run its playbook, which looks at "
                "the NICs of every host first"
            )
        claim = Claim(
            cluster=plain["cluster"],
            transport=plain["transport"],
            hosts=sorted({*plain["hosts"], *plain["identities"]}),
            identities=plain["identities"],
            image=plain["image"],
            max_age=timedelta(hours=plain["max_age_h"]),
        )
        result.update(changed=False)
        run_dir = Path(folder)
        try:
            checks = judge(run_dir, claim, host)
            refused = [check for check in checks if not check.ok]
            if refused and self._task.check_mode:
                lines = "\n".join(f"- {check.host}: {check}" for check in refused)
                result["warnings"] = [f"{role} would not be started on {host}:\n{lines}"]
                return result
            if refused and plain["waiver"].strip():
                waivers = waive(run_dir, plain["waiver"], what=role, host=host, refused=refused)
                result["warnings"] = [f"the gate of {role} on {host} is WAIVED: {plain['waiver'].strip()}"]
                checks = [check for check in checks if check.ok] + waivers
            verdict = Verdict.of(checks)
            verdict.save(verdict_file(run_dir, "gate", host))
        except (ProofError, VerdictError, OSError, ValueError) as error:
            raise AnsibleActionFail(f"{role} on {host}: {error}") from error
        result["failed"] = not verdict.ok
        if not verdict.ok:
            lines = "\n".join(f"- {check.host}: {check}" for check in verdict.failed)
            result["msg"] = (
                f"{role} is not started on {host}: the fabric is not proven for it "
                f"({len(verdict.failed)} of {len(verdict.checks)} checks failed):\n{lines}"
            )
        return result
