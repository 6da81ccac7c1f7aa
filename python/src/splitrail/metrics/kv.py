"""Whether KV caches move as they should: the engines' figures against what the fabric's proof measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from splitrail.fabric.mesh_data import MeshError, Result
from splitrail.metrics.histogram import Spread
from splitrail.metrics.window import Engine, Transfers, Window
from splitrail.proof import newest
from splitrail.topology.kv_layout import choose
from splitrail.topology.models import ELEMENT_BYTES, facts_of
from splitrail.topology.schema import parse
from splitrail.verdict import Verdict, VerdictError

# What a descriptor costs an engine, in seconds: 448.5 ms for 80,000 of them and 2.6 GB, of which 17 ms are
# the wire's, measured on H200 (python/benchmarks/gpu_pd.h200.json, layout default, 3P1D, 16,000 tokens).
DESCRIPTOR_S = 5.4e-6
# Most of a transfer's time that may go into posting descriptors. The same runs: 0.07 with 94 of them to a
# transfer, 0.6 with 80,000.
POST_SHARE = 0.2
# What a transfer must get of one link. Convention, no vendor's text found: below half, something else than
# the wire sets the pace.
LINK_SHARE = 0.5
# A transfer that takes the wire less than this is made of fixed costs (posting 16 descriptors took 0.4 ms in
# the same runs) and says nothing of the layout.
SHORTEST_S = 1e-3

# A prompt of the length that MI325X and H200 were calibrated with, and room for the answer and a template.
LONG_PROMPT = 16_000
ROOM = 64

LAYOUT_HINT = (
    "Fewer and larger descriptors: raise block_size as far as the attention backend takes it, and ask for "
    "cross-layer blocks (kv_transfer.extra.enable_cross_layers_blocks, or the layout BLHNC) where the "
    "release has them; `docs/topologies.md` names what each release takes."
)


@dataclass(frozen=True)
class Link:
    """What the proof of the fabric measured of one link: the median of all, in 10^9 bytes a second."""

    gb_per_s: float
    transport: str
    record: str


def measured_link(run_dir: Path, cluster: str) -> Link | None:
    """From the newest proof of the cluster's fabric beside this run record; None where there is none."""
    found = newest(run_dir, "fabric", cluster)
    if found is None:
        return None
    folder, proof = found
    rates = _rails(folder) if proof.transport == "rdma" else _tcp(folder)
    return Link(median(rates) / 8, proof.transport, folder.name) if rates else None


def _rails(folder: Path) -> list[float]:
    """Gb/s of every way of every rail."""
    try:
        return [reading.gbps for reading in Result.load(folder).readings if reading.gbps]
    except MeshError:
        return []


def _tcp(folder: Path) -> list[float]:
    """Gb/s of every way over TCP."""
    rates = []
    for path in sorted(folder.glob("verdicts/fabric/*.json")):
        try:
            checks = Verdict.load(path).checks
        except VerdictError:
            continue
        rates += [
            float(check.measured)
            for check in checks
            if check.name == "fabric.tcp_throughput" and isinstance(check.measured, (int, float))
        ]
    return rates


def judge(window: Window, link: Link | None, *, waived: bool = False) -> list[dict[str, Any]]:
    """The checks of a window, without their host; empty where no engine takes KV caches from others.

    A figure of which only the bounds are known fails where all that it can be fails. With ``waived`` the
    cluster serves without a proof of its fabric, and only what needs none is judged.
    """
    if not {"decode", "elastic"} & set(window.pools):
        return []
    checks = [*_whole(window)]
    if link is None and waived:
        judged = [engine for engine in window.engines if engine.kv.count]
        return [*checks, *(_post(engine.kv, _subject(engine)) for engine in judged)]
    if link is None:
        hint = "Run `splitrail fabric prove`; what a transfer should get is measured, not assumed."
        checks.append(_check("link", "one link of the fabric", False, "no proof", "a proof", hint=hint))
        return checks
    for engine in window.engines:
        if engine.kv.count:
            checks += _layout(engine, link)
    return checks


def _whole(window: Window) -> Iterator[dict[str, Any]]:
    """Over all engines: whether anything moved, and what was lost."""
    kv = window.transfers()
    yield _check(
        "transfers",
        "transfers between engines",
        kv.count > 0,
        kv.count,
        "1 or more",
        hint="Send a request that is longer than a block, then look again; `splitrail smoke` does both.",
    )
    yield _check(
        "failed",
        "transfers between engines",
        kv.failed == 0,
        kv.failed,
        0,
        unit="failed",
        hint="Read the decode engines' logs; then prove the transport anew (`splitrail validate`).",
    )
    lost = kv.expired + kv.late
    yield _check(
        "expired",
        "KV caches that wait to be fetched",
        lost == 0,
        lost,
        0,
        unit="expired",
        hint="Decode engines fetch too late: add one, or raise kv_transfer.extra.kv_lease_duration "
        "(VLLM_NIXL_ABORT_REQUEST_TIMEOUT up to vLLM 0.20).",
    )


