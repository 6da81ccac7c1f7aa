"""Search over layouts for one workload and SLA, and say what follows: split or not, at which ratio."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from multiprocessing import get_context
from statistics import fmean, stdev

from splitrail.plan.cost import Cost, Prices, cost
from splitrail.plan.goodput import Goodput, goodput
from splitrail.plan.simulate import SimulationError
from splitrail.plan.system import Model, fleet
from splitrail.workload import Engines, Layout, Sla, Workload, WorkloadError

# Under this the better layout is not worth the second pool, its network and its failure modes.
WORTH = 0.10
# Layouts this near to the best are searched with more seeds.
NEAR = 0.15
SEEDS = 3


@dataclass(frozen=True)
class Question:
    """What is asked: a workload and an SLA on so many GPUs of a calibrated system.

    ``decode_model`` is the decode pool's system where its GPUs are of another kind. ``tps`` are the
    tensor-parallel sizes to try; prefill and decode engines may differ in it where decode's is a multiple of
    prefill's, which is what NIXL's connector can split.
    """

    model: Model
    workload: Workload
    sla: Sla
    gpus: int
    tps: tuple[int, ...]
    decode_model: Model | None = None
    splits: int = 9
    mixed_tp: bool = False


@dataclass(frozen=True)
class Option:
    """One layout and what it sustains: by seed, and the first seed's run at that rate."""

    layout: Layout
    found: Goodput
    rates: tuple[float, ...]

    @property
    def qps(self) -> float:
        """Mean over seeds."""
        return fmean(self.rates)

    @property
    def spread(self) -> float:
        """Standard deviation over seeds."""
        return stdev(self.rates) if len(self.rates) > 1 else 0.0


@dataclass
class Answer:
    """Every option, best first, and the conclusion.

    ``margin`` is the best split's goodput over aggregated's less one (None where one of them sustains
    nothing); ``confidence`` the share of seeds, all paired, in which the recommended option is not behind the
    other mode's best. ``marginal`` maps the best layout of each mode, and what one more engine of it would
    be, to the requests a second that this adds.
    """

    options: list[Option]
    recommended: Option | None
    margin: float | None
    confidence: float
    words: str
    marginal: dict[str, dict[str, float]] = field(default_factory=dict)
    costs: dict[str, Cost] = field(default_factory=dict)

    def best(self, mode: str) -> Option | None:
        """The best option of a mode that sustains anything."""
        return next((o for o in self.options if o.layout.mode == mode and o.qps > 0), None)


Progress = Callable[[int, int], None]


