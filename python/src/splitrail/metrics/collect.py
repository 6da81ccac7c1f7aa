"""Readings of all exporters: of a cluster through its playbook, or of servers by their addresses."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import httpx

from splitrail.metrics.window import Snapshot, snapshot_of
from splitrail.project import Project
from splitrail.run.playbook import Options
from splitrail.run.status import ask

# What playbooks/scrape.yml hands out.
KEY = "splitrail_scrape"
Collect = Callable[[], Snapshot]


class CollectError(Exception):
    """Nothing could be read; the message says why."""


def of_cluster(project: Project, options: Options) -> Collect:
    """Readings over SSH, by the inventory's own way to its hosts; they raise CollectError."""

    def collect() -> Snapshot:
        answer, why = ask(project, "playbooks/scrape.yml", options, KEY)
        if answer is None:
            raise CollectError(why or "no answer")
        return snapshot_of(answer)

    return collect


def of_urls(urls: Sequence[str]) -> Collect:
    """Readings of exporters that this machine reaches itself, such as vLLM servers without Ray."""

    def collect() -> Snapshot:
        texts, errors = {}, {}
        for url in urls:
            full = url if url.rstrip("/").endswith("/metrics") else url.rstrip("/") + "/metrics"
            try:
                texts[url] = httpx.get(full, timeout=10, trust_env=False).raise_for_status().text
            except httpx.HTTPError as error:
                errors[url] = str(error)
        if not texts:
            raise CollectError("; ".join(f"{url}: {why}" for url, why in errors.items()))
        return Snapshot(time.time(), texts, errors=errors)

    return collect
