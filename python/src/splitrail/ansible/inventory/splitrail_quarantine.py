"""Take the hosts of ``quarantine.yml`` out of the inventory, for whoever reads it.

The file lies beside the inventory's hosts and names this plugin. Inventory sources are read in the order of
their names, so one that comes later could bring a host back: that is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.errors import AnsibleParserError
from ansible.plugins.inventory import BaseInventoryPlugin

from splitrail.daytwo.quarantine import NAME, PLUGIN, QuarantineError, left_out, read

DOCUMENTATION = """
name: splitrail_quarantine
short_description: Leave hosts out that are in quarantine
description:
  - Removes the hosts that the file names from the inventory. C(splitrail quarantine) writes the file.
  - With C(SPLITRAIL_QUARANTINE=ignore) in the environment every host stays, with C(ignore:HOST) that one, to
    look at it by hand.
options:
  plugin: {description: Name of this plugin., type: str, required: true, choices: [splitrail_quarantine]}
  hosts: {description: "The hosts, each with reason, since, by and evidence.", type: dict}
"""


class InventoryModule(BaseInventoryPlugin):  # type: ignore[misc]  # Ansible ships no types
    """See the head of this file."""

    NAME = PLUGIN

    def verify_file(self, path: str) -> bool:
        return bool(super().verify_file(path)) and Path(path).name == NAME

    def parse(self, inventory: Any, loader: Any, path: str, cache: bool = True) -> None:
        super().parse(inventory, loader, path, cache)
        later = sorted(
            one.name
            for one in Path(path).parent.glob("*")
            if one.is_file() and one.suffix in (".yml", ".yaml", ".ini", "") and one.name > NAME
        )
        if later:
            raise AnsibleParserError(
                f"{path}: {', '.join(later)} is read after it and may bring hosts back: "
                f"give it a name that sorts before {NAME}"
            )
        try:
            hosts = left_out(read(Path(path)))
        except QuarantineError as error:
            raise AnsibleParserError(str(error)) from error
        for name in hosts:
            if name in inventory.hosts:
                inventory.remove_host(inventory.hosts[name])
