"""What the engines did between two readings of their exporters: by engine, by pool, and for the client."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from splitrail.metrics.histogram import NOTHING, Histogram, Spread, merged
from splitrail.metrics.text import Reading, read_engines, read_proxy

# Pools by the names that builders give to deployments: Ray Serve LLM's
# (ray/llm/_internal/serve/*/builder.py) and that of splitrail_elastic.
POOLS = {"Prefill": "prefill", "Decode": "decode", "LLMServer": "aggregated", "Engine": "elastic"}
# Those whose engines answer clients; a prefill engine answers a decode engine.
ANSWERING = ("decode", "aggregated", "elastic")
PERCENTILES = (50, 90, 99)


def pool_of(deployment: str) -> str:
    """The pool of a deployment: ``Prefill:qwen3`` is ``prefill``; empty where it has no engines."""
    # Elastic engines are numbered: each is a deployment, so that the ingress can choose it.
    return POOLS.get(deployment.partition(":")[0].rstrip("0123456789"), "")


@dataclass(frozen=True)
class Replica:
    """An engine as Serve's status names it."""

    deployment: str
    node: str = ""
    application: str = ""
    state: str = "RUNNING"
    started: float = 0.0

    @property
    def pool(self) -> str:
        """Its pool."""
        return pool_of(self.deployment)


