"""What ``bench`` measures and ``plan`` predicts, in one vocabulary: workload, SLA, layout, point, curve.

The JSON of a file of curves is ``Curves``; docs/plan.md explains every key. Times in files are in ms and end
in ``_ms`` or belong to a metric (TTFT, TPOT, E2E); rates are requests a second.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

METRICS = ("ttft", "tpot", "e2e")
STATISTICS = ("p50", "p90", "p99", "mean")
Metric = Literal["ttft", "tpot", "e2e"]
Statistic = Literal["p50", "p90", "p99", "mean"]


class WorkloadError(ValueError):
    """Something a user wrote that cannot be read; ``str()`` names the key and the cure."""


class Strict(BaseModel):
    """Refuses keys that it does not know, and never changes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Lengths(Strict):
    """Lengths in tokens: log-normal with this mean and coefficient of variation, constant with ``cv`` 0."""

    mean: float = Field(ge=1)
    cv: float = Field(default=0.0, ge=0, le=3)
    max: int | None = Field(default=None, ge=1)


class Workload(Strict):
    """What clients ask for.

    ``hit_rate`` is the share of each prompt that the prefix cache of the engine that prefills holds;
    ``decode_hit_rate`` the share that need not be transferred because the decode engine holds it.
    ``arrivals`` are gamma-distributed gaps: a coefficient of variation of 1 is Poisson, 0 is a constant gap.
    """

    isl: Lengths
    osl: Lengths
    hit_rate: float = Field(default=0.0, ge=0, lt=1)
    decode_hit_rate: float = Field(default=0.0, ge=0, lt=1)
    arrival_cv: float = Field(default=1.0, ge=0, le=5)

    @property
    def label(self) -> str:
        """Short and readable: ``8000/512``, with the hit rate where there is one."""
        hit = f", {self.hit_rate:.0%} hits" if self.hit_rate else ""
        return f"{self.isl.mean:g}/{self.osl.mean:g}{hit}"


class Limit(Strict):
    """One line of an SLA: a statistic of a metric and its highest value in ms."""

    metric: Metric
    statistic: Statistic
    ms: float = Field(gt=0)

    @property
    def key(self) -> str:
        """``ttft_p90``."""
        return f"{self.metric}_{self.statistic}"

    def __str__(self) -> str:
        return f"{self.statistic} {self.metric.upper()} <= {self.ms:g} ms"


class Sla(Strict):
    """All limits hold together."""

    limits: tuple[Limit, ...] = Field(min_length=1)

    def __str__(self) -> str:
        return ", ".join(str(limit) for limit in self.limits)


class Engines(Strict):
    """Engines of one kind: how many, and over how many GPUs each is spread."""

    replicas: int = Field(ge=1)
    tp: int = Field(default=1, ge=1)

    @property
    def gpus(self) -> int:
        """GPUs of the pool."""
        return self.replicas * self.tp


class Layout(Strict):
    """The part of a topology that a curve depends on: aggregated engines, or prefill and decode ones."""

    aggregated: Engines | None = None
    prefill: Engines | None = None
    decode: Engines | None = None

    @model_validator(mode="after")
    def _one_mode(self) -> Layout:
        pools = (self.aggregated is not None, self.prefill is not None, self.decode is not None)
        if pools not in {(True, False, False), (False, True, True)}:
            raise ValueError("a layout has either aggregated engines, or both prefill and decode engines")
        return self

    @property
    def mode(self) -> Literal["pd", "aggregated"]:
        """As in a topology."""
        return "pd" if self.aggregated is None else "aggregated"

    @property
    def pools(self) -> dict[str, Engines]:
        """The pools that exist, by role."""
        named = {"aggregated": self.aggregated, "prefill": self.prefill, "decode": self.decode}
        return {role: engines for role, engines in named.items() if engines is not None}

    @property
    def gpus(self) -> int:
        """GPUs of all pools."""
        return sum(engines.gpus for engines in self.pools.values())

    @property
    def label(self) -> str:
        """``4agg``, ``2p2d``, ``1p3d-tp8``, ``2p-tp4-1d-tp8``: what ``Layout.read`` reads."""
        if self.aggregated:
            return f"{self.aggregated.replicas}agg" + _tp(self.aggregated.tp)
        if self.prefill is None or self.decode is None:
            raise AssertionError("no layout is without pools")
        p, d = self.prefill, self.decode
        if p.tp == d.tp:
            return f"{p.replicas}p{d.replicas}d" + _tp(p.tp)
        return f"{p.replicas}p-tp{p.tp}-{d.replicas}d-tp{d.tp}"

    @classmethod
    def read(cls, text: str) -> Layout:
        """From its label. Raises WorkloadError."""
        if found := re.fullmatch(r"(\d+)agg(?:-tp(\d+))?", text):
            return cls(aggregated=_engines(found[1], found[2]))
        if found := re.fullmatch(r"(\d+)p(\d+)d(?:-tp(\d+))?", text):
            return cls(prefill=_engines(found[1], found[3]), decode=_engines(found[2], found[3]))
        if found := re.fullmatch(r"(\d+)p-tp(\d+)-(\d+)d-tp(\d+)", text):
            return cls(prefill=_engines(found[1], found[2]), decode=_engines(found[3], found[4]))
        raise WorkloadError(f"layout {text!r}: write 4agg, 2p2d, 1p3d-tp8 or 2p-tp4-1d-tp8")


class Attained(Strict):
    """The share of requests within a limit, and the interval that holds the true share with 95 %."""

    share: float
    low: float
    high: float


