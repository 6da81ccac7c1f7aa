"""The policy of `splitrail rebalance --auto`, on histories made by hand and by a small model of two pools."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import pytest

from splitrail.metrics.histogram import Histogram
from splitrail.metrics.window import Engine, Window
from splitrail.serving.auto import Decision, Move, Policy, Ratio, Seen, decide, follow, load_policy, seen
from splitrail.workload import WorkloadError

EVEN = Ratio(2, 2)
POLICY = Policy(sla=("ttft_p90=1000", "tpot_p90=60"), requests=10, windows=4, cool_down_s=60)


def history(prefill: float, decode: float | None, count: int = 4, **change: object) -> list[Seen]:
    """Windows of 10 s that all showed the same."""
    return [
        replace(Seen(10.0 * at, 100, prefill, decode), **change)  # type: ignore[arg-type]
        for at in range(1, count + 1)
    ]


def decided(windows: list[Seen], ratio: Ratio = EVEN, last: Move | None = None, now: float = 0.0) -> Decision:
    return decide(windows, ratio, POLICY, now or windows[-1].at, [last] if last else [])


@pytest.mark.parametrize(
    ("prefill", "decode", "ratio"), [(1.5, 0.2, Ratio(3, 1)), (0.3, 1.5, Ratio(1, 3)), (0.9, 0.9, None)]
)
def test_an_engine_goes_where_the_sla_breaks(prefill: float, decode: float, ratio: Ratio | None) -> None:
    assert decided(history(prefill, decode)).ratio == ratio


@pytest.mark.parametrize(
    ("windows", "ratio", "word"),
    [
        (history(1.5, 1.5), Ratio(2, 2), "both are over"),
        (history(1.5, 0.65), Ratio(2, 2), "no engine to spare"),
        (history(1.5, 0.3), Ratio(3, 1), "decode has 1 or more"),
        (history(1.5, 0.3, requests=3), Ratio(2, 2), "say too little"),
        (history(1.5, 0.3, count=3), Ratio(2, 2), "3 of 4 windows"),
        (history(1.5, 0.3, problem="n1: gone"), Ratio(2, 2), "incomplete: n1: gone"),
        (history(1.5, None), Ratio(2, 2), "not measured"),
        ([*history(1.5, 0.3, 3), Seen(40.0, 100, 0.99, 0.3)], Ratio(2, 2), "hold: prefill at"),
    ],
)
def test_why_it_holds(windows: list[Seen], ratio: Ratio, word: str) -> None:
    decision = decided(windows, ratio)
    assert decision.ratio is None
    assert word in decision.why


def test_stale_data_are_refused() -> None:
    old = decided(history(1.5, 0.3), now=40 + POLICY.stale_s + 1)
    assert old.ratio is None
    assert "the data are 121 s old" in old.why
    assert "missing" in decide([], Ratio(2, 2), POLICY, 0.0).why


def test_a_cool_down_and_fresh_windows_after_a_move() -> None:
    windows = history(1.5, 0.2, count=20)
    cooling = decided(windows[:10], last=Move(60.0, "prefill", EVEN))
    assert "cool-down" in cooling.why
    early = decided(windows[:13], last=Move(100.0, "prefill", EVEN), now=161.0)
    assert "3 of 4 windows" in early.why
    assert decided(windows[:17], last=Move(100.0, "prefill", EVEN)).ratio == Ratio(3, 1)


def test_taking_a_move_back_needs_a_clearer_case() -> None:
    last = Move(-100.0, "decode", EVEN)
    weak = decided(history(1.15, 0.2), last=last)
    assert weak.ratio is None
    assert "taking back a move" in weak.why
    assert decided(history(1.3, 0.2), last=last).ratio == Ratio(3, 1)
    assert decided(history(1.15, 0.2), last=Move(-4000.0, "decode", EVEN)).ratio == Ratio(3, 1)


def test_bounds_of_a_pool() -> None:
    policy = Policy.model_validate({**POLICY.model_dump(), "prefill": {"max": 2}})
    told = decide(history(1.5, 0.3), Ratio(2, 2), policy, 40.0)
    assert told.ratio is None
    assert "prefill has 1 to 2 engines" in told.why


def window_of(
    ttft_s: float,
    tpot_s: float,
    *,
    kv_use: float = 0.1,
    at: float = 10.0,
    mean_s: float = 0.1,
    requests: float = 100.0,
) -> Window:
    """A window of 15 s: times of nearly all requests, and the mean time in prefill."""

    def times(value: float, total: float) -> Histogram:
        return Histogram((value * 0.999, value * 1.001, float("inf")), (0, requests, 0), total)

    prefill = Engine("p", "prefill", "n1", 15, ttft=times(ttft_s, mean_s * requests))
    decode = Engine("d", "decode", "n2", 15, kv_use=kv_use, finished=requests)
    decode = replace(decode, ttft=times(0.001, 0), tpot=times(tpot_s, 0))
    return Window(15, [prefill, decode], at=at)


def test_a_window_becomes_pressure() -> None:
    shown = seen(window_of(0.5, 0.09), POLICY)
    assert shown.requests == 100
    assert shown.prefill == pytest.approx(0.5, rel=0.01)
    assert shown.decode == pytest.approx(1.5, rel=0.01)
    full = seen(window_of(0.5, 0.02, kv_use=0.99), POLICY)
    assert full.decode == pytest.approx(0.99 / 0.9)
    assert seen(Window(10, [], unread={"n": "gone"}), POLICY).problem == "n: gone"


@dataclass
class Pools:
    """Four engines in two queues: the waiting time of M/M/1 for prefill, a batch for decode.

    A prompt token takes an engine 25 us (M/M/1: E = s / (1 - rho), p90 = 2.3 E; Kleinrock, Queueing Systems
    I, 3.2). A decode step takes 10 ms and 1 ms more a request in the batch, by Little's law.
    """

    random: Random
    ratio: Ratio
    isl: float = 8000.0
    osl: float = 200.0
    rate: float = 6.0
    noise: float = 0.15

    def window(self, at: float) -> Window:
        service = 25e-6 * self.isl
        busy = min(0.99, self.rate * service / self.ratio.prefill)
        step = 0.01 / max(0.05, 1 - 0.001 * self.rate * self.osl / self.ratio.decode)
        shake = [self.random.lognormvariate(0, self.noise) for _ in range(2)]
        mean = service / (1 - busy) * shake[0]
        return window_of(2.3 * mean, step * shake[1], at=at, mean_s=mean, requests=15 * self.rate)


def pools_of(seed: int, **change: float) -> Pools:
    """Two engines each."""
    return replace(Pools(Random(seed), EVEN), **change)  # type: ignore[arg-type]  # noqa: S311  # no secret


def run(
    pools: Pools, policy: Policy, windows: int, shift: dict[int, dict[str, float]]
) -> list[tuple[int, Ratio]]:
    """The moves that the loop makes, each with its window."""
    moves: list[tuple[int, Ratio]] = []
    at = [0]

    def read() -> Window:
        at[0] += 1
        for key, value in shift.get(at[0], {}).items():
            setattr(pools, key, value)
        return pools.window(15.0 * at[0])

    def apply(ratio: Ratio) -> None:
        moves.append((at[0], ratio))
        pools.ratio = ratio

    follow(read, apply, policy, pools.ratio, say=lambda _: None, rounds=windows)
    return moves


@pytest.mark.parametrize("seed", range(20))
def test_noise_moves_nothing(seed: int) -> None:
    """Eight hours at 0.77 of the limit of TTFT with 15 % noise from window to window."""
    pools = pools_of(seed, rate=4.0)
    assert run(pools, Policy(sla=("ttft_p90=1000", "tpot_p90=60")), 1920, {}) == []


@pytest.mark.parametrize("seed", range(20))
def test_what_failed_is_not_tried_again(seed: int) -> None:
    """TTFT at 0.92 of its limit, and decode a batch that one engine cannot carry, which only a try shows."""
    pools = pools_of(seed, rate=5.0, osl=192.0)
    moves = run(pools, Policy(sla=("ttft_p90=1000", "tpot_p90=120")), 1920, {})
    assert [ratio for _, ratio in moves] in ([], [Ratio(3, 1), EVEN])


@pytest.mark.parametrize("rate", [4.0, 5.0])
def test_prefill_keeps_what_it_needs(rate: float) -> None:
    """Decode is over, prefill at 0.38 of its limit or more, which one engine less would break."""
    pools = pools_of(1, rate=rate, osl=300, noise=0)
    said: list[str] = []
    at = iter(range(1, 100))
    policy = Policy(sla=("ttft_p90=2000", "tpot_p90=20"))
    follow(
        lambda: pools.window(15.0 * next(at)), print, policy, EVEN, say=said.append, dry_run=True, rounds=6
    )
    assert "prefill has no engine to spare" in said[-1]


@pytest.mark.parametrize("seed", range(20))
def test_a_shift_of_the_prompts_moves_one_engine_and_stays(seed: int) -> None:
    """Prompts of 8,000 tokens become 14,000, answers 60: prefill gets one engine, within 10 minutes."""
    pools = pools_of(seed, rate=4.0)
    policy = Policy(sla=("ttft_p90=2000", "tpot_p90=60"), cool_down_s=120)
    moves = run(pools, policy, 600, {200: {"isl": 14000.0, "osl": 60.0}})
    assert [ratio for _, ratio in moves] == [Ratio(3, 1)]
    assert 200 < moves[0][0] < 240


def test_a_dry_run_changes_nothing() -> None:
    said: list[str] = []
    pools = pools_of(1, rate=7.5, osl=20, noise=0)

    def refuse(ratio: Ratio) -> None:
        raise AssertionError(f"a dry run made {ratio} so")

    at = iter(range(1, 100))
    ratio = follow(
        lambda: pools.window(15.0 * next(at)),
        refuse,
        POLICY,
        pools.ratio,
        say=said.append,
        dry_run=True,
        rounds=6,
    )
    assert ratio == Ratio(2, 2)
    assert said[-1].startswith("dry run: 2P2D to 3P1D: prefill at")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("sla: [ttft_p90=1000]\nwindow: 3\n", "window: Extra inputs"),
        ("sla: [e2e_p90=1000]\n", "says nothing of a single pool"),
        ("sla: [ttft=1000]\n", "write METRIC_STATISTIC=MS"),
        ("sla: []\n", "sla"),
    ],
)
def test_a_policy_that_is_none(tmp_path: Path, text: str, word: str) -> None:
    path = tmp_path / "policy.yml"
    path.write_text(text)
    with pytest.raises(WorkloadError, match=word) as refused:
        load_policy(path)
    assert str(path) in str(refused.value)


def test_a_policy_is_read(tmp_path: Path) -> None:
    path = tmp_path / "policy.yml"
    path.write_text("sla: [ttft_p90=1000]\nprefill: {min: 1, max: 3}\n")
    assert load_policy(path).prefill.max == 3
