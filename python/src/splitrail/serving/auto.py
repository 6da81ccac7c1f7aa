"""When to move an engine between prefill and decode: a pure decision from what windows showed.

One engine at a time, from the pool that has room to the pool that breaks the SLA. What keeps it calm: several
windows in a row must agree, a cool-down follows each move, only windows after the last move count, taking a
move back soon needs a clearer case than a move forward, and a ratio that had to be left soon is not tried
again for a day.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError

from splitrail.metrics.histogram import merged
from splitrail.metrics.window import Window
from splitrail.workload import Metric, Sla, Strict, WorkloadError, explain, read_sla

# What each metric is made of: a first token waits for prefill, all others for decode. E2E is both.
_POOL: dict[Metric, str] = {"ttft": "prefill", "tpot": "decode"}


@dataclass(frozen=True)
class Ratio:
    """Engines of each role."""

    prefill: int
    decode: int

    def moved(self, to: Literal["prefill", "decode"]) -> Ratio:
        """One engine given to a pool by the other."""
        step = 1 if to == "prefill" else -1
        return Ratio(self.prefill + step, self.decode - step)

    def __str__(self) -> str:
        return f"{self.prefill}P{self.decode}D"


class Bounds(Strict):
    """Fewest and most engines of a pool."""

    min: int = Field(default=1, ge=1)
    max: int | None = Field(default=None, ge=1)


class Policy(Strict):
    """A file of `splitrail rebalance --auto --policy FILE`; docs/monitoring.md explains every key.

    ``sla`` holds limits of TTFT and TPOT such as ``ttft_p90=1000`` in ms. Times are in seconds.
    """

    sla: tuple[str, ...] = Field(min_length=1)
    prefill: Bounds = Bounds()
    decode: Bounds = Bounds()
    windows: int = Field(default=4, ge=2)
    margin: float = Field(default=0.05, ge=0)
    room: float = Field(default=0.7, gt=0, lt=1)
    kv_full: float = Field(default=0.9, gt=0, le=1)
    requests: int = Field(default=20, ge=1)
    cool_down_s: float = Field(default=300, ge=0)
    take_back_s: float = Field(default=3600, ge=0)
    take_back: float = Field(default=1.25, ge=1)
    barred_s: float = Field(default=86400, ge=0)
    stale_s: float = Field(default=120, gt=0)

    @property
    def limits(self) -> Sla:
        """The SLA, read. Raises WorkloadError."""
        return read_sla(list(self.sla))


def load_policy(path: Path) -> Policy:
    """Read a policy. Raises WorkloadError naming the file, the key and the cure."""
    try:
        policy = Policy.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
        limits = policy.limits.limits
    except OSError as error:
        raise WorkloadError(f"{path}: {error.strerror}") from error
    except (ValidationError, WorkloadError, yaml.YAMLError) as error:
        raise WorkloadError(f"{path}: {explain(error)}") from error
    if wrong := [str(limit) for limit in limits if limit.metric not in _POOL]:
        raise WorkloadError(
            f"{path}: sla {', '.join(wrong)}: says nothing of a single pool; write limits of ttft and tpot"
        )
    return policy


@dataclass(frozen=True)
class Seen:
    """What one window showed: how hard each pool is pressed, 1 being the SLA's limit.

    ``prefill`` is TTFT over its limit, ``decode`` the worse of TPOT over its limit and KV use over its own.
    None where nothing was measured. ``prefilling`` is the mean number of requests that wait for or are in
    prefill. ``problem`` says why the window cannot be used.
    """

    at: float
    requests: float
    prefill: float | None
    decode: float | None
    prefilling: float = 0.0
    problem: str = ""


def seen(window: Window, policy: Policy) -> Seen:
    """A window as the policy sees it."""
    pressed: dict[str, list[float]] = {"prefill": [], "decode": []}
    for limit in policy.limits.limits:
        percentile = int(limit.statistic.removeprefix("p")) if limit.statistic != "mean" else 50
        value = (window.ttft_ms if limit.metric == "ttft" else window.tpot_ms)(percentile)
        if value is not None:
            pressed[_POOL[limit.metric]].append(value / limit.ms)
    decoding = [engine for engine in window.engines if engine.pool in ("decode", "elastic")]
    if pressed["decode"] and decoding:
        pressed["decode"].append(max(engine.kv_use for engine in decoding) / policy.kv_full)
    # Little's law: requests a second times the mean time that each is there.
    there = merged(e.ttft for e in window.engines if e.pool in ("prefill", "elastic")).sum()
    prefilling = (there.low + min(there.high, 2 * there.low or there.high)) / 2
    answered = [engine.finished for engine in window.engines if engine.pool != "prefill"]
    return Seen(
        at=window.at,
        requests=sum(answered),
        prefill=max(pressed["prefill"], default=None),
        decode=max(pressed["decode"], default=None),
        prefilling=prefilling / window.seconds if window.seconds else 0.0,
        problem="; ".join(f"{where}: {why}" for where, why in window.unread.items()),
    )


@dataclass(frozen=True)
class Move:
    """A change that was made: when, which pool got an engine, and the ratio since."""

    at: float
    to: Literal["prefill", "decode"]
    ratio: Ratio


@dataclass(frozen=True)
class Decision:
    """What to do: another ratio, or none; and why, in words."""

    ratio: Ratio | None
    why: str
    move: Move | None = None


def decide(
    history: Sequence[Seen], ratio: Ratio, policy: Policy, now: float, moves: Sequence[Move] = ()
) -> Decision:
    """Whether one engine should change its pool.

    history: what windows showed, oldest first. now: the present on their clock, in seconds. moves: what was
    changed so far, oldest first. Depends on nothing else.
    """
    last = moves[-1] if moves else None
    recent = [one for one in history if last is None or one.at > last.at][-policy.windows :]
    newest = history[-1].at if history else None
    if why := _too_early(policy, now, last, newest) or _too_little(recent, policy):
        return Decision(None, f"hold: {why}")
    prefill, decode = _pressure(recent, "prefill"), _pressure(recent, "decode")
    if prefill is None or decode is None:
        return Decision(None, "hold: TTFT or TPOT was not measured")
    busy = _busy(max(one.prefilling for one in recent), ratio.prefill)
    return _weigh(prefill, decode, ratio, policy, busy=busy, now=now, moves=moves)


def _busy(there: float, engines: int) -> float:
    """Share of their time for which prefill engines work, from the mean number of requests there.

    Of M/M/1 with a queue an engine: rho = L / (1 + L) (Kleinrock, Queueing Systems I, 3.2).
    """
    each = there / engines
    return each / (1 + each)


def _too_early(policy: Policy, now: float, last: Move | None, newest: float | None) -> str:
    """Why nothing can be decided at this time; empty when it can."""
    if last and now - last.at < policy.cool_down_s:
        return f"{policy.cool_down_s - (now - last.at):.0f} s of the cool-down are left"
    if newest is None or now - newest > policy.stale_s:
        age = "missing" if newest is None else f"{now - newest:.0f} s old"
        return f"the data are {age}, at most {policy.stale_s:g} s are taken"
    return ""


def _too_little(recent: Sequence[Seen], policy: Policy) -> str:
    """Why these windows say too little; empty when they do not."""
    if broken := next((one.problem for one in recent if one.problem), ""):
        return f"the data are incomplete: {broken}"
    if len(recent) < policy.windows:
        return f"{len(recent)} of {policy.windows} windows since the last change"
    few = min(one.requests for one in recent)
    if few < policy.requests:
        return f"{few:g} requests in a window say too little, {policy.requests} are needed"
    return ""


def _afterwards(pressure: float, ratio: Ratio, to: str, busy: float) -> float:
    """The pressure on the pool that gives an engine away, when it has.

    Decode: the batch grows, and with each token's time the batch again: twice the factor, which holds while
    less than two fifths of a step's time come from the batch. Prefill: as the time in M/M/1, 1 / (1 - rho).
    """
    have = ratio.decode if to == "prefill" else ratio.prefill
    if have <= 1:
        return float("inf")
    if to == "prefill":
        return float(pressure * (have / (have - 1)) ** 2)
    then = busy * have / (have - 1)
    return pressure * (1 - busy) / (1 - then) if then < 1 else float("inf")


def _tried(
    target: Ratio, to: str, needy: _Pressure, policy: Policy, *, now: float, moves: Sequence[Move]
) -> str:
    """What earlier moves say against this one; empty when nothing."""
    for entered, left in pairwise(moves):
        soon = left.at - entered.at < policy.take_back_s
        if entered.ratio == target and soon and now - left.at < policy.barred_s:
            return f"{target} was left {left.at - entered.at:.0f} s after it was made so"
    if moves and moves[-1].to != to and now - moves[-1].at < policy.take_back_s:
        ago = now - moves[-1].at
        if needy.middle < policy.take_back:
            return f"taking back a move of {ago:.0f} s ago needs {policy.take_back:.0%}"
    return ""


@dataclass(frozen=True)
class _Pressure:
    """A pool's pressure over the last windows."""

    low: float
    middle: float
    high: float


