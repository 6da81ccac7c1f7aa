"""Topologies by workloads: deploy each, search each cell, go on after an interruption where it ended."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError

from splitrail.bench.measured import Measured
from splitrail.bench.search import Budget, Measure, Search, Tried
from splitrail.bench.workloads import Load
from splitrail.verdict import write_json
from splitrail.workload import (
    Curve,
    Curves,
    Layout,
    Strict,
    Sustained,
    Window,
    WorkloadError,
    explain,
    read_sla,
)


class Served(Strict):
    """A topology of the matrix; ``mode`` chooses the pools, ``extra_vars`` go to its deploy."""

    topology: str
    mode: Literal["pd", "aggregated"] | None = None
    extra_vars: dict[str, Any] = Field(default_factory=dict)


class Spend(Strict):
    """How far each search may go; see ``search.Budget``."""

    requests: int = Field(default=300, ge=20)
    repeats: int = Field(default=4, ge=1)
    tolerance: float = Field(default=0.03, gt=0, lt=1)
    seconds: float = Field(default=3600, gt=0)
    run_seconds: float = Field(default=900, gt=0)
    seed: int = 0

    def budget(self) -> Budget:
        """As the search takes it."""
        return Budget(**self.model_dump())


class Plan(Strict):
    """A file for ``splitrail bench matrix``."""

    about: str = ""
    topologies: tuple[Served, ...] = Field(min_length=1)
    workloads: tuple[str, ...] = Field(min_length=1)
    sla: tuple[str, ...] = ()
    near: float | None = Field(default=None, gt=0)
    budget: Spend = Spend()
    unequal_gpus: bool = False


def load_plan(path: Path) -> Plan:
    """Read the file; a topology may be its bare name. Raises WorkloadError with the key and the cure."""
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
        if isinstance(raw, dict) and isinstance(raw.get("topologies"), list):
            raw["topologies"] = [
                {"topology": one} if isinstance(one, str) else one for one in raw["topologies"]
            ]
        return Plan.model_validate(raw)
    except OSError as error:
        raise WorkloadError(f"{path}: {error.strerror}") from error
    except (ValidationError, yaml.YAMLError) as error:
        raise WorkloadError(f"{path}: {explain(error)}") from error


@dataclass(frozen=True)
class Cell:
    """One search: what is served, and what is asked of it."""

    served: Served
    layout: Layout
    load: Load

    @property
    def name(self) -> str:
        """For people and for the state."""
        return f"{self.layout.label} ({self.served.topology}) under {self.load.name}"


def cells(plan: Plan, layouts: list[Layout], loads: list[Load]) -> list[Cell]:
    """All of them, topology by topology: a deploy takes longer than a change of workload.

    Raises WorkloadError where layouts differ in GPUs, unless the plan wants that.
    """
    sizes = {layout.gpus for layout in layouts}
    if len(sizes) > 1 and not plan.unequal_gpus:
        told = ", ".join(f"{layout.label} on {layout.gpus}" for layout in layouts)
        raise WorkloadError(
            f"goodput is compared at equal GPUs, and here is {told}; or set unequal_gpus: true"
        )
    return [
        Cell(served, layout, load)
        for served, layout in zip(plan.topologies, layouts, strict=True)
        for load in loads
    ]


@dataclass
class State:
    """What was measured so far: a line a run in ``runs.jsonl``, and the curves that follow from it.

    A search asks for the same runs in the same order when it begins again, so those on record are all that a
    resumed one needs. A line that a crash cut off is not read.
    """

    folder: Path
    known: dict[str, Measured] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path, plan: Plan) -> State:
        """Make or reopen it. Raises WorkloadError where the folder holds another plan's runs."""
        folder.mkdir(parents=True, exist_ok=True)
        wanted, path = plan.model_dump(mode="json"), folder / "plan.json"
        if path.exists() and json.loads(path.read_text(encoding="utf-8")) != wanted:
            raise WorkloadError(f"{folder} holds the runs of another plan: name another --out, or remove it")
        write_json(path, wanted)
        return cls(folder, dict(_recorded(folder / "runs.jsonl")))

    def remembered(self, cell: Cell, measure: Measure) -> Measure:
        """``measure``, which asks the system only for runs that are not on record."""

        def ask(qps: float, window: Window, seconds: float, seed: int) -> Measured:
            asked = [cell.name, qps, window.model_dump(), seconds, seed]
            key = sha256(json.dumps(asked).encode()).hexdigest()[:16]
            if key not in self.known:
                began = time.time()
                run = measure(qps, window, seconds, seed)
                line: dict[str, Any] = {
                    "key": key,
                    "cell": cell.name,
                    "qps": qps,
                    "window": window.model_dump(),
                    "seed": seed,
                    "at": began,
                    "rows": run.rows,
                    "errors": list(dict.fromkeys(run.errors))[:5],
                }
                with (self.folder / "runs.jsonl").open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps(line) + "\n")
                    stream.flush()
                    os.fsync(stream.fileno())
                # As it will be read again, to the last digit: what is asked next depends on it.
                self.known[key] = Measured.from_rows(line["rows"], line["errors"])
            return self.known[key]

        return ask


