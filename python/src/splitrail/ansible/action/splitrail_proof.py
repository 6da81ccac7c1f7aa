"""Withdraw or write the proof of a verb (``fabric``, ``validate``) for the hosts of a play.

Arguments:
  verb: what proves.
  state: ``begun`` withdraws the cluster's last proof before anything is measured or changed; ``concluded``
    writes the new one from the hosts' verdicts.
  cluster, transport: what is proven (``begun``).
  hosts: every host that had to pass, also those that Ansible lost on the way (``concluded``).
  identities: what each host is, by name, as splitrail_fabric_identity returned it (``concluded``).
  image: reference of the image that was measured through, where one was.

Runs on the controller, once for all hosts, and never reports a change. A failed proof does not fail the task:
the verdicts have failed their hosts already, and what it says is the gate's to judge. In check mode it does
nothing: a run that only predicts must neither prove anything nor withdraw what was proven.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from splitrail.proof import ProofError, begin, conclude


class ActionModule(ActionBase):  # type: ignore[misc]  # Ansible ships no types
    """See the head of this file."""

    _requires_connection = False
    _supports_check_mode = True
    _supports_async = False
    TRANSFERS_FILES = False

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        _, given = self.validate_argument_spec(
            argument_spec={
                "verb": {"type": "str", "choices": ["fabric", "validate"], "required": True},
                "state": {"type": "str", "choices": ["begun", "concluded"], "required": True},
                "cluster": {"type": "str"},
                "transport": {"type": "str", "choices": ["rdma", "tcp"]},
                "hosts": {"type": "list", "elements": "str"},
                "identities": {"type": "dict"},
                "image": {"type": "str"},
            },
            required_if=[
                ("state", "begun", ["cluster", "transport"]),
                ("state", "concluded", ["hosts", "identities"]),
            ],
        )
        result.update(changed=False)
        if self._task.check_mode:
            result["msg"] = f"check mode: the proof of {given['verb']} stays as it is"
            return result
        folder = os.environ.get("SPLITRAIL_RUN_DIR")
        if not folder:
            raise AnsibleActionFail(
                "no run record to keep the proof in: enable the callback splitrail_record in ansible.cfg "
                "(callbacks_enabled), or set SPLITRAIL_RUN_DIR to a folder"
            )
        # Through JSON: Ansible's values are subclasses of str, int, ... that carry tags.
        plain = json.loads(json.dumps(given))
        try:
            if plain["state"] == "begun":
                begin(Path(folder), plain["verb"], plain["cluster"], plain["transport"], plain["image"])
                return result
            proof = conclude(Path(folder), plain["verb"], plain["hosts"], plain["identities"], plain["image"])
        except (ProofError, OSError, ValueError) as error:
            raise AnsibleActionFail(f"the proof of {given['verb']} could not be written: {error}") from error
        result["proven"] = proof.ok
        result["msg"] = f"proven for {len(proof.hosts)} hosts" if proof.ok else "; ".join(proof.problems)
        return result