def _pressure(recent: Sequence[Seen], pool: str) -> _Pressure | None:
    values = [getattr(one, pool) for one in recent]
    if any(value is None for value in values):
        return None
    return _Pressure(min(values), median(values), max(values))


def _weigh(
    prefill: _Pressure,
    decode: _Pressure,
    ratio: Ratio,
    policy: Policy,
    *,
    busy: float,
    now: float,
    moves: Sequence[Move],
) -> Decision:
    told = f"prefill at {prefill.middle:.0%} of its limit, decode at {decode.middle:.0%}"
    over = 1 + policy.margin
    pressed: list[Literal["prefill", "decode"]] = []
    if prefill.low > 1 and prefill.middle > over:
        pressed.append("prefill")
    if decode.low > 1 and decode.middle > over:
        pressed.append("decode")
    if not pressed:
        return Decision(None, f"hold: {told}")
    if len(pressed) > 1:
        return Decision(None, f"hold: {told}: both are over, which wants more engines and not another ratio")
    to = pressed[0]
    giver, needy = (decode, prefill) if to == "prefill" else (prefill, decode)
    name = "decode" if to == "prefill" else "prefill"
    after = _afterwards(giver.high, ratio, to, busy)
    target = ratio.moved(to)
    bounds = policy.prefill, policy.decode
    for pool, count, bound in zip(
        ("prefill", "decode"), (target.prefill, target.decode), bounds, strict=True
    ):
        if count < bound.min or (bound.max is not None and count > bound.max):
            allowed = f"{bound.min} to {bound.max}" if bound.max else f"{bound.min} or more"
            return Decision(None, f"hold: {told}: {target} is not allowed, {pool} has {allowed} engines")
    if giver.high > policy.room or after > 1:
        return Decision(None, f"hold: {told}: {name} has no engine to spare, it would be at {after:.0%}")
    if why := _tried(target, to, needy, policy, now=now, moves=moves):
        return Decision(None, f"hold: {told}: {why}")
    why = f"{ratio} to {target}: {told} in {policy.windows} windows; {name} would be at about {after:.0%}"
    return Decision(target, why, Move(now, to, target))


def follow(
    read: Callable[[], Window],
    apply: Callable[[Ratio], None],
    policy: Policy,
    ratio: Ratio,
    *,
    say: Callable[[str], None],
    dry_run: bool = False,
    rounds: int | None = None,
) -> Ratio:
    """Read windows, decide and apply, until interrupted or after so many rounds; returns the last ratio.

    read: waits for the next window and returns it. apply: makes a ratio so, returns when it is in effect, and
    raises when it cannot, which ends the loop. say: takes each decision in words. A dry run says what it
    would do and holds as if it had not.
    """
    history: list[Seen] = []
    moves: list[Move] = []
    done = 0
    while rounds is None or done < rounds:
        done += 1
        window = read()
        history = [*history, seen(window, policy)][-policy.windows :]
        decision = decide(history, ratio, policy, window.at, moves)
        say(("dry run: " if dry_run and decision.ratio else "") + decision.why)
        if decision.move and not dry_run:
            apply(decision.move.ratio)
            ratio = decision.move.ratio
            moves.append(decision.move)
    return ratio


def document(decision: Decision) -> dict[str, Any]:
    """For ``--json``."""
    return {"ratio": str(decision.ratio) if decision.ratio else None, "why": decision.why}
