"""Recorded traffic: public trace formats and access logs, as requests with their times and lengths."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from itertools import count
from math import ceil
from pathlib import Path
from typing import Any

from splitrail.bench.traffic import Planned
from splitrail.workload import WorkloadError

# Mooncake names blocks of so many tokens.
MOONCAKE_BLOCK = 512
# Names of blocks that nobody shares begin here.
_OWN = 1 << 40

Row = Mapping[str, Any]


def mooncake(rows: Iterable[Row]) -> Iterator[Planned]:
    """Mooncake: ``timestamp`` in ms, ``input_length``, ``output_length``, ``hash_ids`` of blocks of 512
    tokens (kvcache-ai/Mooncake, FAST25-release/traces).
    """
    for row in rows:
        isl = int(row["input_length"])
        blocks = tuple(int(name) for name in row["hash_ids"])[: ceil(isl / MOONCAKE_BLOCK)]
        if len(blocks) * MOONCAKE_BLOCK < isl:
            raise ValueError(f"{len(blocks)} hash_ids of {MOONCAKE_BLOCK} tokens are no prompt of {isl}")
        yield Planned(float(row["timestamp"]) / 1000, isl, int(row["output_length"]), blocks)


def azure(rows: Iterable[Row]) -> Iterator[Planned]:
    """Azure LLM inference: ``TIMESTAMP``, ``ContextTokens``, ``GeneratedTokens`` (AzurePublicDataset)."""
    for number, row in enumerate(rows):
        at = _seconds(row["TIMESTAMP"])
        yield Planned(at, int(row["ContextTokens"]), int(row["GeneratedTokens"]), (_OWN + number,))


def burstgpt(rows: Iterable[Row]) -> Iterator[Planned]:
    """BurstGPT: ``Timestamp`` in s, ``Request tokens``, ``Response tokens`` (HPMLL/BurstGPT); a response of 0
    tokens failed and is left out.
    """
    for number, row in enumerate(rows):
        if int(row["Response tokens"]) > 0:
            isl, osl = int(row["Request tokens"]), int(row["Response tokens"])
            yield Planned(float(row["Timestamp"]), isl, osl, (_OWN + number,))


def access_log(rows: Iterable[Row]) -> Iterator[Planned]:
    """An access log, JSON lines: ``time`` (ISO 8601 or seconds), ``prompt_tokens``, ``completion_tokens``."""
    for number, row in enumerate(rows):
        isl, osl = int(row["prompt_tokens"]), int(row["completion_tokens"])
        if osl > 0:
            yield Planned(_seconds(row["time"]), isl, osl, (_OWN + number,))


# By the keys of their first row.
FORMATS: dict[str, tuple[frozenset[str], Callable[[Iterable[Row]], Iterator[Planned]]]] = {
    "mooncake": (frozenset({"timestamp", "input_length", "output_length", "hash_ids"}), mooncake),
    "azure": (frozenset({"TIMESTAMP", "ContextTokens", "GeneratedTokens"}), azure),
    "burstgpt": (frozenset({"Timestamp", "Request tokens", "Response tokens"}), burstgpt),
    "access log": (frozenset({"time", "prompt_tokens", "completion_tokens"}), access_log),
}


def load(path: Path, limit: int | None = None) -> tuple[str, list[Planned], int]:
    """A trace's format, its requests by time (the first ``limit``), and the tokens of a block.

    Raises WorkloadError with the file, the line and the cure.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            head = stream.read(1)
            stream.seek(0)
            rows = _json_lines(stream) if head == "{" else csv.DictReader(stream)
            name, requests = _read(rows, limit)
    except OSError as error:
        raise WorkloadError(f"{path}: {error.strerror}") from error
    except WorkloadError as error:
        raise WorkloadError(f"{path}: {error}") from error
    requests.sort(key=lambda one: one.at_s)
    if name == "mooncake":
        return name, requests, MOONCAKE_BLOCK
    return name, requests, max(one.isl for one in requests)


def _read(rows: Iterable[Row], limit: int | None) -> tuple[str, list[Planned]]:
    number = 0

    def counted() -> Iterator[Row]:
        nonlocal number
        for number, row in zip(count(1), rows, strict=False):  # noqa: B007  # told when a row cannot be read
            yield row

    source = counted()
    first = next(source, None)
    if first is None:
        raise WorkloadError("holds no request")
    name = next((name for name, (keys, _) in FORMATS.items() if keys <= set(first)), None)
    if name is None:
        known = "; ".join(f"{one}: {', '.join(sorted(keys))}" for one, (keys, _) in FORMATS.items())
        raise WorkloadError(f"has {', '.join(map(str, first))}, which is no known trace. Known are {known}")
    requests: list[Planned] = []
    try:
        for request in FORMATS[name][1](_chained(first, source)):
            if request.isl > 0 and request.osl > 0:
                requests.append(request)
            if limit is not None and len(requests) >= limit:
                break
    except (KeyError, ValueError, TypeError) as error:
        raise WorkloadError(f"request {number} cannot be read ({type(error).__name__}: {error})") from error
    if not requests:
        raise WorkloadError("holds no request that was answered")
    return name, requests


def _chained(first: Row, rest: Iterator[Row]) -> Iterator[Row]:
    yield first
    yield from rest


def _json_lines(lines: Iterable[str]) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise WorkloadError(f"line {number} is not JSON: {error}") from error
            if not isinstance(row, dict):
                raise WorkloadError(f"line {number} is not a JSON object")
            yield row


def _seconds(value: Any) -> float:
    """Seconds, of a number or of a date; what is under a microsecond is cut (Azure writes seven digits)."""
    try:
        return float(value)
    except ValueError:
        text = str(value).strip().replace(" ", "T", 1)
        whole, dot, fraction = text.partition(".")
        digits = fraction[: len(fraction) - len(fraction.lstrip("0123456789"))]
        zone = fraction[len(digits) :]
        return datetime.fromisoformat(
            f"{whole}{dot}{digits[:6].ljust(6, '0') if dot else ''}{zone}"
        ).timestamp()
