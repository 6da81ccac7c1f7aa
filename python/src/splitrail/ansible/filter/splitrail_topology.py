"""Filters for topologies: find one by its name, check it, and fit it to a release and a cluster."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleFilterError

from splitrail.topology import Site, TopologyError, load, parse, serving


def splitrail_topology_named(name: str, folder: str) -> dict[str, Any]:
    """The topology of this name in a folder, or of a family and a ratio. Raises AnsibleFilterError."""
    try:
        return load(str(name), Path(str(folder)))
    except TopologyError as error:
        raise AnsibleFilterError(str(error)) from None


def splitrail_topology(raw: Any, mode: str | None = None) -> dict[str, Any]:
    """The topology with every default written out, in the given mode. Raises AnsibleFilterError."""
    try:
        return parse(_plain(raw), mode=mode).model_dump(exclude_none=True)
    except TopologyError as error:
        # Ansible prints the whole chain, and the parser's own error adds nothing to these words.
        raise AnsibleFilterError(str(error)) from None


def splitrail_serving(raw: Any, site: dict[str, Any], mode: str | None = None) -> dict[str, Any]:
    """The topology as it is rendered: see ``splitrail.topology.serving``. ``site``: the fields of ``Site``.

    Raises AnsibleFilterError with every reason why the topology cannot run there.
    """
    plain = _plain(site)
    volumes = tuple(plain.pop("node_volumes", ()))
    try:
        return serving(_plain(raw), Site(**plain, node_volumes=volumes), mode=mode)
    except TopologyError as error:
        raise AnsibleFilterError(str(error)) from None


def _plain(value: Any) -> Any:
    """Through JSON: Ansible's values are subclasses of str, int, ... that carry tags."""
    return json.loads(json.dumps(value))


class FilterModule:
    """What Ansible looks for in a filter plugin."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name and function of each filter."""
        return {
            "splitrail_topology_named": splitrail_topology_named,
            "splitrail_topology": splitrail_topology,
            "splitrail_serving": splitrail_serving,
        }
