"""The command as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from splitrail.cli import app

MODEL = ["--model", "h200-qwen3-14b"]
ASK = ["plan", *MODEL, "--isl", "2000", "--osl", "200", "--gpus", "2", "--seeds", "1", "--workers", "1"]
TOPOLOGIES = Path(__file__).parents[3] / "inventories/topologies"


def run(*argv: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, list(argv))
    return done.exit_code, done.stdout, done.stderr


def test_a_plan_as_json_with_page_and_topology(tmp_path: Path) -> None:
    page, out = tmp_path / "plan.html", tmp_path / "planned.yml"
    code, stdout, _ = run(
        *ASK,
        *("--sla", "tpot_p90=30", "--json", "--html", str(page), "--write", str(out)),
        *("--topology", str(TOPOLOGIES / "qwen3-14b.yml")),
    )
    told = json.loads(stdout)
    assert (code, told["ok"]) == (0, True)
    assert {one["layout"] for one in told["options"]} == {"2agg", "1p1d"}
    assert told["curves"][0]["kind"] == "predicted"
    assert page.stat().st_size > 1e6 and out.exists()


def test_an_sla_that_nothing_holds_is_exit_code_1() -> None:
    code, stdout, _ = run(*ASK, "--sla", "ttft_p90=1")
    assert code == 1
    assert "No layout holds the SLA" in stdout


@pytest.mark.parametrize(
    ("argv", "wanted"),
    [
        (["--sla", "ttft_p95=100"], "write METRIC_STATISTIC=MS"),
        ([], "at least one --sla"),
        (["--sla", "tpot_p90=30", "--model", "nowhere.json"], "not one of h200-qwen3-14b, mi325x-qwen3-235b"),
        (["--sla", "tpot_p90=30", "--write", "x.yml"], "--write and --topology go together"),
        (["--sla", "tpot_p90=30", "--hit-rate", "1.5"], "hit_rate"),
        (["--sla", "tpot_p90=30", "--gpus", "3", "--tp", "2"], "no multiple"),
        (["--sla", "tpot_p90=30", "--prices", "gone.yml"], "gone.yml"),
    ],
)
def test_what_cannot_run_is_exit_code_2_and_named(argv: list[str], wanted: str) -> None:
    code, _, stderr = run(*ASK, *argv)
    assert code == 2
    assert wanted in " ".join(stderr.split())


def test_two_processes_say_the_same_as_one() -> None:
    told = [json.loads(run(*ASK[:-1], n, "--sla", "tpot_p90=30", "--json")[1]) for n in ("1", "2")]
    assert told[0] == told[1]


def test_a_model_must_be_named() -> None:
    code, _, stderr = run("plan", "--isl", "9", "--osl", "9", "--sla", "tpot_p90=30")
    assert code == 2
    assert "say --model" in " ".join(stderr.split())


def test_a_workload_that_fits_nowhere_is_named() -> None:
    code, _, stderr = run(*ASK, "--sla", "tpot_p90=30", "--isl", "9e6")
    assert code == 2
    assert "longest request fit at no tensor-parallel size asked for (1)" in " ".join(stderr.split())


def test_calibrate_names_what_is_wrong_with_a_file(tmp_path: Path) -> None:
    points = tmp_path / "points.json"
    points.write_text('{"curves": [{"kind": "measured", "layout": "two", "points": []}]}', encoding="utf-8")
    code, _, stderr = run("plan", "calibrate", str(points), "-o", str(tmp_path / "model.json"))
    assert code == 2
    said = " ".join(stderr.split())
    assert "points.json" in said and "curves.0.workload" in said and "layout 'two'" not in said
