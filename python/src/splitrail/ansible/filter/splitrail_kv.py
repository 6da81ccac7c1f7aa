"""Filters of KV transfers: what the engines say of them as checks of a verdict, and what makes them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleFilterError

from splitrail.metrics.kv import bytes_per_token, judge, measured_link, prompt_tokens
from splitrail.metrics.text import MetricsError
from splitrail.metrics.window import Snapshot, snapshot_of, window
from splitrail.topology.schema import TopologyError


def kv_checks(
    scraped: dict[str, Any],
    *,
    cluster: str,
    topology: dict[str, Any],
    release: str,
    before: dict[str, Any] | None = None,
    waiver: str = "",
) -> list[dict[str, Any]]:
    """The checks of the transfers since ``before``; none where no engine takes KV caches.

    scraped, before: what the module ``splitrail_scrape`` returned, by host; without ``before`` all transfers
    since the engines started count. cluster: whose proof of the fabric counts. release: its name, which
    chooses the KV cache's type where the topology does not. waiver: the reason why the cluster serves without
    a proof of its fabric, empty for none.

    Raises AnsibleFilterError when an exporter was not read.
    """
    try:
        earlier, now = _snapshot(before) if before else None, _snapshot(scraped)
        per_token = bytes_per_token(_plain(topology), release)
        found = window(earlier, now, bytes_per_token=per_token)
    except (MetricsError, TopologyError) as error:
        raise AnsibleFilterError(f"the engines' metrics could not be read: {error}") from error
    link = measured_link(Path(os.environ["SPLITRAIL_RUN_DIR"]), cluster)
    return judge(found, link, waived=bool(waiver))


def kv_prompt(topology: dict[str, Any]) -> int:
    """Tokens of a prompt that is long enough to be judged, and that engines of the topology take."""
    try:
        return prompt_tokens(_plain(topology))
    except TopologyError as error:
        raise AnsibleFilterError(str(error)) from error


def _snapshot(scraped: dict[str, Any]) -> Snapshot:
    snapshot = snapshot_of(_plain(scraped))
    if snapshot.errors:
        told = "; ".join(f"{node}: {why}" for node, why in snapshot.errors.items())
        raise AnsibleFilterError(f"the engines' metrics could not be read: {told}")
    return snapshot


def _plain(value: Any) -> Any:
    """Through JSON: Ansible's values carry tags."""
    return json.loads(json.dumps(value))


class FilterModule:
    """See the head of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name and function of each filter."""
        return {"splitrail_kv_checks": kv_checks, "splitrail_kv_prompt": kv_prompt}
