"""What practitioners observe of prefill-decode comes out of the simulation; no rule in the code says it.

The four insights are those of Anyscale's post of 2026-06-12 on MI325X, each looked for on the calibrated H200
system.
"""

from __future__ import annotations

import pytest

from splitrail.plan.goodput import goodput, lifetime, probe
from splitrail.plan.simulate import Fleet
from splitrail.plan.system import Model, fleet
from splitrail.workload import Layout, Point, Sla, Workload, read_sla
from tests.plan.conftest import workload


def served(model: Model, layout: str, work: Workload, qps: float) -> Point:
    engines: Fleet = fleet(Layout.read(layout), model)
    found = probe(
        engines, work, read_sla(["e2e_p90=60000"]), qps, seed=0, lasting=lifetime(engines, work, None)
    )
    assert found.point is not None
    return found.point


def best(model: Model, layout: str, work: Workload, sla: Sla) -> float:
    return goodput(fleet(Layout.read(layout), model), work, sla).qps


def test_1_a_split_does_not_make_the_first_token_faster(model: Model) -> None:
    for qps in (0.5, 2, 4):
        assert (
            served(model, "2p2d", workload(), qps).ttft["p50"]
            > (served(model, "4agg", workload(), qps).ttft["p50"])
        )
    strict = read_sla(["ttft_p90=450"])
    assert best(model, "2p2d", workload(), strict) == 0
    assert best(model, "4agg", workload(), strict) > 0.2


def test_2_a_split_keeps_tpot_flat_under_load(model: Model) -> None:
    # At equal decode batches: the transfer's posting aside, which the cross-layer KV layout does away with.
    smooth = model.model_copy(
        update={"transfer": model.transfer.model_copy(update={"descriptors_per_block": 0.2})}
    )
    rise = {
        layout: served(smooth, layout, workload(), 4.5).tpot["p90"]
        / served(smooth, layout, workload(), 0.5).tpot["p90"]
        for layout in ("2p2d", "4agg")
    }
    assert rise["4agg"] > 1.25 * rise["2p2d"]


def test_3_tpot_savings_compound_over_the_answer(model: Model) -> None:
    smooth = model.model_copy(
        update={"transfer": model.transfer.model_copy(update={"descriptors_per_block": 0.2})}
    )

    def gain(osl: float, qps: float) -> float:
        whole, split = (
            served(smooth, name, workload(8000, osl), qps).e2e["p50"] for name in ("4agg", "2p2d")
        )
        return whole - split

    assert gain(16, 4) < 0 < gain(256, 4) < gain(768, 4)


def test_4_the_best_ratio_follows_the_workload(model: Model) -> None:
    sla = read_sla(["ttft_p90=3000", "tpot_p90=30"])

    def ratio(work: Workload) -> int:
        rates = {p: best(model, f"{p}p{6 - p}d", work, sla) for p in range(1, 6)}
        return max(rates, key=lambda p: rates[p])

    prompts, answers = ratio(workload(8000, 16)), ratio(workload(1000, 1500))
    cached = ratio(workload(8000, 512, hit_rate=0.8, decode_hit_rate=0.8))
    assert prompts > ratio(workload()) > answers
    assert cached < ratio(workload())


@pytest.mark.parametrize("layout", ["1p7d", "7p1d"])
def test_a_wrong_ratio_is_worse_than_no_split(model: Model, layout: str) -> None:
    sla = read_sla(["ttft_p90=3000", "tpot_p90=30"])
    assert best(model, layout, workload(), sla) < 0.7 * best(model, "8agg", workload(), sla)
