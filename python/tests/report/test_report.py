"""The page and the pictures hold what the files said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from splitrail.cli import app
from splitrail.report.figures import between, figures, matches
from splitrail.report.gather import Source, by_workload, load
from splitrail.report.page import page
from splitrail.workload import Curve, Curves, Point, WorkloadError, read_sla

WORK = {"isl": {"mean": 8000}, "osl": {"mean": 512}}
SLA = {"ttft_p90": 1000}


def point(qps: float, ttft: float, *, steady: bool | None = True, **more: Any) -> dict[str, Any]:
    figures = {
        "ttft": {"p50": ttft, "p90": 2 * ttft},
        "tpot": {"p50": 10, "p90": 12},
        "e2e": {"p50": 5000, "p90": 6000},
    }
    return {"qps": qps, "steady": steady, "seconds": 60, "requests": 100, **figures, **more}


def curve(kind: str, layout: str, qps: float | None, **more: Any) -> dict[str, Any]:
    found = {
        "sla": {"limits": [{"metric": "ttft", "statistic": "p90", "ms": 1000}]},
        "qps": qps,
        "low": qps,
        "runs": 3,
    }
    points = [
        point(1, 300),
        point(2, 450),
        point(4, 3000, steady=False, unsteady=["requests in flight: 3 to 90"]),
    ]
    return {
        "kind": kind,
        "layout": layout,
        "workload": WORK,
        "source": f"{kind} run",
        "points": points,
        "sustained": [found],
        **more,
    }


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    path = tmp_path / "measured.json"
    curves = [curve("measured", "4agg", 2.0), curve("measured", "2p2d", 2.5), curve("measured", "1p3d", None)]
    path.write_text(
        json.dumps(Curves.model_validate({"about": "a <b> run", "curves": curves}).model_dump(mode="json"))
    )
    return path


@pytest.fixture
def planned(tmp_path: Path) -> Path:
    path = tmp_path / "plan.json"
    drawn = {key: value for key, value in curve("predicted", "2p2d", 2.6).items() if key != "sustained"}
    option = {"gpus": 4, "binding": "ttft_p90", "rates": [2.5, 2.7]}
    path.write_text(
        json.dumps(
            {
                "question": {"system": "made up", "workload": WORK, "sla": SLA, "gpus": 4},
                "options": [
                    {**option, "layout": "2p2d", "goodput_qps": 2.6},
                    {**option, "layout": "3p1d", "goodput_qps": 0.0, "rates": [0.0]},
                ],
                "curves": [drawn],
            }
        )
    )
    return path


def test_measured_and_predicted_meet_by_workload(measured: Path, planned: Path) -> None:
    (asked,) = by_workload([load(measured), load(planned)])
    assert len(asked.curves) == 5
    assert [curve.layout for curve, _ in asked.found(read_sla(["ttft_p90=1000"]))] == [
        "4agg",
        "1p3d",
        "2p2d",
        "2p2d",
        "3p1d",
    ]
    names = [figure.name for figure in figures(asked, None, None)]
    assert names == ["goodput", "ratio", "ttft", "tpot", "e2e", "predicted"]


def test_every_figure_says_run_sla_duration_and_steadiness(measured: Path, planned: Path) -> None:
    (asked,) = by_workload([load(measured), load(planned)])
    for figure in figures(asked, None, None):
        assert "measured run" in figure.caption
        assert "steady" in figure.caption
        if figure.name in {"goodput", "ratio"}:
            assert "p90 TTFT <= 1000 ms" in figure.caption
        else:
            assert "60 s" in figure.caption


def test_unsteady_points_are_shown_with_their_reason_and_never_matched(measured: Path, planned: Path) -> None:
    sources = [load(measured), load(planned)]
    (asked,) = by_workload(sources)
    assert [point.qps for _, point, _ in matches(asked.curves)] == [1, 2]
    text = page(sources, [(asked, list(figures(asked, None, None)))])
    assert "<small>requests in flight: 3 to 90</small>" in text
    assert "a &lt;b&gt; run" in text
    assert "<script src" not in text
    assert "http" not in text.split("</script>")[0].split("<script>")[0]


def test_a_figure_between_two_rates_is_a_power_of_the_rate() -> None:
    known = Curve.model_validate(curve("predicted", "2p2d", 1.0))
    assert between(known, 2.0, "ttft_p50") == pytest.approx(450)
    assert between(known, 2**0.5, "ttft_p50") == pytest.approx((300 * 450) ** 0.5)
    assert between(known, 8.0, "ttft_p50") is None
    assert between(known, 1.0, "ttft_p99") is None


def test_different_gpu_counts_are_said(measured: Path, tmp_path: Path) -> None:
    path = tmp_path / "eight.json"
    path.write_text(json.dumps({"curves": [curve("measured", "8agg", 4.0)]}))
    (asked,) = by_workload([load(measured), load(path)])
    assert "NOT at equal GPUs" in next(iter(figures(asked, None, None))).caption


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nothing", "not JSON"),
        ("{}", "curves"),
        ('{"options": 3, "question": {}, "curves": []}', "splitrail plan --json"),
    ],
)
def test_what_is_no_curves_is_named(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(WorkloadError, match=f"bad.json.*{said}"):
        load(path)


def test_the_command_writes_the_page_with_costs(measured: Path, tmp_path: Path) -> None:
    prices = tmp_path / "prices.yml"
    prices.write_text("currency: EUR\ngpu_hour: {H200: 3.6}\n")
    out = tmp_path / "report.html"
    done = CliRunner().invoke(
        app, ["report", str(measured), "--out", str(out), "--prices", str(prices), "--gpu", "H200"]
    )
    assert done.exit_code == 0, done.output
    text = out.read_text()
    # 4 GPUs at 3.6 an hour, 2 requests a second of 8512 tokens: 14.4 / (2 * 8512 * 3600 / 1e6).
    assert "EUR a million tokens" in text
    assert '"0.235"' in text
    assert CliRunner().invoke(app, ["report", str(measured), "--gpu", "H200"]).exit_code == 2
    done = CliRunner().invoke(app, ["report", str(measured), "--prices", str(prices), "--gpu", "B200"])
    assert done.exit_code == 2


@pytest.mark.skipif(shutil.which("chromium") is None, reason="pictures are drawn by Chromium")
def test_pictures(measured: Path, tmp_path: Path) -> None:
    args = ["report", str(measured), "--out", str(tmp_path / "r.html"), "--png", str(tmp_path / "png")]
    assert CliRunner().invoke(app, args).exit_code == 0
    found = sorted((tmp_path / "png").glob("*.png"))
    assert [path.name for path in found][:2] == ["1-8000-512-e2e.png", "1-8000-512-goodput.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in found)


def test_a_point_without_figures_is_no_line() -> None:
    bare = {**curve("measured", "4agg", 1.0), "points": [Point(qps=1).model_dump()]}
    document = Curves.model_validate({"curves": [bare]})
    (asked,) = by_workload([Source("x", "", document.curves)])
    assert [figure.name for figure in figures(asked, None, None)] == ["goodput"]