def _layout(engine: Engine, link: Link) -> Iterator[dict[str, Any]]:
    """Of one engine: whether the wire sets the pace of its transfers, or their descriptors."""
    kv = engine.kv
    subject = _subject(engine)
    size = kv.total_bytes.times(1 / kv.count)
    if size.high < link.gb_per_s * 1e9 * SHORTEST_S:
        yield _check(
            "layout",
            subject,
            True,
            f"not judged: {size.text()} B a transfer",
            f"from {link.gb_per_s * 1e9 * SHORTEST_S:.3g} B on, 1 ms of the link",
        )
        return
    yield _descriptors(kv, subject, link)
    yield _post(kv, subject)
    if link.transport == "rdma":
        yield _rate(kv, subject, link)


def _subject(engine: Engine) -> str:
    return f"{engine.pool or 'engine'} {engine.replica} on {engine.node}"


def _post(kv: Transfers, subject: str) -> dict[str, Any]:
    share = kv.post_share
    if share is None:
        raise AssertionError("an engine without transfers is not judged")
    return _check(
        "post_time",
        subject,
        share.low <= POST_SHARE,
        _figure(share.low, share.high),
        POST_SHARE,
        unit="of a transfer's time",
        hint=LAYOUT_HINT,
    )


def _descriptors(kv: Transfers, subject: str, link: Link) -> dict[str, Any]:
    """As large that a descriptor's bytes take the wire as long as the descriptor takes the engine."""
    need = link.gb_per_s * 1e9 * DESCRIPTOR_S
    size = kv.bytes_per_descriptor
    if size is None:
        raise AssertionError("an engine without transfers is not judged")
    return _check(
        "descriptors",
        subject,
        size.high >= need,
        _figure(size.low, size.high),
        round(need),
        unit="B a descriptor",
        hint=LAYOUT_HINT,
    )


def _rate(kv: Transfers, subject: str, link: Link) -> dict[str, Any]:
    need = LINK_SHARE * link.gb_per_s
    rate = kv.gb_per_s
    if rate is None:
        raise AssertionError("an engine without transfers is not judged")
    return _check(
        "rate",
        subject,
        rate.high >= need,
        _figure(rate.low, rate.high),
        round(need, 2),
        unit=f"GB/s, {LINK_SHARE:.0%} of a link of {link.gb_per_s:.3g} ({link.record})",
        hint="Where kv.descriptors and kv.post_time fail too, the layout is at fault. Else look for a "
        "slow path: UCX_TLS, UCX_NET_DEVICES, GPU and NIC on different sockets; then prove the fabric anew.",
    )


def _figure(low: float, high: float) -> float | str:
    """A figure, or its bounds in words."""
    return float(f"{low:.4g}") if low == high else Spread(low, high).text()


def _check(
    name: str, subject: str, ok: bool, measured: Any, required: Any, *, unit: str = "", hint: str = ""
) -> dict[str, Any]:
    return {
        "name": f"kv.{name}",
        "subject": subject,
        "ok": bool(ok),
        "measured": measured,
        "required": required,
        "unit": unit,
        "hint": hint,
    }


def bytes_per_token(topology: dict[str, Any], release: str) -> float:
    """What a token's KV cache takes over all ranks of a decode engine; 0 for a model that nobody knows.

    ``release`` names what chooses the type of the KV cache where the topology does not. Raises TopologyError.
    """
    said = parse(topology)
    facts = said.model.facts or facts_of(said.model.source) or facts_of(said.model.id)
    pool = said.served.get("decode") or said.served.get("elastic")
    if facts is None or pool is None:
        return 0.0
    chosen, _ = choose(said, release, facts.attention)
    engine = {**chosen.engine, **pool.engine}
    dtype = str(engine.get("dtype", facts.dtype))
    element = ELEMENT_BYTES.get(str(engine.get("kv_cache_dtype", "auto")), ELEMENT_BYTES.get(dtype, 0))
    ranks = pool.tensor_parallel_size
    return float(ranks * facts.kv_bytes_per_token(ranks, element))


def prompt_tokens(topology: dict[str, Any]) -> int:
    """The length of a prompt that shows how KV caches move, in tokens; an engine of the topology takes it.

    As long as the calibration data's (16,000), and shorter where an engine is. Raises TopologyError.
    """
    said = parse(topology)
    facts = said.model.facts or facts_of(said.model.source) or facts_of(said.model.id)
    longest = LONG_PROMPT + ROOM
    for pool in said.served.values():
        own = {**said.engine, **pool.engine}.get("max_model_len")
        known = facts.max_position_embeddings if facts else longest
        longest = min(longest, int(own or known))
    return longest - ROOM
