"""Write a file that a role would place on a host into a folder for review instead.

Arguments:
  root: folder of the whole rendering, absolute, on the controller.
  dest: the file's absolute path on the host.
  mode: its mode there, such as ``"0644"``; it goes into the index, the copy for review stays readable.
  content: its text.

Runs on the controller and opens no connection, whatever the inventory says of the host. Two roles that would
place the same file are an error.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from splitrail.placing import RenderError, place


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
            argument_spec={"root": required, "dest": required, "mode": required, "content": required}
        )
        role = self._task._role.get_name() if self._task._role else ""
        host = str((task_vars or {})["inventory_hostname"])
        try:
            place(
                Path(given["root"]),
                host,
                given["dest"],
                role=role,
                mode=given["mode"],
                content=given["content"],
            )
        except RenderError as error:
            raise AnsibleActionFail(str(error)) from error
        except OSError as error:
            raise AnsibleActionFail(f"{given['dest']} of {host} could not be written: {error}") from error
        result.update(changed=False)
        return result
