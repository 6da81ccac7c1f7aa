"""Predict, measure and compare aggregated engines and every P:D split of a host's GPUs, in some 12 minutes.

    python gpu_bench.py predict predicted.json                  where the suite is; before measuring
    python gpu_bench.py measure predicted.json measured.json    on the GPU host; says how long it takes
    python gpu_bench.py compare predicted.json measured.json    Markdown
    python gpu_bench.py replay measured.json replayed.json      the measured rates, by today's planner

``measure`` starts a vLLM server a GPU (gpu_pd.py's, by gpu_pd.json: a folder `model`, dummy weights), or
``--urls`` names those that run (``kv_both``, served as ``--model NAME``). ``predict --layouts`` says which
layouts, all of the same number of engines; by default those of four. It wants aiohttp, httpx, numpy, pydantic
and PyYAML, which come with vLLM, and this repository's python/src on PYTHONPATH. The client hands prompts
from engine to engine, as a proxy would, so that all layouts are measured on the same engines. What NIXL moved
at each point is printed, from the engines' metrics.

``predict --hits 0.96`` adds, for every split, the same workloads with that share of each prompt in the
cache of the engine that prefills, and none in the cache of the one that decodes. One prefill engine then
feeds a decode engine as several would without hits: what 3P1D asks of its decode engine, on two GPUs.

``predict`` simulates the very arrivals that ``measure`` will offer, at shares of each layout's predicted
goodput, over the same window. Both write curves as docs/plan.md says; `splitrail report` draws them
together. ``measure`` also leaves each request's times beside them, in ``measured.rows.jsonl``, and says how
much of the TTFT passed inside the engines: the rest is HTTP, text and the hand-off.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import httpx
import numpy as np
from plan_accuracy import crossing

from splitrail.bench.engines import Body, Endpoint, OnToken, Route, Split
from splitrail.bench.http import Http
from splitrail.bench.measured import Measured, point
from splitrail.bench.steady import gate
from splitrail.bench.traffic import Traffic, draw, warm_prefixes
from splitrail.plan.goodput import goodput
from splitrail.plan.simulate import simulate, traffic
from splitrail.plan.system import fleet, with_cross_layer_blocks
from splitrail.workload import (
    Curve,
    Curves,
    Layout,
    Lengths,
    Point,
    Sustained,
    Window,
    Workload,
    load_curves,
    read_sla,
)

HERE = Path(__file__).parent
LAYOUTS = ("4agg", "1p3d", "2p2d", "3p1d")
# One that prompts decide and one that answers do; requests last 3 to 5 s: a short window holds several.
WORKLOADS = {
    "8000/256": ["ttft_p90=1500", "tpot_p90=25"],
    "3000/300": ["ttft_p90=600", "tpot_p90=20"],
}
SHARES = (0.75, 1.05)
WARM_S, AFTER_S, SEED = 5.0, 4.0, 0
# Simulations of one window, and how far arrivals are moved in each: some steps of an engine.
RUNS, MOVED_S = 20, 0.02
KEYS = ("ttft_p50", "ttft_p90", "tpot_p50", "tpot_p90", "e2e_p50", "e2e_p90")
# Ends of requests after the last was sent, and what a new process or a warm-up takes.
DRAIN_S, START_S, WARM_UP_S = 5.0, 130.0, 8.0


class FreshDecode(Split):
    """Prefill-decode whose decode engines find nothing in their own cache: each prompt is moved whole."""

    async def ask(self, client: httpx.AsyncClient, body: Body, on_token: OnToken) -> int:
        """See Route. The salt keeps vLLM from finding the prompt of an earlier request."""
        place = await self.prefill.least_busy().prefill(client, body)
        fresh = {**body, "kv_transfer_params": place, "cache_salt": uuid4().hex}
        return await self.decode.ask(client, fresh, on_token)


def workload(name: str, hits: float = 0.0) -> Workload:
    """Of ``8000/256``."""
    isl, osl = name.split("/")
    return Workload(isl=Lengths(mean=int(isl)), osl=Lengths(mean=int(osl)), hit_rate=hits)


def say(text: str) -> None:
    """A line at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def save(path: Path, about: str, curves: Sequence[Curve]) -> None:
    """Write curves."""
    document = Curves(about=about, curves=tuple(curves)).model_dump(mode="json", exclude_defaults=True)
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def predict(
    out: Path,
    model_name: str,
    kv: str,
    shares: Sequence[float],
    *,
    seconds: float,
    labels: Sequence[str],
    hits: Sequence[float] = (),
) -> None:
    """Simulate every layout and workload at shares of its goodput; with ``hits`` only splits."""
    # The planner's command line wants packages that a GPU host need not have.
    from splitrail.plan.cli import find_model  # noqa: PLC0415

    model = find_model(model_name)
    if kv == "cross-layer":
        model = with_cross_layer_blocks(model)
    curves = []
    for (name, sla), share in product(WORKLOADS.items(), (0.0, *hits)):
        asked = workload(name, share)
        for label in labels:
            if share and Layout.read(label).prefill is None:
                continue
            engines = fleet(Layout.read(label), model)
            found = goodput(engines, asked, read_sla(sla))
            rates = [round(found.qps * part, 3) for part in shares] if found.qps else [0.5]
            say(f"{label} {asked.label}: goodput {found.qps:.3g}/s, ends with {found.binding}; rates {rates}")
            points = tuple(simulated(engines, asked, qps, seconds) for qps in rates)
            sustained = Sustained(
                sla=read_sla(sla), qps=found.qps or None, binding=found.binding, why="simulated"
            )
            curves.append(
                Curve(
                    kind="predicted",
                    layout=label,
                    workload=asked,
                    window=Window(seconds=WARM_S + seconds, drop_s=WARM_S),
                    source=f"gpu_bench.py predict, {model.system.name}, {kv} KV layout",
                    points=points,
                    sustained=(sustained,),
                )
            )
    save(out, f"predicted by {model_name}, {kv} KV layout, before measuring", curves)


