"""The policy on the planner's simulator: engines with steps, batches, queues and transfers, not formulas."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from splitrail.metrics.histogram import Histogram
from splitrail.metrics.window import Engine, Window
from splitrail.plan.simulate import simulate, traffic
from splitrail.serving.auto import Policy, Ratio, follow
from splitrail.workload import Window as Span
from tests.plan.conftest import split, workload

SECONDS = 60.0
POLICY = Policy(sla=("ttft_p90=1500", "tpot_p90=25"))


def exactly(value: float, count: int, total: float) -> Histogram:
    """Observations nearly all of which are this value, with their true sum."""
    return Histogram((value * 0.999, value * 1.001, float("inf")), (0, count, 0), total)


def measured(ratio: Ratio, qps: float, lengths: tuple[float, float], *, seed: int) -> Window:
    """What engines of this ratio do with a minute of such requests."""
    requests = traffic(workload(*lengths), qps, Span(seconds=SECONDS), seed)
    run = simulate(split(ratio.prefill, ratio.decode), requests)
    done = [one for one in run.requests if one.last > 0]
    ttft = np.array([one.first - one.arrival for one in done])
    tpot = np.array([(one.last - one.first) / (one.osl - 1) for one in done])
    count = len(done)
    prefill = Engine("p", "prefill", "n", SECONDS)
    prefill = replace(prefill, ttft=exactly(float(np.percentile(ttft, 90)), count, float(ttft.sum())))
    decode = Engine("d", "decode", "n", SECONDS, kv_use=run.pools["decode"].kv, finished=count)
    decode = replace(
        decode,
        ttft=exactly(1e-6, count, 0.0),
        tpot=exactly(float(np.percentile(tpot, 90)), count, float(tpot.sum())),
    )
    return Window(SECONDS, [prefill, decode], at=SECONDS * seed)


def test_longer_prompts_get_an_engine_and_keep_it() -> None:
    """Chats at 1P3D, then documents: prefill at 1P3D breaks down, 2P2D keeps both limits, 3P1D would not."""
    documents = (8000.0, 256.0)
    assert POLICY.limits.limits[1].ms == 25
    alone = measured(Ratio(3, 1), 3.0, documents, seed=1).tpot_ms(90)
    assert alone is not None
    assert alone > 25, "3P1D keeps the limit too, so this shows nothing"
    ratio, moves, at = Ratio(1, 3), [], [0]

    def read() -> Window:
        at[0] += 1
        qps, lengths = (4.0, (2000.0, 600.0)) if at[0] <= 8 else (3.0, documents)
        return measured(ratio, qps, lengths, seed=at[0])

    def apply(wanted: Ratio) -> None:
        nonlocal ratio
        ratio = wanted
        moves.append((at[0], str(wanted)))

    follow(read, apply, POLICY, ratio, say=lambda _: None, rounds=30)
    assert moves == [(12, "2P2D")]
    last = measured(ratio, 3.0, documents, seed=99)
    ttft, tpot = last.ttft_ms(90), last.tpot_ms(90)
    assert ttft is not None
    assert tpot is not None
    assert ttft < 1500
    assert tpot < 25
