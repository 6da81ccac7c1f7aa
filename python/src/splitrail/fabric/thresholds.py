"""What a rail must reach: rows of data, chosen by what the rail is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from splitrail.fabric.mesh_data import MeshError, RailPort

ROWS = Path(__file__).parent / "thresholds.yml"


class Figure(BaseModel):
    """A threshold and where it comes from."""

    model_config = ConfigDict(extra="forbid")

    value: float = Field(gt=0)
    basis: str = Field(min_length=1)


class Row(BaseModel):
    """The thresholds of a kind of rail; the keys are explained at the head of thresholds.yml."""

    model_config = ConfigDict(extra="forbid")

    name: str
    soft: bool = False
    memory: str | None = None
    rate_gbps: tuple[float, float] | None = None
    share_of_rate: Figure | None = None
    weak_share_of_rate: Figure | None = None
    share_of_median: Figure
    latency_us: Figure | None = None
    latency_of_median: Figure | None = None
    loss_ppm: Figure

    def fits(self, port: RailPort) -> bool:
        low, high = self.rate_gbps or (0, float("inf"))
        rated = self.rate_gbps is None or low <= port.rate_gbps <= high
        return self.soft == port.soft and rated and self.memory in (None, port.memory)

    def figures(self) -> list[tuple[str, Figure]]:
        """The thresholds that this row has, by name."""
        return [
            (name, value)
            for name in type(self).model_fields
            if isinstance(value := getattr(self, name), Figure)
        ]


def load(own: Sequence[Any] = ()) -> list[Row]:
    """An inventory's own rows, then those of this release. Raises MeshError naming what is wrong."""
    try:
        raw = [*own, *yaml.safe_load(ROWS.read_text(encoding="utf-8"))]
        return TypeAdapter(list[Row]).validate_python(raw)
    except ValidationError as error:
        faults = "; ".join(f"row {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise MeshError(f"rdma_fabric_thresholds: {faults}") from error


def row_of(rows: Sequence[Row], port: RailPort) -> Row:
    """The first row that fits. Raises MeshError when none does."""
    for row in rows:
        if row.fits(port):
            return row
    raise MeshError(f"no row of thresholds fits {port.name} ({port.rate_gbps:g} Gb/s, {port.memory} memory)")
