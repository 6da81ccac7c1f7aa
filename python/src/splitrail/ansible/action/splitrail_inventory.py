"""Refuse an inventory that cannot be right, before a host is contacted; see splitrail.inventory.

Takes no arguments: the inventory is that of this ansible-playbook, and the project the one of its
ansible.cfg. Several inventories in one call are put together by Ansible alone and are not checked here. Never
reports a change.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible import constants, context
from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from splitrail.inventory.check import applies, check
from splitrail.inventory.fault import InventoryError
from splitrail.project import Project, ProjectError


class ActionModule(ActionBase):  # type: ignore[misc]  # Ansible ships no types
    """See the head of this file."""

    _requires_connection = False
    _supports_check_mode = True
    _supports_async = False
    TRANSFERS_FILES = False

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        result.update(changed=False)
        sources = list(context.CLIARGS.get("inventory") or ())
        if len(sources) != 1:
            result["msg"] = f"{len(sources)} inventories are put together: not checked"
            return result
        try:
            project = Project.find(
                Path(constants.CONFIG_FILE).parent if constants.CONFIG_FILE else Path.cwd()
            )
            if applies(project):
                check(project, str(sources[0]))
        except (InventoryError, ProjectError) as error:
            raise AnsibleActionFail(f"the inventory must be corrected first:\n{error}") from None
        return result
