"""Workloads by name: a file of ``inventories/workloads``, with the SLA that goes with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import yaml
from pydantic import ValidationError

from splitrail.bench import traces
from splitrail.bench.traffic import Planned, Traffic, draw, paced
from splitrail.workload import Lengths, Strict, Workload, WorkloadError, explain

# Seeds begin at other requests of a trace, so far apart.
STRIDE = 997
# In a trace's own pace, of its gaps; the file's own.
Draw = Callable[[float, float, int, float], Traffic]


class WorkloadFile(Strict):
    """``inventories/workloads/NAME.yml``: drawn (``workload``) or replayed (``trace``, a file beside it)."""

    about: str = ""
    workload: Workload | None = None
    trace: str | None = None
    sla: tuple[str, ...] = ()


@dataclass(frozen=True)
class Load:
    """A workload under a name. ``draw(qps, seconds, seed, even_from_s)`` makes traffic of it."""

    name: str
    workload: Workload
    draw: Draw
    sla: tuple[str, ...] = ()


def by_name(name: str, folder: Path) -> Load:
    """A workload of the folder, or of a file. Raises WorkloadError, naming those that there are."""
    path = Path(name) if name.endswith((".yml", ".yaml")) else folder / f"{name}.yml"
    if not path.is_file():
        known = sorted(one.stem for one in folder.glob("*.yml"))
        near = get_close_matches(name, known, n=1)
        raise WorkloadError(
            f"no workload {name}"
            + (f", do you mean {near[0]}?" if near else f"; there are {', '.join(known)}")
        )
    try:
        found = WorkloadFile.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (ValidationError, yaml.YAMLError) as error:
        raise WorkloadError(f"{path}: {explain(error)}") from error
    if (found.workload is None) == (found.trace is None):
        raise WorkloadError(f"{path}: give either workload, to be drawn, or trace, a file to be replayed")
    if found.trace is not None:
        return of_trace(path.parent / found.trace, path.stem, found.sla)
    if found.workload is None:
        raise AssertionError("checked above")
    return drawn(found.workload, path.stem, found.sla)


def drawn(workload: Workload, name: str = "", sla: tuple[str, ...] = ()) -> Load:
    """Lengths and gaps by the workload's distributions."""

    def make(qps: float, seconds: float, seed: int, even_from_s: float) -> Traffic:
        return draw(workload, qps, seconds, seed, even_from_s=even_from_s)

    return Load(name or workload.label, workload, make, sla)


def of_trace(path: Path, name: str = "", sla: tuple[str, ...] = ()) -> Load:
    """Requests of a trace in their order, gaps scaled to the rate; what follows the last is the first again.

    Raises WorkloadError.
    """
    _, requests, block = traces.load(path)

    def make(qps: float, seconds: float, seed: int, even_from_s: float) -> Traffic:  # noqa: ARG001  # as recorded
        begin = seed * STRIDE % len(requests)
        order = [*requests[begin:], *requests[:begin]]
        wanted = max(2, round(qps * seconds))
        return paced(_continued(order, wanted), block, qps)

    return Load(name or path.stem, describe(requests, block), make, sla)


def _continued(order: list[Planned], wanted: int) -> list[Planned]:
    """So many requests, each after the one before it by the gap that it has in the trace."""
    gaps = np.diff([one.at_s for one in order])
    # From the last of a trace to its first, and from one round to the next, there is no gap on record.
    usual = float(np.mean(gaps[gaps >= 0])) if (gaps >= 0).any() else 1.0
    found, at = [], 0.0
    for index in range(wanted):
        one = order[index % len(order)]
        found.append(Planned(at, one.isl, one.osl, one.blocks))
        step = gaps[index % len(order)] if index % len(order) < len(gaps) else -1.0
        at += float(step) if step >= 0 else usual
    return found


def describe(requests: list[Planned], block: int) -> Workload:
    """The workload that recorded requests are: means, coefficients of variation, gaps, and prefix hits.

    ``hit_rate`` counts tokens of blocks that came before, as a prefix cache that never forgets would.
    """
    isl = np.array([one.isl for one in requests], dtype=float)
    osl = np.array([one.osl for one in requests], dtype=float)
    gaps = np.diff(np.sort([one.at_s for one in requests]))
    arrival_cv = float(np.std(gaps) / np.mean(gaps)) if len(gaps) > 1 and np.mean(gaps) > 0 else 1.0
    return Workload(
        isl=_lengths(isl),
        osl=_lengths(osl),
        hit_rate=round(_hits(requests, block), 4),
        arrival_cv=round(min(5.0, arrival_cv), 3),
    )


def _lengths(values: np.ndarray) -> Lengths:
    cv = float(np.std(values) / np.mean(values))
    return Lengths(mean=round(float(np.mean(values)), 1), cv=round(min(3.0, cv), 3), max=int(values.max()))


def _hits(requests: list[Planned], block: int) -> float:
    seen: set[int] = set()
    hit = total = 0
    for request in requests:
        known = 0
        while known < len(request.blocks) and request.blocks[known] in seen:
            known += 1
        seen.update(request.blocks)
        hit += min(known * block, request.isl - 1)
        total += request.isl
    return hit / total
