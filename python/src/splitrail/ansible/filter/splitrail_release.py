"""Filters for releases: refuse one that cannot work before a role reads it, and say what is not pinned."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible.utils.display import Display

from splitrail.release import ReleaseError, together
from splitrail.release_cache import checked


def splitrail_release(raw: Any, where: str = "") -> Any:
    """The release as it was given, once it is known to work. Raises AnsibleFilterError naming all faults."""
    try:
        # Through JSON: Ansible's values are subclasses of str, int, ... that carry tags.
        release = checked(json.dumps(raw), where)
    except ReleaseError as error:
        raise AnsibleFilterError(str(error)) from None
    for entry in release.unpinned:
        # Ansible shows the same warning once a run.
        Display().warning(f"release {release.name}: NOT PINNED: {entry.part}: {entry.why}")
    return raw


def splitrail_releases_agree(releases: Mapping[str, Any]) -> bool:
    """True when engines of these releases, by host or pool, can serve together. Raises AnsibleFilterError."""
    try:
        together({str(who): checked(json.dumps(raw), str(who)) for who, raw in releases.items()})
    except ReleaseError as error:
        raise AnsibleFilterError(str(error)) from None
    return True


class FilterModule:
    """What Ansible looks for in a filter plugin."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name and function of each filter."""
        return {
            "splitrail_release": splitrail_release,
            "splitrail_releases_agree": splitrail_releases_agree,
        }
