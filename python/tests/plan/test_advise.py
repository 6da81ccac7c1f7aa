"""The conclusion follows the figures: which layout, by what margin, and when not to split."""

from __future__ import annotations

import json
from typing import Any

import pytest

from splitrail.plan.advise import Answer, Option, Question, Searcher, _conclude, answer, layouts, thin
from splitrail.plan.cost import Prices, cost
from splitrail.plan.curves import curves
from splitrail.plan.goodput import Goodput, Probe, goodput
from splitrail.plan.report import page
from splitrail.plan.show import conclusion, document
from splitrail.plan.simulate import point, simulate, traffic
from splitrail.plan.system import Model, fleet, with_balancing, with_cross_layer_blocks
from splitrail.plan.variants import variants
from splitrail.workload import Layout, Window, WorkloadError, read_sla
from tests.plan.conftest import make_model, workload

SLA = read_sla(["ttft_p90=1500", "tpot_p90=25"])
PRICES = Prices(gpu_hour={"H200": 3.0}, gpus_per_node=8)


def question(model: Model, gpus: int = 4, **more: object) -> Question:
    asked = {"workload": workload(), "sla": SLA, "tps": (1,), **more}
    return Question(model=model, gpus=gpus, **asked)  # type: ignore[arg-type]


def option(layout: str, *rates: float) -> Option:
    return Option(
        Layout.read(layout), Goodput(rates[0], Probe(None, True, {}, {}), None, "tpot_p90", "decode"), rates
    )


def test_layouts_are_all_splits_and_aggregated(model: Model) -> None:
    assert [one.label for one in layouts(question(model))] == ["4agg", "1p3d", "2p2d", "3p1d"]
    wide = [one.label for one in layouts(question(model, 32))]
    assert len(wide) == 10 and {"32agg", "1p31d", "16p16d", "31p1d"} <= set(wide)
    both = {one.label for one in layouts(question(model, 8, tps=(1, 2), mixed_tp=True))}
    assert {"4agg-tp2", "1p3d-tp2", "4p-tp1-2d-tp2"} <= both
    with pytest.raises(WorkloadError, match="no multiple"):
        layouts(question(model, 3, tps=(2,)))
    assert thin(range(1, 32), 9) == [1, 5, 9, 12, 16, 20, 23, 27, 31]


def test_a_clear_split_is_recommended_with_margin_and_confidence() -> None:
    said = _conclude([option("2p2d", 13, 12, 9), option("4agg", 10, 10, 10)])
    assert said.recommended is not None and said.recommended.layout.label == "2p2d"
    assert said.margin == pytest.approx(34 / 3 / 10 - 1)
    assert said.confidence == pytest.approx(2 / 3)
    assert "Disaggregate" in said.words and "13%" in said.words


def test_a_small_margin_is_not_worth_a_split() -> None:
    said = _conclude([option("2p2d", 10.5, 10.4), option("4agg", 10, 10)])
    assert said.recommended is not None and said.recommended.layout.label == "4agg"
    assert said.words.startswith("Don't disaggregate") and "only 4%" in said.words


def test_what_sustains_nothing_is_said() -> None:
    assert _conclude([option("2p2d", 0.0), option("4agg", 0.0)]).recommended is None
    only = _conclude([option("4agg", 1.0), option("2p2d", 0.0)])
    assert only.words.startswith("Don't disaggregate") and only.margin is None
    split = _conclude([option("2p2d", 1.0), option("4agg", 0.0)])
    assert "aggregated engines do not hold" in split.words


@pytest.fixture(scope="module")
def answered() -> tuple[Question, Answer]:
    asked = question(make_model())
    with Searcher(workers=1) as searcher:
        return asked, answer(asked, searcher, seeds=2, prices=PRICES, demand=8.0)


def test_the_answer_is_complete(answered: tuple[Question, Answer]) -> None:
    asked, found = answered
    best = found.recommended
    assert best is not None and best.qps == max(one.qps for one in found.options)
    assert [one.qps for one in found.options] == sorted((one.qps for one in found.options), reverse=True)
    assert len(best.rates) == 2
    assert {label: set(gains) for label, gains in found.marginal.items()} == {
        one.layout.label: set(one.layout.pools) for one in map(found.best, ("aggregated", "pd")) if one
    }
    assert max(found.marginal[best.layout.label].values()) > 0
    told = json.loads(json.dumps(document(asked, found)))
    assert told["recommended"] == best.layout.label
    assert {"qps", "ttft", "tpot", "e2e"} <= set(told["options"][0]["point"])
    assert any("One more engine" in line for line in conclusion(asked, found))