@dataclass
class Snapshot:
    """All exporters read once.

    ``at`` is in seconds of the nodes' clocks; ``texts`` are exporters' texts by node; ``wire`` the bytes
    received by each node's NICs, by ``rdma`` and ``net``; ``errors`` why a node or exporter was not read;
    ``transport`` what the inventory declares for KV caches.
    """

    at: float
    texts: dict[str, str]
    replicas: dict[str, Replica] = field(default_factory=dict)
    wanted: dict[str, int] = field(default_factory=dict)
    wire: dict[str, dict[str, int]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    transport: str = ""

    def engines(self) -> dict[str, tuple[str, Reading]]:
        """Node and metrics of each engine. Raises MetricsError."""
        return {
            name: (node, reading)
            for node, text in self.texts.items()
            for name, reading in read_engines(text, node).items()
        }


@dataclass(frozen=True)
class Transfers:
    """KV caches that came from other engines through NIXL; an entry of the histograms is one rank's transfer.

    ``seconds`` is the whole transfer and ``post`` the part for which the engine hands NIXL its descriptors
    and does nothing else. ``tokens`` came from elsewhere, by the engine's own count, and ``counted_bytes`` is
    what they take, 0 where nobody knows: exact where the histogram's buckets differ by a factor of 4.
    """

    seconds: Histogram = NOTHING
    post: Histogram = NOTHING
    bytes: Histogram = NOTHING
    descriptors: Histogram = NOTHING
    tokens: float = 0.0
    failed: float = 0.0
    expired: float = 0.0
    late: float = 0.0
    counted_bytes: float = 0.0

    @property
    def total_bytes(self) -> Spread:
        """Bytes that moved. Where the tokens' bytes contradict NIXL's buckets, the buckets are believed."""
        told = self.bytes.sum()
        if not told.exact and told.low <= self.counted_bytes <= told.high:
            return Spread(self.counted_bytes, self.counted_bytes)
        return told

    @property
    def count(self) -> float:
        """Transfers of ranks."""
        return self.seconds.count

    @property
    def gb_per_s(self) -> Spread | None:
        """Bytes over the time of the transfers, in 10^9 bytes a second: what a transfer gets, not traffic."""
        return self.total_bytes.over(self.seconds.sum()).times(1e-9) if self.count else None

    @property
    def bytes_per_descriptor(self) -> Spread | None:
        """Mean size of a descriptor."""
        return self.total_bytes.over(self.descriptors.sum()) if self.count else None

    @property
    def post_share(self) -> Spread | None:
        """Share of the transfers' time that goes into posting descriptors, from 0 to 1."""
        if not self.count:
            return None
        share = self.post.sum().over(self.seconds.sum())
        return Spread(min(share.low, 1.0), min(share.high, 1.0))

    def plus(self, other: Transfers) -> Transfers:
        """Both together."""
        return Transfers(
            self.seconds.plus(other.seconds),
            self.post.plus(other.post),
            self.bytes.plus(other.bytes),
            self.descriptors.plus(other.descriptors),
            self.tokens + other.tokens,
            self.failed + other.failed,
            self.expired + other.expired,
            self.late + other.late,
            self.counted_bytes + other.counted_bytes,
        )


NO_TRANSFERS = Transfers()


@dataclass(frozen=True)
class Engine:
    """What one engine did in a window, and how it stands at its end."""

    replica: str
    pool: str
    node: str
    seconds: float
    running: float = 0.0
    waiting: float = 0.0
    kv_use: float = 0.0
    finished: float = 0.0
    prompt_tokens: float = 0.0
    generated_tokens: float = 0.0
    cache_queries: float = 0.0
    cache_hits: float = 0.0
    preemptions: float = 0.0
    ttft: Histogram = NOTHING
    tpot: Histogram = NOTHING
    itl: Histogram = NOTHING
    e2e: Histogram = NOTHING
    queued: Histogram = NOTHING
    prefill: Histogram = NOTHING
    decode: Histogram = NOTHING
    kv: Transfers = NO_TRANSFERS
    application: str = ""


@dataclass
class Window:
    """The time between two snapshots, or since the engines started where there is but one."""

    seconds: float
    engines: list[Engine]
    proxy_e2e: Histogram = NOTHING  # in ms
    requests: float = 0.0
    errors: float = 0.0
    wire: dict[str, dict[str, int]] = field(default_factory=dict)
    wanted: dict[str, int] = field(default_factory=dict)
    replicas: dict[str, Replica] = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)
    at: float = 0.0
    since_start: bool = False

    def pool(self, name: str) -> list[Engine]:
        """Its engines."""
        return [engine for engine in self.engines if engine.pool == name]

    @property
    def pools(self) -> list[str]:
        """Pools that have engines, in the order in which a request meets them."""
        found = {engine.pool for engine in self.engines}
        return [name for name in (*POOLS.values(), "") if name in found]

    @property
    def ratio(self) -> str:
        """What runs: ``1P2D``, ``4agg``, ``3 elastic``; of two applications each with its name."""
        applications = sorted({engine.application for engine in self.engines})
        if len(applications) < 2:  # noqa: PLR2004  one is not named
            return _ratio(self.engines)
        return ", ".join(
            f"{name} {_ratio([engine for engine in self.engines if engine.application == name])}"
            for name in applications
        )

    def ttft_ms(self, percentile: int) -> float | None:
        """Time to a client's first token.

        In prefill-decode serving a decode engine's clock starts when the prefill engine has answered, so this
        is the sum of the prefill engines' and the decode engines' percentile: what a client sees where slow
        prefills meet slow hand-offs, and an upper estimate where they do not. None without requests.
        """
        total = 0.0
        for name in ("prefill",) if self.pool("prefill") else ():
            part = merged(engine.ttft for engine in self.pool(name)).quantile(percentile / 100)
            if part is None:
                return None
            total += part
        last = merged(e.ttft for e in self._answering()).quantile(percentile / 100)
        return None if last is None else 1000 * (total + last)

    def tpot_ms(self, percentile: int) -> float | None:
        """Mean time of an answer's tokens after its first.

        Prefill engines are left out, whose one token has none. An elastic engine counts those too, so there
        it is the time between two tokens.
        """
        times = merged(
            engine.itl if engine.pool == "elastic" else engine.tpot for engine in self._answering()
        )
        found = times.quantile(percentile / 100)
        return None if found is None else 1000 * found

    def e2e_ms(self, percentile: int) -> float | None:
        """Time of whole answers: of Serve's proxies, or of the engines that answer where none was read."""
        if self.proxy_e2e.count:
            return self.proxy_e2e.quantile(percentile / 100)
        found = merged(engine.e2e for engine in self._answering()).quantile(percentile / 100)
        return None if found is None else 1000 * found

    def transfers(self) -> Transfers:
        """Of all engines."""
        found = NO_TRANSFERS
        for engine in self.engines:
            found = found.plus(engine.kv)
        return found

    def _answering(self) -> list[Engine]:
        return [engine for engine in self.engines if engine.pool in ANSWERING or not engine.pool]

    def document(self) -> dict[str, Any]:
        """For ``--json`` and the page; times in ms, None where nothing was measured."""
        return {
            "at": self.at,
            "seconds": round(self.seconds, 3),
            "since_start": self.since_start,
            "ratio": self.ratio,
            "ttft_ms": {f"p{p}": self.ttft_ms(p) for p in PERCENTILES},
            "tpot_ms": {f"p{p}": self.tpot_ms(p) for p in PERCENTILES},
            "e2e_ms": {f"p{p}": self.e2e_ms(p) for p in PERCENTILES},
            "requests_per_s": self._rate(self.requests),
            "errors": self.errors,
            "pools": {name: pool_document(self.pool(name)) for name in self.pools},
            "engines": [engine_document(engine) for engine in self.engines],
            "kv": transfers_document(self.transfers()),
            "unread": self.unread,
        }

    def _rate(self, amount: float) -> float:
        return amount / self.seconds if self.seconds else 0.0


