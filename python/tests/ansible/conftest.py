"""Make the suite's module_utils importable where Ansible puts them on a node: in ansible.module_utils."""

from pathlib import Path

import ansible.module_utils

import splitrail

ansible.module_utils.__path__.append(str(Path(splitrail.__file__).parent / "ansible/module_utils"))
