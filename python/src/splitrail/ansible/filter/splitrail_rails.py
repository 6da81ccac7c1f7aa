"""Filters for rails: check what an inventory declares, and write out what follows from it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from ansible.errors import AnsibleFilterError

from splitrail.rails import RailError, parse


def splitrail_rails(raw: Any) -> list[dict[str, Any]]:
    """The rails with interface name, network and routing table. Raises AnsibleFilterError on bad ones."""
    try:
        # Through JSON: Ansible's values are subclasses of str, int, ... that carry tags.
        return parse(json.loads(json.dumps(raw)))
    except RailError as error:
        raise AnsibleFilterError(str(error)) from error


def splitrail_repeated(values: Iterable[str]) -> list[str]:
    """The values that occur more than once, sorted."""
    return sorted(value for value, count in Counter(map(str, values)).items() if count > 1)


class FilterModule:
    """What Ansible looks for in a filter plugin."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name and function of each filter."""
        return {"splitrail_rails": splitrail_rails, "splitrail_repeated": splitrail_repeated}
