"""The load generator of the serving image, ``vllm bench serve``, on a cluster's head, through a playbook."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import nan
from pathlib import Path
from typing import Any

from splitrail.bench.measured import Measured
from splitrail.bench.traffic import FIRST_TOKEN, LAST_TOKEN, Planned, Traffic, warm_prefixes
from splitrail.project import Project
from splitrail.run.playbook import Interrupts, Options, Step, run_step
from splitrail.run.record import load
from splitrail.verdict import write_json
from splitrail.workload import WorkloadError

PLAYBOOK = "playbooks/bench.yml"
DRAIN_S = 300.0
# Shards are processes that each take their time to start: traffic is drawn longer by this, so that there is a
# stretch in which all of them send.
SKEW_S = 20.0
# In which prefixes that requests share are served once, so that caches hold them.
LEAD_S = 10.0


@dataclass(frozen=True)
class VllmServe:
    """Offers traffic from the head. ``url`` None: where clients ask, as the inventory says.

    Its detailed output has the clock of each sending; compared with the plan that is its lag.
    """

    project: Project
    options: Options
    processes: int = 1
    url: str | None = None
    key: str | None = field(default=None, repr=False)
    drain_s: float = DRAIN_S

    @property
    def extra_s(self) -> float:
        """How much longer than needed traffic must be."""
        return SKEW_S if self.processes > 1 else 0.0

    def __call__(self, traffic: Traffic) -> Measured:
        """Send the traffic and wait for its end. Raises WorkloadError where it could not be sent."""
        with tempfile.TemporaryDirectory(prefix="splitrail-bench-") as name:
            folder = Path(name)
            job, result = folder / "job.json", folder / "result.json"
            write_json(job, self.job(traffic), mode=0o600)
            said = {
                "bench_job": str(job),
                "bench_result": str(result),
                "bench_secret": self.key is not None,
            }
            options = Options(
                inventory=self.options.inventory,
                extra_vars=(*self.options.extra_vars, json.dumps(said)),
            )
            interrupts = Interrupts(lambda: None)
            with interrupts.caught():
                outcome = run_step(
                    self.project,
                    Step((self.project.playbook(PLAYBOOK),)),
                    options,
                    folder / "record",
                    on_event=lambda _event: None,
                    interrupts=interrupts,
                )
            if interrupts.count:
                raise KeyboardInterrupt
            if not result.exists():
                raise WorkloadError(_why(folder / "record", outcome.errors))
            found = json.loads(result.read_text(encoding="utf-8"))
        if "error" in found:
            raise WorkloadError(f"vllm bench serve could not run: {found['error']}")
        return combined(without_warm_up(found["shards"], self.warm(traffic)))

    def job(self, traffic: Traffic) -> dict[str, Any]:
        """What ``inside.py`` reads."""
        warm = self.warm(traffic)
        # Within the first process: one of its own would start once more, which takes longer than all of them.
        later = LEAD_S if warm else 0.0
        shards = [traffic.shard(index, self.processes).requests for index in range(self.processes)]
        lines = [[_line(one, later) for one in shard] for shard in shards]
        lines[0] = [*warm, *lines[0]]
        return {
            "url": self.url,
            "key": self.key,
            "block": traffic.block,
            "salt": traffic.salt,
            "vocabulary": [FIRST_TOKEN, LAST_TOKEN],
            "drain_s": self.drain_s,
            "shards": [shard for shard in lines if shard],
        }

    def warm(self, traffic: Traffic) -> list[list[Any]]:
        """A request for each prefix that others share, one after the other."""
        known = list(warm_prefixes(traffic))
        return [
            [index * LEAD_S / 2 / len(known), one.isl, 1, list(one.blocks)] for index, one in enumerate(known)
        ]


def without_warm_up(
    shards: Sequence[Mapping[str, Any]], warm: Sequence[object]
) -> list[dict[str, list[Any]]]:
    """The shards without the requests that only filled the caches, and as if these had not come first."""
    if not warm:
        return [dict(shard) for shard in shards]
    found = []
    for number, shard in enumerate(shards):
        own = {key: list(values)[len(warm) if number == 0 else 0 :] for key, values in shard.items()}
        found.append({**own, "planned": [at - LEAD_S for at in own["planned"]]})
    return found


def combined(shards: Sequence[Mapping[str, Any]]) -> Measured:
    """One run of shards on the clock that they share: second 0 is when the last of them began.

    A shard began so that its promptest request was sent at its time; how much later the others were is its
    lag. Raises WorkloadError where shards began too far apart for a stretch in which all send.
    """
    begun = [
        min(start - at for start, at in zip(shard["start"], shard["planned"], strict=True))
        for shard in shards
    ]
    if max(begun) - min(begun) > SKEW_S:
        raise WorkloadError(f"the load generator's processes began {max(begun) - min(begun):.0f} s apart")
    rows, errors = [], []
    for shard, own in zip(shards, begun, strict=True):
        columns = (shard[key] for key in ("planned", "start", "ttft", "latency", "tokens", "errors"))
        for at, start, ttft, latency, count, error in zip(*columns, strict=True):
            planned, sent = at + own - max(begun), start - max(begun)
            answered = not error and ttft > 0
            ends = (sent + ttft, sent + latency, float(count)) if answered else (nan, nan, 0.0)
            rows.append((planned, sent, *ends))
            errors += [] if answered else [error or "no token came"]
    return Measured.of(rows, errors)


def _line(request: Planned, later: float) -> list[Any]:
    return [round(request.at_s + later, 6), request.isl, request.osl, list(request.blocks)]


def _why(record: Path, errors: Sequence[str]) -> str:
    """What kept the playbook from running."""
    failures = load(record).failures if (record / "run.json").exists() else []
    told = [f"{failure.host}: {failure.message}" for failure in failures] or list(errors)
    return "\n".join(told) or f"{PLAYBOOK} left no result"
