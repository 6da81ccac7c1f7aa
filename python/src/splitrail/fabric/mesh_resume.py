"""Find what a broken-off mesh measured already, so that a resumed run measures only the rest."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from splitrail.fabric.mesh_checks import find_faults
from splitrail.fabric.mesh_data import Journal, MeshError, Node, Reading, Result, Settings
from splitrail.fabric.schedule import Pair
from splitrail.fabric.thresholds import Row

MAX_AGE_H = 24.0  # as long as a proof holds by default


def known_readings(
    run_dir: Path, settings: Settings, nodes: Sequence[Node], rows: Sequence[Row]
) -> tuple[list[Reading], str, str]:
    """Readings that still hold, the record that they are of, and why a run that resumes one has none."""
    former = former_journal(run_dir)
    if former is None:
        return [], "", ""
    age_h = (datetime.now(UTC).timestamp() - former.stat().st_mtime) / 3600
    name = former.parents[1].name
    if age_h > MAX_AGE_H:
        return [], "", f"{name} is {age_h:.0f} h old"
    try:
        found = Journal(former.parents[1]).recall(settings, nodes)
    except MeshError as error:
        return [], "", str(error)
    return healthy(found, settings, nodes, rows), name, ""


def healthy(
    readings: Iterable[Reading], settings: Settings, nodes: Sequence[Node], rows: Sequence[Row]
) -> list[Reading]:
    """The readings of pairs that were measured whole and without a fault: what failed is measured again."""
    kept = list(readings)
    fit = [node for node in nodes if not any(port.faults for port in node.rails)]
    at_fault = {reading.pair for reading in kept if reading.error or reading.skipped}
    at_fault |= {frozenset(pair) for pair in doubtful(kept, settings, nodes, rows)}
    names = {node.name for node in fit}
    return [reading for reading in kept if reading.pair not in at_fault and reading.pair <= names]


def doubtful(
    readings: Iterable[Reading], settings: Settings, nodes: Sequence[Node], rows: Sequence[Row]
) -> list[Pair]:
    """The pairs that are under their thresholds, the worst first."""
    so_far = Result(
        cluster="", at="", seconds=0, settings=settings, nodes=list(nodes), readings=list(readings)
    )
    faults = sorted(find_faults(so_far, rows)[0], key=lambda fault: -fault.badness)
    found: dict[frozenset[str], Pair] = {}
    for fault in faults:
        found.setdefault(fault.reading.pair, (fault.reading.source, fault.reading.target))
    return list(found.values())


def former_journal(run_dir: Path) -> Path | None:
    """The journal of the run that this one resumes, or of the one that that resumed."""
    folder, seen = run_dir, {run_dir.name}
    while True:
        try:
            former = json.loads((folder / "run.json").read_text(encoding="utf-8")).get("resumes")
        except (OSError, ValueError):
            return None
        if not former or former in seen:
            return None
        seen.add(former)
        folder = run_dir.parent / former
        if Journal(folder).path.is_file():
            return Journal(folder).path