def test_costs_are_arithmetic(answered: tuple[Question, Answer]) -> None:
    _, found = answered
    best = found.options[0]
    figures = found.costs[best.layout.label]
    groups = 8.0 / best.qps
    millions = 8.0 * (8000 + 512) * 3600 / 1e6
    assert figures.money_per_million == pytest.approx(groups * 4 * 3.0 / millions)
    assert figures.gpus_continuous == pytest.approx(groups * 4)
    assert figures.gpus_whole % 8 == 0 and figures.gpus_whole >= figures.gpus_continuous


def test_a_split_pays_each_pool_its_price_and_needs_a_network(model: Model) -> None:
    layout = Layout.read("2p2d")
    figures = cost(
        layout,
        fleet(layout, model),
        workload(),
        4.0,
        prices=Prices(gpu_hour={"H200": 3.0, "MI325X": 2.0}, gpus_per_node=8),
        gpus={"prefill": "H200", "decode": "MI325X"},
        demand=4.0,
    )
    assert figures.money_per_hour_continuous == pytest.approx(2 * 3 + 2 * 2)
    assert (figures.gpus_continuous, figures.gpus_whole) == (4, 16)
    assert figures.kv_gb_per_s == pytest.approx(4 * 8000 * 163_840 / 1e9)
    assert figures.kv_gb_per_s_per_decode_engine == pytest.approx(figures.kv_gb_per_s / 2)
    with pytest.raises(WorkloadError, match="no gpu_hour for 'H200'"):
        Prices(gpu_hour={"MI325X": 2.0}).hour("H200")


def test_the_page_holds_figures_points_and_conclusion(answered: tuple[Question, Answer]) -> None:
    asked, found = answered
    drawn = curves(asked, found)
    cells: list[dict[str, Any]] = [
        {"row": "ISL 1", "column": "OSL 1", "layout": "4agg", "qps": 2.0, "margin": -0.2, "binding": "rate"},
        {
            "row": "ISL 1",
            "column": "OSL 2",
            "layout": None,
            "qps": 0.0,
            "margin": None,
            "binding": "ttft_p90",
        },
    ]
    text = page(asked, found, curves=drawn, cells=cells, measured=None)
    assert "http-equiv" not in text and 'src="http' not in text  # nothing is fetched
    for wanted in (found.words.split(":", maxsplit=1)[0], "Goodput on 4 GPUs", "Raw points", "P:D ratio"):
        assert wanted.replace("'", "&#39;") in text
    assert all(curve.points and curve.points[0].steady for curve in drawn)


def test_variants_change_one_thing_at_a_time(model: Model) -> None:
    asked = question(model)
    found = variants(asked)
    assert len(found) == 16 + 4 + 5
    assert sum(work == asked.workload and sla == asked.sla for _, _, work, sla in found) == 3


def test_a_window_needs_requests() -> None:
    with pytest.raises(ValueError, match="greater than 0"):
        Window(seconds=0)


def test_cross_layer_blocks_make_a_split_cheaper(model: Model) -> None:
    smooth = with_cross_layer_blocks(model)
    layout = Layout.read("2p2d")
    decode = fleet(layout, smooth).kinds["decode"]
    assert decode.transfer is not None
    assert decode.transfer.post(63) < 0.01 * model.transfer.post(500)
    assert decode.settings.block_size == 128
    before, after = (goodput(fleet(layout, one), workload(8000, 1000), SLA).qps for one in (model, smooth))
    assert after > 1.05 * before


def test_a_router_that_chooses_by_chance_lets_prompts_meet(model: Model) -> None:
    window = Window(seconds=200, drop_s=20)
    tails = [
        point(
            simulate(
                fleet(Layout.read("4agg"), with_balancing(model, balancing)),
                traffic(workload(8000, 256), 3.3, window, 0),
            ),
            3.3,
            window,
        ).value("ttft_p90")
        for balancing in ("least-outstanding", "least-outstanding-random", "two-choices")
    ]
    in_turn, at_random, of_two = (tail or 0 for tail in tails)
    assert 1.2 * in_turn < min(at_random, of_two)
