"""Say in one call whether a role's packages, files and services are on the node as they should be.

Takes the module's arguments (splitrail_in_place). What each of ``files`` should hold is known here and not on
the node: the text of its template ``src``, or its ``content``. The node gets the digest of it alone.

The lookup ``template`` would do it as well, and copies every variable of the host for each file; some of them
name all hosts, so that a task a host would cost more the more hosts there are.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase
from ansible.template import generate_ansible_template_vars, trust_as_template


class ActionModule(ActionBase):  # type: ignore[misc]  # Ansible ships no types
    """See the head of this file."""

    _supports_check_mode = True
    _supports_async = False
    TRANSFERS_FILES = False

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        files = [self._with_digest(one, variables) for one in self._task.args.get("files", [])]
        arguments = {**self._task.args, "files": files}
        result.update(self._execute_module(module_args=arguments, task_vars=task_vars))
        return result

    def _with_digest(self, file: dict[str, Any], variables: dict[str, Any]) -> dict[str, Any]:
        """The file with the SHA-256 of what it should hold; raises AnsibleError for a template that is not
        there."""
        text = file["content"] if "content" in file else self._text(file.get("src", ""), variables)
        kept = {key: value for key, value in file.items() if key not in ("src", "content")}
        return {**kept, "digest": hashlib.sha256(text.encode()).hexdigest()}

    def _text(self, source: str, variables: dict[str, Any]) -> str:
        path = self._find_needle("templates", source)
        templar = self._templar.copy_with_new_env(
            searchpath=[str(Path(path).parent)],
            # ansible_managed among them, unless the inventory has its own.
            available_variables={**generate_ansible_template_vars(source, path), **variables},
        )
        template = trust_as_template(self._loader.get_text_file_contents(path))
        return str(templar.template(template, escape_backslashes=False))