def layouts(question: Question) -> list[Layout]:
    """Aggregated and splits for each tensor-parallel size, thinned to ``splits`` of each.

    Raises WorkloadError where no size fits the GPUs.
    """
    found: list[Layout] = []
    for tp in question.tps:
        engines = question.gpus // tp
        if engines < 1 or question.gpus % tp:
            continue
        if question.decode_model is None:
            found.append(Layout(aggregated=Engines(replicas=engines, tp=tp)))
        found += [_split(p, tp, engines - p, tp) for p in thin(range(1, engines), question.splits)]
        for other in question.tps if question.mixed_tp else ():
            if other <= tp or other % tp or question.gpus % other:
                continue
            # Whole decode engines of `other` GPUs, the rest prefill engines of `tp`.
            for d in thin(range(1, question.gpus // other + 1), question.splits):
                left = question.gpus - d * other
                if left > 0:
                    found.append(_split(left // tp, tp, d, other))
    if not found:
        sizes = ", ".join(map(str, question.tps))
        raise WorkloadError(f"{question.gpus} GPUs are no multiple of a tensor-parallel size ({sizes})")
    return found


def _split(p: int, p_tp: int, d: int, d_tp: int) -> Layout:
    return Layout(prefill=Engines(replicas=p, tp=p_tp), decode=Engines(replicas=d, tp=d_tp))


def thin(choices: range, most: int) -> list[int]:
    """So many of them, evenly spread, the ends included."""
    if len(choices) <= most:
        return list(choices)
    gap = (len(choices) - 1) / (most - 1)
    return sorted({choices[round(gap * index)] for index in range(most)})


@dataclass(frozen=True)
class _Job:
    question: Question
    layout: Layout
    seed: int
    near: float | None


def _work(job: _Job) -> Goodput | None:
    question = job.question
    try:
        engines = fleet(job.layout, question.model, question.decode_model)
        return goodput(engines, question.workload, question.sla, job.seed, job.near)
    except (WorkloadError, SimulationError):
        return None  # the weights or the longest request do not fit at this size


class Searcher:
    """Runs searches on all cores; a context manager."""

    def __init__(self, workers: int | None = None, progress: Progress | None = None) -> None:
        self._workers = workers or os.cpu_count() or 1
        # Not forked: the progress bar's thread runs meanwhile.
        context = get_context("forkserver")
        self._pool = ProcessPoolExecutor(self._workers, context) if self._workers > 1 else None
        self._progress = progress
        self._done = self._total = 0

    def __enter__(self) -> Searcher:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def run(self, jobs: Sequence[_Job]) -> list[Goodput | None]:
        """Results in the order of the jobs."""
        self._total += len(jobs)
        found: Iterable[Goodput | None]
        found = self._pool.map(_work, jobs) if self._pool is not None else map(_work, jobs)
        results = []
        for result in found:
            results.append(result)
            self._done += 1
            if self._progress:
                self._progress(self._done, self._total)
        return results

    def options(self, question: Question, chosen: Sequence[Layout]) -> list[Option]:
        """One seed for each layout, best first; those that cannot hold the model are left out."""
        # The largest first, so that no core is left with it alone at the end.
        jobs = [_Job(question, layout, 0, None) for layout in chosen]
        found = self.run(jobs)
        options = [
            Option(layout, result, (result.qps,))
            for layout, result in zip(chosen, found, strict=True)
            if result is not None
        ]
        return sorted(options, key=lambda option: -option.qps)

    def refine(self, question: Question, options: list[Option]) -> list[Option]:
        """Search the splits beside the best until none of them is better: goodput has one peak over the
        ratio.
        """
        known = {option.layout.label for option in options}
        while True:
            best = next((o for o in options if o.layout.mode == "pd" and o.qps > 0), None)
            if best is None:
                return options
            fresh = [layout for layout in _between(best.layout, options) if layout.label not in known]
            if not fresh:
                return options
            known |= {layout.label for layout in fresh}
            options = sorted([*options, *self.options(question, fresh)], key=lambda option: -option.qps)

    def repeat(self, question: Question, options: list[Option], seeds: int) -> list[Option]:
        """Search those near the best, and the best of each mode, with more seeds, the same ones for all."""
        if not options or seeds < 2:  # noqa: PLR2004  # a repeat is a second seed
            return options
        top = options[0].qps
        firsts = {next((o.layout.label for o in options if o.layout.mode == mode), "") for mode in _MODES}
        chosen = [
            o for o in options if o.qps > 0 and (o.qps >= top * (1 - NEAR) or o.layout.label in firsts)
        ][:5]
        jobs = [_Job(question, o.layout, seed, o.qps) for o in chosen for seed in range(1, seeds)]
        found = self.run(jobs)
        rates: dict[str, list[float]] = {o.layout.label: [o.qps] for o in chosen}
        for job, result in zip(jobs, found, strict=True):
            rates[job.layout.label].append(result.qps if result else 0.0)
        again = [
            Option(o.layout, o.found, tuple(rates[o.layout.label])) if o.layout.label in rates else o
            for o in options
        ]
        return sorted(again, key=lambda option: -option.qps)


_MODES = ("aggregated", "pd")


def _between(best: Layout, options: Sequence[Option]) -> list[Layout]:
    """Midway between the best split and its searched neighbours of the same sizes."""
    if best.prefill is None or best.decode is None:
        return []
    sizes = (best.prefill.tp, best.decode.tp)
    if sizes[0] != sizes[1]:
        return []
    total = best.prefill.replicas + best.decode.replicas
    tried = sorted(
        o.layout.prefill.replicas
        for o in options
        if o.layout.prefill and o.layout.decode and (o.layout.prefill.tp, o.layout.decode.tp) == sizes
    )
    middles = [
        (left + right) // 2
        for left, right in pairwise(tried)
        if right - left > 1 and best.prefill.replicas in {left, right}
    ]
    return [_split(p, sizes[0], total - p, sizes[1]) for p in middles]


def answer(
    question: Question,
    searcher: Searcher,
    *,
    seeds: int = SEEDS,
    prices: Prices | None = None,
    demand: float | None = None,
) -> Answer:
    """Search, compare, and say which. Raises WorkloadError where nothing can be asked."""
    chosen = layouts(question)
    options = searcher.options(question, chosen)
    if not options:
        raise WorkloadError(
            f"{question.model.system.name}: the weights and this workload's longest request fit at no "
            f"tensor-parallel size asked for ({', '.join(map(str, question.tps))}); raise it or shorten the "
            "workload"
        )
    options = searcher.repeat(question, searcher.refine(question, options), seeds)
    found = _conclude(options)
    if found.recommended is not None:
        both = [best for best in (found.best("aggregated"), found.best("pd")) if best is not None]
        found.marginal = marginal(question, searcher, both)
    if prices is not None:
        found.costs = costs(question, options, prices, demand)
    return found


def _conclude(options: list[Option]) -> Answer:
    empty = Answer(options, None, None, 0.0, "")
    split, whole = empty.best("pd"), empty.best("aggregated")
    if split is None and whole is None:
        limits = {option.found.binding for option in options}
        empty.words = (
            f"No layout holds the SLA at any rate: {', '.join(sorted(limits))} breaks with a lone request."
        )
        return empty
    if split is None or whole is None:
        only = split or whole
        if only is None:
            raise AssertionError("one of them sustains something")
        if whole is not None:
            words = "Don't disaggregate: no split that was searched holds the SLA at any rate."
        elif any(option.layout.mode == "aggregated" for option in options):
            words = f"Disaggregate ({only.layout.label}): aggregated engines do not hold the SLA at any rate."
        else:
            words = f"{only.layout.label} is the best split; aggregated engines were not searched."
        return Answer(options, only, None, 1.0, words)
    margin = split.qps / whole.qps - 1
    pairs = list(zip(split.rates, whole.rates, strict=False))
    if margin > WORTH:
        confidence = sum(s > w for s, w in pairs) / len(pairs)
        words = f"Disaggregate: {split.layout.label} sustains {margin:.0%} more than {whole.layout.label}."
        return Answer(options, split, margin, confidence, words)
    confidence = sum(s <= w * (1 + WORTH) for s, w in pairs) / len(pairs)
    if margin > 0:
        words = (
            f"Don't disaggregate: {split.layout.label} sustains only {margin:.0%} more than "
            f"{whole.layout.label}, and under {WORTH:.0%} the split is not worth its pools and its network."
        )
    else:
        words = (
            f"Don't disaggregate: {whole.layout.label} sustains {whole.qps / split.qps - 1:.0%} more than "
            f"the best split, {split.layout.label}."
        )
    return Answer(options, whole, margin, confidence, words)


def marginal(
    question: Question, searcher: Searcher, options: Sequence[Option]
) -> dict[str, dict[str, float]]:
    """Requests a second that one more engine of each role adds to each of these options."""
    grown = [
        (
            option,
            role,
            option.layout.model_copy(update={role: Engines(replicas=pool.replicas + 1, tp=pool.tp)}),
        )
        for option in options
        for role, pool in option.layout.pools.items()
    ]
    results = searcher.run([_Job(question, layout, 0, option.found.qps) for option, _, layout in grown])
    gains: dict[str, dict[str, float]] = {}
    for (option, role, _), result in zip(grown, results, strict=True):
        gain = result.qps - option.found.qps if result else 0.0
        gains.setdefault(option.layout.label, {})[role] = gain
    return gains


def costs(
    question: Question, options: Sequence[Option], prices: Prices, demand: float | None
) -> dict[str, Cost]:
    """Cost of every option that sustains anything, at the demanded rate or else at what the best sustains."""
    wanted = demand or max(option.qps for option in options)
    found = {}
    for option in options:
        if option.qps <= 0:
            continue
        engines = fleet(option.layout, question.model, question.decode_model)
        names = dict.fromkeys(option.layout.pools, question.model.system.gpu.name)
        if question.decode_model is not None and "decode" in names:
            names["decode"] = question.decode_model.system.gpu.name
        found[option.layout.label] = cost(
            option.layout, engines, question.workload, option.qps, prices=prices, gpus=names, demand=wanted
        )
    return found


def answer_map(
    question: Question, searcher: Searcher, variants: Sequence[tuple[str, str, Workload, Sla]]
) -> list[dict[str, object]]:
    """The conclusion for each variant of the question, with few splits and one seed: how the answer changes.

    A variant is its row, its column, a workload and an SLA.
    """
    asked = [
        (row, column, Question(**{**vars(question), "workload": workload, "sla": sla, "splits": 5}))
        for row, column, workload, sla in variants
    ]
    jobs, owners = [], []
    for place, (_, _, one) in enumerate(asked):
        for layout in layouts(one):
            jobs.append(_Job(one, layout, 0, None))
            owners.append(place)
    results = searcher.run(jobs)
    cells: list[dict[str, object]] = []
    for place, (row, column, _) in enumerate(asked):
        options = sorted(
            (
                Option(job.layout, result, (result.qps,))
                for job, owner, result in zip(jobs, owners, results, strict=True)
                if owner == place and result is not None
            ),
            key=lambda option: -option.qps,
        )
        said = _conclude(options)
        cells.append(
            {
                "row": row,
                "column": column,
                "layout": said.recommended.layout.label if said.recommended else None,
                "qps": said.recommended.qps if said.recommended else 0.0,
                "margin": said.margin,
                "binding": said.recommended.found.binding if said.recommended else options[0].found.binding,
            }
        )
    return cells
