"""Filters for the labels of an image: which splitrail made it, and from which sources."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any


def splitrail_version(_: Any) -> str:
    """The version of this suite, whatever it is applied to."""
    return metadata.version("splitrail")


def splitrail_source_id(source: Mapping[str, str]) -> str:
    """What says for good which source that is: its commit, or its archive's checksum."""
    return source.get("commit") or f"sha256:{source['sha256']}"


class FilterModule:
    """What Ansible looks for in a filter plugin."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name and function of each filter."""
        return {"splitrail_version": splitrail_version, "splitrail_source_id": splitrail_source_id}