def replay(measured: Curves, out: Path, model_name: str, kv: str) -> None:
    """Simulate what was measured with today's planner. What was predicted beforehand stays another file."""
    from splitrail.plan.cli import find_model  # noqa: PLC0415  # as above

    model = find_model(model_name)
    if kv == "cross-layer":
        model = with_cross_layer_blocks(model)
    curves = [
        curve.model_copy(
            update={
                "kind": "predicted",
                "source": f"gpu_bench.py replay, {model.system.name}",
                "points": tuple(
                    simulated(fleet(Layout.read(curve.layout), model), curve.workload, one.qps, span)
                    for one in curve.points
                ),
            }
        )
        for curve in measured.curves
        for span in [(curve.window or Window(seconds=30)).seconds - WARM_S]
    ]
    save(out, f"simulated by {model_name} after measuring", curves)


def simulated(engines: Any, asked: Workload, qps: float, seconds: float) -> Point:
    """The planner's answer to the very requests that will be sent.

    Each a little earlier or later, RUNS times over: which engine a request finds less busy, and whether it
    then waits for another prompt, hangs on milliseconds that nobody can foretell.
    """
    sent = Window(seconds=WARM_S + seconds + AFTER_S, drop_s=WARM_S)
    runs = []
    for seed in range(RUNS):
        moved = np.random.default_rng(seed)
        requests = traffic(asked, qps, sent, SEED, even=True)
        for request in requests:
            request.arrival = max(0.0, request.arrival + float(moved.normal(0.0, MOVED_S)))
        requests.sort(key=lambda request: request.arrival)
        run = simulate(engines, requests, seed=seed)
        rows = [(one.arrival, one.arrival, one.first, one.last, one.osl) for one in run.requests]
        runs.append(Measured.of(rows))
    return point(runs, qps, Window(seconds=WARM_S + seconds, drop_s=WARM_S))


def route(label: str, urls: Sequence[str]) -> Route:
    """The layout on these engines: the first ones prefill."""
    layout = Layout.read(label)
    if layout.prefill is None:
        return Endpoint(urls)
    return FreshDecode(urls[: layout.prefill.replicas], urls[layout.prefill.replicas :])