def _ratio(engines: list[Engine]) -> str:
    counts = Counter(engine.pool for engine in engines)
    if counts["prefill"] or counts["decode"]:
        return f"{counts['prefill']}P{counts['decode']}D"
    if counts["elastic"]:
        return f"{counts['elastic']} elastic"
    return f"{counts['aggregated'] or counts['']}agg"


def window(
    before: Snapshot | None,
    after: Snapshot,
    application: str | None = None,
    bytes_per_token: float = 0.0,
) -> Window:
    """What happened between two snapshots; since the engines started without the first. Raises MetricsError.

    ``bytes_per_token`` is what a token's KV cache takes over all ranks of an engine, where that is known.

    An engine that Serve's status does not name as running is left out: exporters keep counting for replicas
    that are gone. Without a status (vLLM servers of their own) every engine is taken.
    """
    seconds = after.at - before.at if before else 0.0
    earlier = before.engines() if before else {}
    engines = []
    for name, (node, reading) in sorted(after.engines().items()):
        replica = after.replicas.get(name)
        if after.replicas and (replica is None or not replica.pool):
            continue
        if application and replica and replica.application != application:
            continue
        old = earlier.get(name, (node, Reading()))[1]
        lasted = seconds if before else max(0.0, after.at - replica.started if replica else 0.0)
        engine = _engine(name, (replica.pool if replica else "", node), lasted, old, reading)
        known = dataclasses.replace(engine.kv, counted_bytes=engine.kv.tokens * bytes_per_token)
        whose = replica.application if replica else ""
        engines.append(dataclasses.replace(engine, kv=known, application=whose))
    old_proxy, proxy = _proxy(before, application), _proxy(after, application)
    return Window(
        seconds=seconds,
        engines=engines,
        proxy_e2e=_growth(old_proxy, proxy, "http_request_latency_ms"),
        requests=_rise(old_proxy, proxy, "num_http_requests"),
        errors=_rise(old_proxy, proxy, "num_http_error_requests"),
        wire=_wire(before, after),
        wanted=after.wanted,
        replicas=after.replicas,
        unread=after.errors,
        at=after.at,
        since_start=before is None,
    )


def _engine(name: str, place: tuple[str, str], seconds: float, old: Reading, new: Reading) -> Engine:
    """``place`` is the pool and the node."""

    def rise(key: str) -> float:
        return _rise(old, new, key)

    def grown(key: str) -> Histogram:
        return _growth(old, new, key)

    return Engine(
        replica=name,
        pool=place[0],
        node=place[1],
        seconds=seconds,
        running=new.values.get("num_requests_running", 0.0),
        waiting=new.values.get("num_requests_waiting", 0.0),
        kv_use=new.values.get("kv_cache_usage_perc", 0.0),
        finished=rise("request_success"),
        prompt_tokens=rise("prompt_tokens"),
        generated_tokens=rise("generation_tokens"),
        cache_queries=rise("prefix_cache_queries"),
        cache_hits=rise("prefix_cache_hits"),
        preemptions=rise("num_preemptions"),
        ttft=grown("time_to_first_token_seconds"),
        tpot=grown("request_time_per_output_token_seconds"),
        itl=grown("inter_token_latency_seconds"),
        e2e=grown("e2e_request_latency_seconds"),
        queued=grown("request_queue_time_seconds"),
        prefill=grown("request_prefill_time_seconds"),
        decode=grown("request_decode_time_seconds"),
        kv=Transfers(
            seconds=grown("nixl_xfer_time_seconds"),
            post=grown("nixl_post_time_seconds"),
            bytes=grown("nixl_bytes_transferred"),
            descriptors=grown("nixl_num_descriptors"),
            tokens=rise("external_prefix_cache_hits"),
            failed=rise("nixl_num_failed_transfers"),
            expired=rise("nixl_num_kv_expired_reqs"),
            late=rise("nixl_num_notifications_after_expiry"),
        ),
    )


def _rise(old: Reading, new: Reading, key: str) -> float:
    """Growth of a counter; all of it where it was reset in between."""
    now, then = new.values.get(key, 0.0), old.values.get(key, 0.0)
    return now - then if now >= then else now


def _growth(old: Reading, new: Reading, key: str) -> Histogram:
    now = new.histograms.get(key, NOTHING)
    then = old.histograms.get(key)
    return now if then is None else now.since(then)


def _proxy(snapshot: Snapshot | None, application: str | None) -> Reading:
    """All proxies of a snapshot together."""
    found = Reading()
    for node, text in snapshot.texts.items() if snapshot else ():
        one = read_proxy(text, node, application)
        for key, value in one.values.items():
            found.values[key] = found.values.get(key, 0.0) + value
        for key, histogram in one.histograms.items():
            found.histograms[key] = found.histograms.get(key, NOTHING).plus(histogram)
    return found