def _recorded(path: Path) -> Iterator[tuple[str, Measured]]:
    if not path.exists():
        return
    whole = path.read_bytes()
    if whole and not whole.endswith(b"\n"):
        # Or the next line would be joined to half a one.
        path.write_bytes(whole[: whole.rfind(b"\n") + 1])
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            one = json.loads(line)
            yield one["key"], Measured.from_rows(one["rows"], one["errors"])
        except (ValueError, KeyError):
            continue


def curve(cell: Cell, tried: list[Tried], found: Sustained | None, source: str) -> Curve:
    """Points by rising rate. Of the runs that only looked for the bracket the points are shown too."""
    last = {one.qps: one.point for one in tried}
    return Curve(
        kind="measured",
        layout=cell.layout.label,
        workload=cell.load.workload,
        source=source,
        points=tuple(last[qps] for qps in sorted(last)),
        sustained=(found,) if found else (),
    )


@dataclass
class Matrix:
    """A run of the matrix. ``deploy`` serves a topology; ``measure`` makes what measures a cell.

    ``on_line`` is told what happens, in words. ``curves.json`` is written anew after every rate.
    """

    plan: Plan
    cells: list[Cell]
    state: State
    deploy: Callable[[Served], None]
    measure: Callable[[Cell], Measure]
    on_line: Callable[[str], None]
    source: str = ""
    curves: dict[str, Curve] = field(default_factory=dict)

    def run(self) -> Curves:
        """All cells. Raises WorkloadError where a deploy fails or nothing answers."""
        served: Served | None = None
        took: list[float] = []
        for number, cell in enumerate(self.cells):
            self.on_line(f"{number + 1} of {len(self.cells)}: {cell.name}; {self.remaining(took, number)}")
            began, before = time.monotonic(), len(self.state.known)
            deployed = False

            def measure(qps: float, window: Window, seconds: float, seed: int, cell: Cell = cell) -> Measured:
                nonlocal served, deployed
                # Only when something is left to measure.
                if served != cell.served:
                    self.deploy(cell.served)
                    served, deployed = cell.served, True
                return self.measure(cell)(qps, window, seconds, seed)

            search = Search(
                self.state.remembered(cell, measure),
                read_sla(list(self.plan.sla or cell.load.sla)),
                self.plan.budget.budget(),
                self._told(cell),
            )
            found = search.run(self.plan.near)
            self._save(cell, search.tried, found)
            self.on_line(f"  {said(found)}")
            if len(self.state.known) > before:
                took.append(time.monotonic() - began)
        return self.document

    @property
    def document(self) -> Curves:
        """What is known so far."""
        return Curves(about=self.plan.about, curves=tuple(self.curves.values()))

    def remaining(self, took: list[float], number: int) -> str:
        """How long the rest may take, from the cells that were measured in this run."""
        if not took:
            return "how long it takes is known after the first"
        left = len(self.cells) - number
        return f"about {left * sum(took) / len(took) / 60:.0f} min left, by {len(took)} so far"

    def _told(self, cell: Cell) -> Callable[[Tried, float], None]:
        tried: list[Tried] = []

        def tell(one: Tried, spent: float) -> None:
            tried.append(one)
            self.on_line(f"  {one.said}; {spent:.0f} s of {self.plan.budget.seconds:g}")
            self._save(cell, tried, None)

        return tell

    def _save(self, cell: Cell, tried: list[Tried], found: Sustained | None) -> None:
        self.curves[cell.name] = curve(cell, tried, found, self.source)
        document = self.document.model_dump(mode="json", exclude_defaults=True)
        write_json(self.state.folder / "curves.json", document)


def said(found: Sustained) -> str:
    """The answer in one line."""
    if found.qps is None:
        return f"no sustainable rate: {found.why}"
    ends = f", ends with {found.binding}" if found.binding else ""
    low = f"{found.low:.4g}" if found.low else "?"
    high = f"{found.high:.4g}" if found.high else "?"
    return f"{found.shown} requests/s under {found.sla} (95 %: {low} to {high}){ends}; {found.why}"
