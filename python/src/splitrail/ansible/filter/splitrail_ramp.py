"""In how many steps a verb changes many hosts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

# From so many hosts on a fault that would meet all of them is worth the time that it takes to meet one first.
RAMP_FROM = 20
RAMP = ["1", "10%", "50%", "100%"]


def splitrail_ramp(hosts: Sequence[str]) -> list[str]:
    """The batches for a play's ``serial``: one host, a tenth, a half, the rest; of few hosts all at once."""
    return RAMP if len(hosts) >= RAMP_FROM else ["100%"]


class FilterModule:
    """What Ansible looks for in a filter plugin."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name and function of each filter."""
        return {"splitrail_ramp": splitrail_ramp}