def measure(predicted: Curves, out: Path, urls: Sequence[str], model: str, about: str) -> list[Curve]:
    """Offer every predicted rate to the engines; writes after each layout and workload."""
    import gpu_pd  # noqa: PLC0415  # wants aiohttp, which `predict` does without

    engines: list[Any] = [SimpleNamespace(url=url) for url in urls]
    done: list[Curve] = []
    seen: set[str] = set()
    for curve in sorted(predicted.curves, key=lambda one: layouts(predicted).index(one.layout)):
        generator = Http(route(curve.layout, urls), model)
        if curve.layout not in seen:
            # The first transfer of two engines makes their connection, the first prompt compiles kernels.
            seen.add(curve.layout)
            generator(draw(workload("2000/8"), 8.0, 4.0, 1))
        window = curve.window or Window(seconds=30, drop_s=WARM_S)
        points = []
        for planned in curve.points:
            offered = draw(
                curve.workload, planned.qps, window.seconds + AFTER_S, SEED, even_from_s=window.drop_s
            )
            if curve.workload.hit_rate:
                # Not while measuring: what fills the cache is no part of the point.
                generator(fill(offered))
            before, at = gpu_pd.total(engines), gpu_pd.total(engines, gpu_pd.INSIDE)
            run = generator(offered)
            moved = gpu_pd.moved(before, gpu_pd.total(engines))
            # Both pools of a request; all requests of the point, of which the client counts the window's.
            within = gpu_pd.total(engines, gpu_pd.INSIDE)
            inside = 1000 * sum(within[key] - at[key] for key in at) / max(1, len(run.rows))
            about_point = {"layout": curve.layout, "workload": curve.workload.label, "qps": planned.qps}
            about_point["ttft_inside_ms"] = round(inside, 1)
            with out.with_suffix(".rows.jsonl").open("a", encoding="utf-8") as sink:
                sink.write(json.dumps({**about_point, "rows": run.rows}) + "\n")
            broken = [finding for finding in gate([run], window) if not finding.ok]
            found = point([run], planned.qps, window).model_copy(
                update={
                    "steady": not broken,
                    "unsteady": tuple(map(str, broken)),
                    "descriptors": moved.get("descriptors"),
                }
            )
            points.append(found)
            told = ", ".join(
                f"{key} {found.value(key):.1f}" for key in KEYS[:4] if found.value(key) is not None
            )
            why = "; ".join(found.unsteady) or "steady"
            say(f"{curve.layout} {curve.workload.label} at {planned.qps:g}/s: {told}; {why}")
            waited = np.nanmean(run.first - run.planned)
            say(
                f"  mean TTFT of all its requests: {inside:.0f} ms inside the engines, "
                f"{1000 * waited:.0f} ms at the client"
            )
            if moved:
                say(f"  KV: {json.dumps(moved)}")
            if run.errors:
                say(f"  first error: {run.errors[0][:300]}")
        done.append(
            curve.model_copy(
                update={
                    "kind": "measured",
                    "points": tuple(points),
                    "sustained": (),
                    "source": f"gpu_bench.py measure, {about}",
                }
            )
        )
        save(out, about, done)
    return done


def fill(traffic: Traffic) -> Traffic:
    """A prompt of each prefix that requests of this traffic share, one a second."""
    prompts = tuple(replace(one, at_s=float(at)) for at, one in enumerate(warm_prefixes(traffic)))
    return Traffic(prompts, traffic.block, traffic.salt)


def layouts(curves: Curves) -> list[str]:
    """The layouts of curves, in their order."""
    return list(dict.fromkeys(curve.layout for curve in curves.curves))


def expected_s(predicted: Curves, start: bool) -> float:
    """How long ``measure`` will take."""
    points = sum(
        (curve.window.seconds if curve.window else 30) + AFTER_S + DRAIN_S
        for curve in predicted.curves
        for _ in curve.points
    )
    return points + WARM_UP_S * len(layouts(predicted)) + (START_S if start else 0)


