"""A run record as an OpenTelemetry trace (the run, its plays, each task on each host), sent by OTLP and HTTP.

The packages are an extra (``pip install 'splitrail[otel]'``): nothing else needs them.
"""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Status, StatusCode, set_span_in_context

from splitrail.run.history import History

_BATCH = 512  # spans a request, the SDK's own default
_TIMEOUT_S = 10


class ExportError(Exception):
    """The trace did not arrive; the message names the endpoint and the cure."""


def spans(history: History) -> tuple[ReadableSpan, ...]:
    """The trace of a run. Times are the record's: when each task on a host ended, and how long it took.
    Values of variables are in no record, so in no span."""
    memory = InMemorySpanExporter()
    provider = TracerProvider(resource=Resource.create({"service.name": "splitrail"}))
    provider.add_span_processor(SimpleSpanProcessor(memory))
    tracer = provider.get_tracer("splitrail")
    run = history.run
    events = list(_events(history.folder / "events.jsonl"))
    ended = run.ended or max((event["end"] for event in events), default=run.started)
    root = tracer.start_span(
        run.verb,
        start_time=_ns(run.started),
        attributes={
            "splitrail.run": history.name,
            "splitrail.inventory": run.inventory,
            "splitrail.check_mode": run.check,
            "splitrail.outcome": history.outcome,
            "splitrail.revision": run.revision or "",
        },
    )
    if not run.ok:
        root.set_status(Status(StatusCode.ERROR, run.error or "; ".join(one.message for one in run.failures)))
    under_root = set_span_in_context(root)
    for play in dict.fromkeys(event["play"] for event in events):
        mine = [event for event in events if event["play"] == play]
        started = min(event["end"].timestamp() - event["seconds"] for event in mine)
        span = tracer.start_span(f"play {play}", context=under_root, start_time=int(started * 1e9))
        under_play = set_span_in_context(span)
        for event in mine:
            end = _ns(event["end"])
            task = tracer.start_span(
                event["task"],
                context=under_play,
                start_time=end - int(event["seconds"] * 1e9),
                attributes={
                    "splitrail.host": event["host"],
                    "splitrail.role": event["role"] or "",
                    "splitrail.status": event["status"],
                    "splitrail.changed": event["changed"],
                },
            )
            if event["status"] in ("failed", "unreachable"):
                task.set_status(Status(StatusCode.ERROR, event.get("message", "")))
            task.end(end)
        span.end(max(_ns(event["end"]) for event in mine))
    root.end(_ns(ended))
    return memory.get_finished_spans()


def export(history: History, endpoint: str) -> int:
    """Send a run's trace to a collector (``http://HOST:4318/v1/traces``); returns how many spans arrived.

    Raises ExportError when it does not take them.
    """
    made = spans(history)
    exporter = OTLPSpanExporter(endpoint=endpoint, timeout=_TIMEOUT_S)
    try:
        for first in range(0, len(made), _BATCH):
            if exporter.export(made[first : first + _BATCH]) is not SpanExportResult.SUCCESS:
                raise ExportError(
                    f"{endpoint}: took {first} of {len(made)} spans: see that an OTLP collector listens "
                    "there over HTTP (port 4318 and the path /v1/traces are usual)"
                )
    finally:
        exporter.shutdown()  # type: ignore[no-untyped-call]  # the SDK's own gap
    return len(made)


def _ns(moment: datetime) -> int:
    return int(moment.timestamp() * 1e9)


def _events(file: Path) -> list[dict[str, Any]]:
    """The lines of events.jsonl that are whole, with their time as ``end``."""
    found = []
    for text in file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else ():
        try:
            event = json.loads(text)
            found.append({**event, "end": datetime.fromisoformat(event["ts"])})
        except (ValueError, KeyError, TypeError):
            continue  # the end of a run that was killed
    return found
