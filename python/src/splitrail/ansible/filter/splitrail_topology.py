"""Filter ``splitrail_topology``: check a topology and fill in its defaults, before anything is rendered."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from ansible.errors import AnsibleFilterError

from splitrail.topology import TopologyError, parse


def splitrail_topology(raw: Any, mode: str | None = None) -> dict[str, Any]:
    """The topology with every default written out, in the given mode. Raises AnsibleFilterError."""
    try:
        # Through JSON: Ansible's values are subclasses of str, int, ... that carry tags.
        return parse(json.loads(json.dumps(raw)), mode=mode).model_dump(exclude_none=True)
    except TopologyError as error:
        # Ansible prints the whole chain, and the parser's own error adds nothing to these words.
        raise AnsibleFilterError(str(error)) from None


class FilterModule:
    """What Ansible looks for in a filter plugin."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name and function of each filter."""
        return {"splitrail_topology": splitrail_topology}