def compare(predicted: Curves, measured: Curves) -> None:
    """Every figure with its error, mean errors, and goodput by the same interpolation of both."""
    both = {(one.layout, one.workload): one for one in predicted.curves}
    errors: dict[str, list[float]] = {}
    say("| layout | workload | requests/s | figure | measured ms | predicted ms | error | steady |")
    say("|---" * 8 + "|")
    for curve in measured.curves:
        known = {one.qps: one for one in both[curve.layout, curve.workload].points}
        for seen in curve.points:
            for key in KEYS:
                real, told = seen.value(key), known[seen.qps].value(key)
                if real is None or told is None:
                    continue
                error = told / real - 1
                use = key if seen.steady else f"{key}, not steady"
                errors.setdefault(use, []).append(abs(error))
                steady = "yes" if seen.steady else "no"
                place = f"{curve.layout} | {curve.workload.label} | {seen.qps:g}"
                say(f"| {place} | {key} | {real:.1f} | {told:.1f} | {error:+.1%} | {steady} |")
    say("\n| figure | points | mean error | 95 % | largest |\n|---|---|---|---|---|")
    for key, values in sorted(errors.items()):
        low, high = interval(values)
        mean = sum(values) / len(values)
        say(f"| {key} | {len(values)} | {mean:.1%} | {low:.1%} to {high:.1%} | {max(values):.1%} |")
    goodputs(predicted, measured)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean's 95 % interval by resampling the points 10,000 times (Efron's percentile bootstrap)."""
    drawn = np.random.default_rng(0).choice(values, (10_000, len(values))).mean(axis=1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)


def goodputs(predicted: Curves, measured: Curves) -> None:
    """The rate at which each SLA ends, by measured and by predicted points, and the winners."""
    asked = dict.fromkeys(curve.workload for curve in measured.curves)
    for name, sla in [(one.label, WORKLOADS[one.label.partition(",")[0]]) for one in asked]:
        limits = {limit.key: limit.ms for limit in read_sla(sla).limits}
        say(f"\n{name}, {', '.join(sla)}: requests/s, `<` and `>` are bounds\n")
        say("| layout | measured | predicted |\n|---|---|---|")
        best: dict[str, tuple[float, str]] = {}
        for label in layouts(predicted):
            cells = []
            for side, document in (("measured", measured), ("predicted", predicted)):
                points = [
                    (one.qps, one.figures)
                    for curve in document.curves
                    if (curve.layout, curve.workload.label) == (label, name)
                    for one in curve.points
                    if set(limits) <= set(one.figures)
                ]
                if not points:
                    cells.append("none")
                    continue
                rate, sign = crossing(points, limits)
                cells.append(f"{sign if sign != '=' else ''}{rate:.3g}")
                best[side] = max(best.get(side, (0.0, "")), (rate, label))
            say(f"| {label} | {' | '.join(cells)} |")
        say("\n" + ", ".join(f"best {side}: {label}" for side, (_, label) in best.items()))


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    one = verbs.add_parser("predict")
    one.add_argument("out", type=Path)
    one.add_argument("--model", default="h200-qwen3-14b", help="calibrated model, by name or file")
    one.add_argument("--kv", choices=["cross-layer", "vllm"], default="cross-layer", help="the KV layout")
    one.add_argument("--shares", type=float, nargs="+", default=SHARES, help="of the predicted goodput")
    one.add_argument("--seconds", type=float, default=25.0, help="that count at each rate")
    one.add_argument("--hits", type=float, nargs="+", default=[], help="also with such shares of hits")
    one.add_argument("--layouts", nargs="+", default=LAYOUTS, help="4agg, 2p2d, ...")
    two = verbs.add_parser("measure")
    two.add_argument("predicted", type=Path)
    two.add_argument("out", type=Path)
    two.add_argument("--urls", nargs="+", help="servers that run already")
    two.add_argument("--model", default="model", help="the name or folder that is served")
    two.add_argument("--engines", default="suite", help="the KV layout of gpu_pd.json: suite or default")
    three = verbs.add_parser("compare")
    three.add_argument("predicted", type=Path)
    three.add_argument("measured", type=Path)
    four = verbs.add_parser("replay")
    four.add_argument("measured", type=Path)
    four.add_argument("out", type=Path)
    four.add_argument("--model", default="h200-qwen3-14b", help="calibrated model, by name or file")
    four.add_argument("--kv", choices=["cross-layer", "vllm"], default="cross-layer", help="the KV layout")
    given = parser.parse_args()
    if given.verb == "predict":
        predict(
            given.out,
            given.model,
            given.kv,
            given.shares,
            seconds=given.seconds,
            labels=given.layouts,
            hits=given.hits,
        )
        say(f"measuring this takes about {expected_s(load_curves(given.out), True) / 60:.0f} min of the GPUs")
    elif given.verb == "replay":
        replay(load_curves(given.measured), given.out, given.model, given.kv)
    elif given.verb == "compare":
        compare(load_curves(given.predicted), load_curves(given.measured))
    else:
        known = load_curves(given.predicted)
        say(f"about {expected_s(known, not given.urls) / 60:.0f} min")
        began = time.monotonic()
        with ExitStack() as stack:
            gpus = Layout.read(layouts(known)[0]).gpus
            hits = any(curve.workload.hit_rate for curve in known.curves)
            logs = given.out.resolve().parent
            urls = given.urls or started(stack, given.model, given.engines, gpus, logs, hits=hits)
            about = f"{len(urls)} engines of {given.model} ({given.engines} KV layout)"
            measure(known, given.out, urls, given.model, about)
        say(f"written: {given.out}, after {(time.monotonic() - began) / 60:.1f} min")
    return 0


def started(
    stack: ExitStack, model: str, layout: str, gpus: int, logs: Path, *, hits: bool = False
) -> list[str]:
    """So many vLLM servers that end with the stack; their logs lie beside the output."""
    import gpu_pd  # noqa: PLC0415  # as above

    plan = json.loads((HERE / "gpu_pd.json").read_text(encoding="utf-8"))
    own = next(one["engine"] for one in plan["layouts"] if one["name"] == layout)
    common = plan["engine"] | ({"enable_prefix_caching": True} if hits else {})
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    engines = []
    for number in range(gpus):
        engines.append(gpu_pd.start(number, model, own, common, logs))
        stack.callback(engines[-1].process.wait)
        stack.callback(engines[-1].process.terminate)
    began = time.monotonic()
    gpu_pd.await_ready(engines, logs)
    say(f"{len(engines)} engines ready after {time.monotonic() - began:.0f} s")
    return [engine.url for engine in engines]


if __name__ == "__main__":
    sys.exit(main())
