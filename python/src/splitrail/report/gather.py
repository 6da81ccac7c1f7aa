"""Files of curves, put together by what was asked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from splitrail.workload import (
    Curve,
    Curves,
    Layout,
    Sla,
    Sustained,
    Workload,
    WorkloadError,
    explain,
    load_curves,
    read_sla,
)


@dataclass(frozen=True)
class Source:
    """A file, and what it says of itself."""

    file: str
    about: str
    curves: tuple[Curve, ...]


@dataclass
class Asked:
    """Everything about one workload. Curves of equal layout and kind from several files stay apart."""

    workload: Workload
    curves: list[Curve] = field(default_factory=list)

    @property
    def slas(self) -> list[Sla]:
        """The SLAs under which rates were searched, in their order."""
        return list(dict.fromkeys(found.sla for curve in self.curves for found in curve.sustained))

    def found(self, sla: Sla) -> list[tuple[Curve, Sustained]]:
        """What layouts sustain under it, aggregated ones first, then by the share that prefills."""
        pairs = [(curve, found) for curve in self.curves for found in curve.sustained if found.sla == sla]
        return sorted(pairs, key=lambda pair: order(pair[0]))


def order(curve: Curve) -> tuple[bool, float, str, str]:
    """Aggregated first, then by the share of GPUs that prefill."""
    layout = Layout.read(curve.layout)
    share = layout.prefill.gpus / layout.gpus if layout.prefill else 0.0
    return layout.mode == "pd", share, curve.layout, curve.kind


def load(path: Path) -> Source:
    """A file of curves, or what `splitrail plan --json` printed. Raises WorkloadError with the file."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise WorkloadError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise WorkloadError(f"{path}: not JSON: {error}") from error
    if isinstance(raw, dict) and "options" in raw:
        return _answer(path, raw)
    curves = load_curves(path)
    return Source(path.name, curves.about, curves.curves)


def _answer(path: Path, raw: dict[str, object]) -> Source:
    """The planner's: its curves, and of every option the goodput."""
    try:
        question = raw["question"]
        if not isinstance(question, dict):
            raise WorkloadError("question: not a mapping")
        workload = Workload.model_validate(question["workload"])
        sla = read_sla([f"{key}={value}" for key, value in question["sla"].items()])
        source = f"splitrail plan, {question['system']}"
        drawn = {one["layout"]: one for one in _list(raw, "curves")}
        curves = []
        for option in _list(raw, "options"):
            rates = [rate for rate in option["rates"] if rate]
            found = {
                "sla": sla,
                "qps": option["goodput_qps"] or None,
                "low": min(rates, default=None),
                "high": max(rates, default=None),
                "binding": option["binding"],
                "why": "simulated",
                "runs": len(rates),
            }
            made = {"kind": "predicted", "workload": workload, "source": source, "points": []}
            known = drawn.get(option["layout"], {**made, "layout": option["layout"]})
            curves.append(Curve.model_validate({**known, "sustained": [found]}))
    except (KeyError, TypeError, ValidationError, WorkloadError) as error:
        raise WorkloadError(f"{path}: not what `splitrail plan --json` prints: {explain(error)}") from error
    return Source(path.name, source, tuple(curves))


def _list(raw: dict[str, object], key: str) -> list[dict[str, Any]]:
    value = raw[key]
    if not isinstance(value, list):
        raise WorkloadError(f"{key}: not a list")
    return value


def by_workload(sources: Sequence[Source]) -> list[Asked]:
    """Curves by what was asked: lengths, hits and arrivals alike."""
    found: dict[str, Asked] = {}
    for source in sources:
        for curve in source.curves:
            key = curve.workload.model_dump_json()
            found.setdefault(key, Asked(curve.workload)).curves.append(curve)
    return list(found.values())


def merged(sources: Sequence[Source]) -> Curves:
    """All curves as one document."""
    curves = tuple(curve for source in sources for curve in source.curves)
    return Curves(about="; ".join(source.about for source in sources if source.about), curves=curves)