def _wire(before: Snapshot | None, after: Snapshot) -> dict[str, dict[str, int]]:
    """Bytes that came in on each node's NICs in the window; nothing without two readings."""
    if before is None:
        return {}
    return {
        node: {kind: max(0, now - before.wire[node].get(kind, 0)) for kind, now in counters.items()}
        for node, counters in after.wire.items()
        if node in before.wire
    }


def pool_document(engines: Iterable[Engine]) -> dict[str, Any]:
    """A pool's sums; shares from 0 to 1, rates in tokens a second."""
    found = list(engines)
    queries = sum(engine.cache_queries for engine in found)

    def rate(amounts: Iterable[tuple[float, float]]) -> float:
        return sum(amount / seconds for amount, seconds in amounts if seconds)

    return {
        "engines": len(found),
        "running": sum(engine.running for engine in found),
        "waiting": sum(engine.waiting for engine in found),
        "kv_use": max((engine.kv_use for engine in found), default=0.0),
        "hit_rate": sum(engine.cache_hits for engine in found) / queries if queries else None,
        "prompt_tokens_per_s": rate((e.prompt_tokens, e.seconds) for e in found),
        "generated_tokens_per_s": rate((e.generated_tokens, e.seconds) for e in found),
        "ttft_ms": quantiles(merged(engine.ttft for engine in found)),
        "tpot_ms": quantiles(merged(engine.tpot for engine in found)),
        "queued_ms": quantiles(merged(engine.queued for engine in found)),
        "busy": busy(found),
    }


def busy(engines: Iterable[Engine]) -> dict[str, float | None]:
    """Share of a request's time in prefill and in decode, of what the engines finished; None without any."""
    found = list(engines)
    prefill = merged(engine.prefill for engine in found).sum()
    decode = merged(engine.decode for engine in found).sum()
    both = (prefill.low + prefill.high + decode.low + decode.high) / 2
    if not both:
        return {"prefill": None, "decode": None}
    share = (prefill.low + prefill.high) / 2 / both
    return {"prefill": share, "decode": 1 - share}


def engine_document(engine: Engine) -> dict[str, Any]:
    """One engine, for ``--json``."""
    return {
        "replica": engine.replica,
        "pool": engine.pool,
        "node": engine.node,
        "running": engine.running,
        "waiting": engine.waiting,
        "kv_use": engine.kv_use,
        "finished": engine.finished,
        "ttft_ms": quantiles(engine.ttft),
        "tpot_ms": quantiles(engine.tpot),
        "kv": transfers_document(engine.kv),
    }


def transfers_document(kv: Transfers) -> dict[str, Any]:
    """Transfers, each figure as its two bounds; None where none took place."""
    return {
        "transfers": kv.count,
        "tokens": kv.tokens,
        "failed": kv.failed,
        "expired": kv.expired,
        "late": kv.late,
        "gb_per_s": _bounds(kv.gb_per_s),
        "bytes": _bounds(kv.total_bytes.times(1 / kv.count) if kv.count else None),
        "descriptors": _bounds(kv.descriptors.mean()),
        "post_ms": _bounds(_ms(kv.post.mean())),
        "ms": _bounds(_ms(kv.seconds.mean())),
        "post_share": _bounds(kv.post_share),
    }


def quantiles(histogram: Histogram) -> dict[str, float | None]:
    """A histogram of seconds, in ms."""
    found = {f"p{p}": histogram.quantile(p / 100) for p in PERCENTILES}
    return {name: None if value is None else 1000 * value for name, value in found.items()}


def snapshot_of(raw: Mapping[str, Any]) -> Snapshot:
    """A snapshot from what playbooks/scrape.yml handed out: node name to what the module returned there."""
    texts, wire, errors = {}, {}, {}
    replicas: dict[str, Replica] = {}
    wanted: dict[str, int] = {}
    for node, found in raw.items():
        texts[node] = "".join(found.get("texts", {}).values())
        wire[node] = found.get("wire", {})
        if found.get("unreachable"):
            errors[node] = "cannot be reached"
        if found.get("errors"):
            errors[node] = "; ".join(found["errors"])
        for name, replica in found.get("replicas", {}).items():
            replicas[name] = Replica(**replica)
        wanted |= found.get("wanted", {})
    at = max((float(found["at"]) for found in raw.values() if "at" in found), default=0.0)
    transport = next((found["transport"] for found in raw.values() if found.get("transport")), "")
    return Snapshot(at, texts, replicas, wanted, wire, errors, transport)


def _ms(seconds: Spread | None) -> Spread | None:
    return None if seconds is None else seconds.times(1000)


def _bounds(spread: Spread | None) -> list[float | None] | None:
    """JSON knows no infinity: an open bound is null."""
    if spread is None:
        return None
    return [spread.low, None if spread.high == float("inf") else spread.high]
