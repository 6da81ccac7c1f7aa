"""The filter ``splitrail_kv_checks``: what the engines say of KV transfers, as checks of a verdict."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleFilterError

from splitrail.metrics.kv import bytes_per_token, judge, measured_link
from splitrail.metrics.text import MetricsError
from splitrail.metrics.window import snapshot_of, window
from splitrail.topology.schema import TopologyError


def kv_checks(
    scraped: dict[str, Any], *, cluster: str, topology: dict[str, Any], release: str, waiver: str = ""
) -> list[dict[str, Any]]:
    """The checks of all transfers since the engines started; none where no engine takes KV caches.

    scraped: what the module ``splitrail_scrape`` returned, by host. cluster: whose proof of the fabric
    counts. release: its name, which chooses the KV cache's type where the topology does not. waiver: the
    reason why the cluster serves without a proof of its fabric, empty for none.

    Raises AnsibleFilterError when an exporter was not read.
    """
    try:
        # Through JSON: Ansible's values carry tags.
        snapshot = snapshot_of(json.loads(json.dumps(scraped)))
        if snapshot.errors:
            told = "; ".join(f"{node}: {why}" for node, why in snapshot.errors.items())
            raise AnsibleFilterError(f"the engines' metrics could not be read: {told}")
        per_token = bytes_per_token(json.loads(json.dumps(topology)), release)
        found = window(None, snapshot, bytes_per_token=per_token)
    except (MetricsError, TopologyError) as error:
        raise AnsibleFilterError(f"the engines' metrics could not be read: {error}") from error
    link = measured_link(Path(os.environ["SPLITRAIL_RUN_DIR"]), cluster)
    return judge(found, link, waived=bool(waiver))


class FilterModule:
    """See the head of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name of the filter and what it does."""
        return {"splitrail_kv_checks": kv_checks}
