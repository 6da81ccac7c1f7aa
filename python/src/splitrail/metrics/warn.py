"""What a window shows that somebody should look at, in words."""

from __future__ import annotations

from collections.abc import Iterator

from splitrail.metrics.kv import POST_SHARE
from splitrail.metrics.window import Window

# A KV cache this full makes the engine evict requests and compute them again.
FULL = 0.95
# Transfers below this move too little to tell their way by the NICs' counters, which other traffic moves too.
SHOWN_BYTES = 50e6


def warnings(window: Window, transport: str = "") -> list[str]:
    """A line a finding; ``transport`` is what the inventory declares, empty where nobody said."""
    return [*_missing(window), *_transfers(window, transport), *_load(window)]


def _missing(window: Window) -> Iterator[str]:
    for where, why in sorted(window.unread.items()):
        yield f"{where} was not read: {why}"
    running: dict[str, int] = {}
    for replica in window.replicas.values():
        running[replica.deployment] = running.get(replica.deployment, 0) + 1
    for deployment, wanted in sorted(window.wanted.items()):
        if running.get(deployment, 0) < wanted:
            yield f"{deployment}: {running.get(deployment, 0)} of {wanted} replicas run"
    if not window.engines:
        yield "no engine exports metrics: is anything deployed, with log_engine_metrics?"


def _transfers(window: Window, transport: str) -> Iterator[str]:
    kv = window.transfers()
    if kv.failed:
        yield f"{kv.failed:g} KV transfers failed: read the decode engines' logs"
    if kv.expired or kv.late:
        yield f"{kv.expired + kv.late:g} KV caches were given up before they were fetched: add decode engines"
    share = kv.post_share
    if share is not None and share.low > POST_SHARE:
        yield (
            f"KV transfers are bound by descriptors: {share.text('.0%')} of their time goes into posting "
            "them; raise block_size or use cross-layer blocks"
        )
    if transport == "rdma" and window.wire and kv.total_bytes.low > SHOWN_BYTES:
        rdma = sum(one.get("rdma", 0) for one in window.wire.values())
        if rdma < kv.total_bytes.low / 2 and not _one_node(window):
            yield (
                f"KV caches move without RDMA: {kv.total_bytes.low / 1e9:.3g} GB came from other engines, "
                f"{rdma / 1e9:.3g} GB over RDMA; look at UCX_TLS and UCX_NET_DEVICES"
            )


def _one_node(window: Window) -> bool:
    """Engines of one node reach one another without the fabric."""
    return len({engine.node for engine in window.engines}) == 1


def _load(window: Window) -> Iterator[str]:
    for engine in window.engines:
        if engine.kv_use > FULL:
            yield f"{engine.pool or 'engine'} {engine.replica}: KV cache {engine.kv_use:.0%} full"
    preempted = sum(engine.preemptions for engine in window.engines)
    if preempted:
        yield f"{preempted:g} requests were evicted and computed again: too many at once for the KV cache"
    if window.errors:
        yield f"{window.errors:g} requests ended with an error"