class Point(Strict):
    """What clients saw at one offered rate.

    ``sent_s`` are the times at which requests were sent, where they were recorded: calibration then replays
    them. ``descriptors`` is what a transfer had on average, as the engines count: adjacent blocks are merged,
    so it may be far below one a block. ``steady`` is null where nobody looked; ``unsteady`` says in words why
    it is false. ``failed`` requests have no times. ``lag_ms`` is how late the client itself sent (p99).
    ``attained`` is the share of requests within a limit, by the limit's key, and ``runs`` how many runs were
    put together. A metric maps a statistic to ms; one that was not measured is absent.
    """

    qps: float = Field(gt=0)
    achieved_qps: float | None = None
    requests: int | None = None
    seconds: float | None = None
    steady: bool | None = None
    unsteady: tuple[str, ...] = ()
    failed: int | None = None
    lag_ms: float | None = None
    attained: dict[str, Attained] = {}
    runs: int = 1
    descriptors: float | None = Field(default=None, gt=0)
    sent_s: tuple[float, ...] = ()
    ttft: dict[Statistic, float] = {}
    tpot: dict[Statistic, float] = {}
    e2e: dict[Statistic, float] = {}

    def value(self, key: str) -> float | None:
        """The figure behind ``ttft_p90``, in ms; None where it was not measured."""
        metric, _, statistic = key.partition("_")
        values: dict[str, float] = getattr(self, metric)
        return values.get(statistic)

    @property
    def figures(self) -> dict[str, float]:
        """All figures by key, in ms."""
        return {
            f"{metric}_{statistic}": value
            for metric in METRICS
            for statistic, value in getattr(self, metric).items()
        }


class Window(Strict):
    """Which requests of a run count: those sent from ``drop_s`` to ``seconds``, all of which are waited for.

    ``requests`` closes the window after so many.
    """

    seconds: float = Field(gt=0)
    drop_s: float = Field(default=0.0, ge=0)
    requests: int | None = Field(default=None, ge=1)


# What ``Sustained.binding`` says where the client's own lag ended the search.
CLIENT = "client"


class Sustained(Strict):
    """The highest rate that a layout was found to hold under an SLA: its goodput.

    ``qps`` is null where no rate held, and ``why`` says what ended the search. ``low`` and ``high`` bound the
    rate with 95 % at each: what surely held, what surely did not; null where nothing was sure.
    """

    sla: Sla
    qps: float | None
    low: float | None = None
    high: float | None = None
    binding: str = ""
    why: str = ""
    runs: int = 0
    requests: int = 0
    seconds: float = 0.0

    @property
    def shown(self) -> str:
        """The rate for people: ``24``, ``>= 24`` where the system was not what ended the search, ``none``."""
        if self.qps is None:
            return "none"
        return f"{'>= ' if self.binding == CLIENT else ''}{self.qps:.4g}"


class Curve(Strict):
    """Points of one layout under one workload, over rising rates."""

    kind: Literal["measured", "predicted"]
    layout: str
    workload: Workload
    window: Window | None = None
    source: str = ""
    points: tuple[Point, ...]
    sustained: tuple[Sustained, ...] = ()

    @model_validator(mode="after")
    def _readable(self) -> Curve:
        Layout.read(self.layout)
        return self


class Curves(Strict):
    """A file of curves of one system."""

    version: Literal[1] = 1
    about: str = ""
    system: dict[str, Any] = {}
    curves: tuple[Curve, ...] = Field(min_length=1)


def load_curves(path: Path) -> Curves:
    """Read a file of curves. Raises WorkloadError with the file, each key at fault and the cure."""
    try:
        return Curves.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise WorkloadError(f"{path}: {error.strerror}") from error
    except (ValidationError, json.JSONDecodeError, WorkloadError) as error:
        raise WorkloadError(f"{path}: {explain(error)}") from error


def explain(error: Exception) -> str:
    """What a validation found, in one line."""
    if not isinstance(error, ValidationError):
        return str(error)
    lines = []
    for fault in error.errors():
        place = ".".join(str(part) for part in fault["loc"])
        message = str(fault["msg"]).removeprefix("Value error, ")
        lines.append(f"{place}: {message}" if place else message)
    return "; ".join(lines)


def read_sla(texts: list[str]) -> Sla:
    """From ``ttft_p90=1000`` in ms. Raises WorkloadError."""
    limits = []
    for text in texts:
        found = re.fullmatch(r"(ttft|tpot|e2e)_(p50|p90|p99|mean)=([0-9.]+)", text.strip())
        if not found or float(found[3]) <= 0:
            raise WorkloadError(
                f"SLA {text!r}: write METRIC_STATISTIC=MS, like ttft_p90=1000; metrics are ttft, tpot and "
                "e2e, statistics p50, p90, p99 and mean"
            )
        limits.append(
            Limit.model_validate({"metric": found[1], "statistic": found[2], "ms": float(found[3])})
        )
    if not limits:
        raise WorkloadError("an SLA needs at least one limit, like ttft_p90=1000")
    return Sla(limits=tuple(limits))


def _engines(replicas: str, tp: str | None) -> Engines:
    if int(replicas) < 1 or int(tp or 1) < 1:
        raise WorkloadError("a pool has at least one engine on at least one GPU")
    return Engines(replicas=int(replicas), tp=int(tp or 1))


def _tp(tp: int) -> str:
    return f"-tp{tp}" if tp != 1 else ""
