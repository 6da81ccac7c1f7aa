"""Declared against actual, NIC by NIC: a table of what differs, from the verdict of the role roce_nic."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from pydantic import JsonValue
from rich.console import Console
from rich.table import Table
from rich.text import Text

from splitrail.run.execute import COULD_NOT_RUN, OK
from splitrail.verdict import Check, Verdict

_RAIL = re.compile(r"\brail\d+\b")
NODE = "node"  # what is said of a node as a whole, such as its PCI bridges


@dataclass
class Row:
    """A NIC, or a node as a whole: what was looked at, by setting."""

    host: str
    nic: str
    settings: dict[str, Check] = field(default_factory=dict)

    @property
    def differs(self) -> dict[str, Check]:
        return {name: check for name, check in self.settings.items() if not check.ok}


def rows(verdict: Verdict) -> list[Row]:
    """A row a NIC, sorted by host and rail, each node's own last."""
    found: dict[tuple[str, str], Row] = {}
    for check in verdict.checks:
        rail = _RAIL.search(check.subject)
        nic = rail[0] if rail else NODE
        found.setdefault((check.host, nic), Row(check.host, nic)).settings[setting(check)] = check
    return sorted(found.values(), key=lambda row: (row.host, row.nic == NODE, _number(row.nic)))


def judge(code: int, found: list[Row]) -> int:
    """The exit code: that of the run, but a run that compared nothing proves nothing."""
    return COULD_NOT_RUN if code == OK and not found else code


def setting(check: Check) -> str:
    """What a check is about, as a heading: a firmware key, a sysctl, or the part after the verb."""
    kind = check.name.partition(".")[2]
    if kind == "firmware":
        return check.subject.rpartition(" ")[2]
    if kind == "sysctl":
        return check.subject.rpartition(".")[2]
    return kind if _RAIL.search(check.subject) else f"{kind} ({check.subject})"


def document(found: list[Row]) -> list[dict[str, Any]]:
    """The rows for `--json`."""
    return [
        {
            "host": row.host,
            "nic": row.nic,
            "as_declared": len(row.settings) - len(row.differs),
            "differs": [
                {"setting": name, "declared": check.required, "actual": check.measured, "hint": check.hint}
                for name, check in sorted(row.differs.items())
            ],
        }
        for row in found
    ]


def show(found: list[Row], console: Console) -> None:
    """A table of the settings that differ anywhere, then the cures, then what is as declared on every NIC."""
    every = sorted({name for row in found for name in row.settings})
    columns = [name for name in every if any(name in row.differs for row in found)]
    if columns:
        console.print(_table([row for row in found if row.differs], columns))
        _cures(found, console)
    good = [name for name in every if name not in columns]
    nics = sum(row.nic != NODE for row in found)
    total = sum(len(row.settings) for row in found)
    wrong = sum(len(row.differs) for row in found)
    if good:
        console.print(Text(f"as declared wherever it was looked at: {', '.join(good)}"), soft_wrap=True)
    summary = f"{nics} NICs: {wrong} of {total} settings differ" if wrong else f"{nics} NICs: no drift"
    console.print(Text(f"{summary} ({total} settings compared)", style="bold"), soft_wrap=True)


def _table(found: list[Row], columns: list[str]) -> Table:
    table = Table(title="actual, where it is not as declared", title_justify="left")
    for heading in ("host", "NIC", *columns):
        table.add_column(heading, overflow="fold")
    for row in found:
        table.add_row(Text(row.host), Text(row.nic), *(_cell(row.settings.get(name)) for name in columns))
    return table


def _cell(check: Check | None) -> Text:
    if check is None:
        return Text("-")
    if check.ok:
        return Text("ok", style="green")
    return Text(f"{_plain(check.measured)}\ndeclared {_plain(check.required)}", style="red")


def _cures(found: list[Row], console: Console) -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for row in found:
        for check in row.differs.values():
            place = f"{row.host} {row.nic}"
            if place not in places[check.hint]:
                places[check.hint].append(place)
    for hint, where in sorted(places.items()):
        console.print(Text(f"{', '.join(where)}: {hint}"), soft_wrap=True)


def _plain(value: JsonValue) -> str:
    if isinstance(value, list):
        return ",".join(map(_plain, value)) or "none"
    return str(value)


def _number(nic: str) -> int:
    return int(nic.removeprefix("rail")) if nic != NODE else 0
