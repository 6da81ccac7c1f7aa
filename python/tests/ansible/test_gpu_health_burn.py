"""The long tests' judgement: recorded outputs, and what is wrong with spoilt ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils import splitrail_gpu_tools as tools
from ansible.module_utils.splitrail_gpu_tools import Failed

from splitrail.ansible.modules.splitrail_gpu_health_burn import TESTS, Bench, burn

from .amd import Tools, recorded
from .host_tree import put

ROLE = Path(__file__).parents[3] / "roles/gpu_health"
DATA: dict[str, Any] = yaml.safe_load((ROLE / "files/mi325x.yml").read_text(encoding="utf-8"))
COMMANDS = {
    "rvs": ["rvs", "-c", "gst_single.conf"],
    "transferbench_a2a": ["TransferBench", "a2a"],
    "transferbench_p2p": ["TransferBench", "p2p"],
    "rccl": ["all_reduce_perf", "-b", "8", "-e", "8G", "-f", "2", "-g", "8"],
}
LAST = "gst-70Tflops-8K-rand-dgemm"


@pytest.fixture
def answers() -> Tools:
    return Tools()


@pytest.fixture
def bench(tmp_path: Path, answers: Tools) -> Bench:
    return Bench(
        count=8,
        commands=COMMANDS,
        thresholds=DATA["thresholds"],
        log_dir=tmp_path / "log",
        root=tmp_path,
        run=answers,
    )


def failed(bench: Bench, test: str) -> list[tuple[str, Any]]:
    found = [check for check in burn(bench, test) if not check["ok"]]
    assert all(check["hint"] for check in found)
    return [(check["subject"], check["measured"]) for check in found]


@pytest.mark.parametrize(("test", "checks"), [("rvs", 12), ("transferbench", 5), ("rccl", 4)])
def test_a_healthy_server_passes(bench: Bench, test: str, checks: int) -> None:
    assert failed(bench, test) == []
    assert len(burn(bench, test)) == checks


def test_the_output_is_kept(bench: Bench) -> None:
    burn(bench, "transferbench")
    assert (bench.log_dir / "transferbench_p2p.log").read_text() == recorded("TransferBench p2p")


@pytest.mark.parametrize("test", list(TESTS))
def test_gpus_in_use_are_left_alone(bench: Bench, answers: Tools, test: str) -> None:
    (bench.root / "sys/class/kfd/kfd/proc/4711").mkdir(parents=True)
    put(bench.root, "proc/4711/comm", "VllmWorker")
    assert failed(bench, test) == [("GPUs", "4711 (VllmWorker)")]
    assert answers.asked == []


@pytest.mark.parametrize(("test", "tool"), [("rvs", "rvs"), ("rccl", "all_reduce_perf")])
@pytest.mark.parametrize(
    "why", ["rvs is not installed", "it did not end within 3600 s", "it ended with code 1: HSA error"]
)
def test_a_test_that_cannot_be_made(bench: Bench, answers: Tools, test: str, tool: str, why: str) -> None:
    """An exit code is looked at too: good figures before a crash are none."""
    answers.failures[tool] = Failed(why, recorded(tool))
    assert failed(bench, test) == [(test, f"could not be checked: {why}")]
    assert (bench.log_dir / f"{test}.log").read_text() == recorded(tool)


# RVS


def test_rvs_of_a_gpu_that_does_not_reach_its_target(bench: Bench, answers: Tools) -> None:
    text = recorded("rvs")
    (line,) = [of for of in text.splitlines() if f"[{LAST}] [GPU:: 29122]" in of and "met:" in of]
    slow = f"[RESULT] [1.0   ] [{LAST}] [GPU:: 29122] GFLOPS 69999 Target GFLOPS: 70000 met: FALSE"
    answers.texts["rvs"] = text.replace(line, slow)
    assert failed(bench, "rvs") == [("gst rand-dgemm", 69999.0)]
    hints = [check["hint"] for check in burn(bench, "rvs") if not check["ok"]]
    assert "slowest GPU 29122; not met: 29122." in hints[0]


def test_rvs_with_a_target_that_somebody_lowered(bench: Bench, answers: Tools) -> None:
    """RVS is content, the suite is not: its own thresholds count as well."""
    text = recorded("rvs")
    (line,) = [of for of in text.splitlines() if f"[{LAST}] [GPU:: 29122]" in of and "met:" in of]
    slow = f"[RESULT] [1.0   ] [{LAST}] [GPU:: 29122] GFLOPS 51000 Target GFLOPS: 50000 met: TRUE"
    answers.texts["rvs"] = text.replace(line, slow)
    assert failed(bench, "rvs") == [("gst rand-dgemm", 51000.0)]


def test_rvs_of_a_gpu_that_says_nothing(bench: Bench, answers: Tools) -> None:
    text = "\n".join(of for of in recorded("rvs").splitlines() if f"[{LAST}] [GPU:: 29122]" not in of)
    answers.texts["rvs"] = text
    why = "could not be checked: 7 of 8 GPUs reported a figure"
    assert failed(bench, "rvs") == [("gst rand-dgemm", why)]


def test_rvs_cut_short(bench: Bench, answers: Tools) -> None:
    text = recorded("rvs")
    answers.texts["rvs"] = text[: text.index("Action name :gst-70Tflops-8K-trig-dgemm")]
    assert [subject for subject, _ in failed(bench, "rvs")] == ["gst trig-dgemm", "gst rand-dgemm"]


def test_rvs_with_an_error_in_its_log(bench: Bench, answers: Tools) -> None:
    answers.texts["rvs"] = recorded("rvs") + "[ERROR ] [1.0   ] [gst] gst 23018 hipBLASLt error\n"
    measured = "1 errors, first: [ERROR ] [1.0   ] [gst] gst 23018 hipBLASLt error"
    assert failed(bench, "rvs") == [("errors in the log", measured)]


def test_rvs_that_reports_nothing(bench: Bench, answers: Tools) -> None:
    answers.texts["rvs"] = "Usage: rvs [options]\n"
    assert failed(bench, "rvs") == [("rvs", "could not be checked: it reports no action")]


def test_rvs_other_modules_tell_pass_or_fail_only() -> None:
    text = (
        "[RESULT] [1102597.157090] Action name :iet-620W-1K-rand-dgemm\n"
        "[RESULT] [1102597.333747] [iet-620W-1K-rand-dgemm] [GPU:: 28851] Power(W) 127.000000\n"
        "[RESULT] [1102657.372936] [iet-620W-1K-rand-dgemm] [GPU:: 28851] pass: TRUE\n"
        "[RESULT] [1102657.372936] [iet-620W-1K-rand-dgemm] [GPU:: 23018] pass: FALSE\n"
    )
    assert tools.rvs(text) == {"iet-620W-1K-rand-dgemm": {"28851": (None, True), "23018": (None, False)}}


# TransferBench


@pytest.mark.parametrize(
    ("tool", "spoilt", "found"),
    [
        ("a2a", ("(GPU Timed):   45.003", "(GPU Timed):   31.200"), ("a2a average", 31.2)),
        ("a2a", ("GPU 07 ", "xxx 07 "), ("a2a: GPUs", 7)),
        ("a2a", ("Average ", "Avg"),
         ("transferbench", "could not be checked: it tells no average bandwidth")),
        ("p2p", ("Averages (During  BiDir)", "Avg"),
         ("transferbench", "could not be checked: it tells no average of BiDir between GPUs")),
    ],
)  # fmt: skip
def test_transferbench(
    bench: Bench, answers: Tools, tool: str, spoilt: tuple[str, str], found: object
) -> None:
    # The last occurrence: the column heads name the GPUs too, and only a row counts.
    old, new = spoilt
    answers.texts[f"TransferBench {tool}"] = new.join(recorded(f"TransferBench {tool}").rsplit(old, 1))
    assert failed(bench, "transferbench") == [found]


@pytest.mark.parametrize(("way", "low"), [("UniDir", 33.8), ("BiDir", 43.8)])
def test_transferbench_pairs(bench: Bench, answers: Tools, way: str, low: float) -> None:
    lines = recorded("TransferBench p2p").splitlines()
    slow = [
        f"{line[:-10]}{low:10.2f}" if "Averages" in line and f" {way})" in f" {line}".replace("(During", "")
        else line
        for line in lines
    ]  # fmt: skip
    assert slow != lines
    answers.texts["TransferBench p2p"] = "\n".join(slow)
    assert failed(bench, "transferbench") == [(f"p2p {way} average", low)]


def test_transferbench_in_the_newer_frame() -> None:
    """Since 1.64 the tables have borders."""
    rows = "\n".join(f"│ GPU 0{gpu} │  N/A  │ 45.001 │ 44.998 │" for gpu in range(2))
    text = f"│ SRC\\DST │ GPU 00 │ GPU 01 │\n{rows}\nAverage   bandwidth (GPU Timed):   45.000 GB/s\n"
    assert tools.transferbench_a2a(text) == (45.0, 2)


# rccl-tests


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ("315.65      0", "301.00      0", ("all_reduce 8589934592 B", 301.0)),
        # The in-place figure counts as well.
        ("315.02      0", "290.00      0", ("all_reduce 8589934592 B", 290.0)),
        ("315.65      0", "315.65     17", ("wrong values", 17)),
        ("Out of bounds values : 0 OK", "Out of bounds values : 4 FAILED", ("wrong values", 4)),
        ("#   Rank  7", "#   Bank  7", ("all_reduce: GPUs", 7)),
        ("# Out of bounds", "# ", ("rccl", "could not be checked: its table is not whole")),
        ("  8589934592 ", "  x ",
         ("all_reduce 8589934592 B", "could not be checked: the table ends at 4294967296 B")),
    ],
)  # fmt: skip
def test_rccl(bench: Bench, answers: Tools, old: str, new: str, found: object) -> None:
    answers.replace("all_reduce_perf", old, new)
    assert failed(bench, "rccl") == [found]


def test_rccl_as_it_looks_without_a_check_of_values() -> None:
    line = "1073741824 268435456 float sum -1 5955.00 180.31 315.54 N/A 5961.00 180.13 315.22 N/A"
    found = tools.rccl(f"#   Rank  0 Pid 1\n  {line}\n# Out of bounds values : 0 OK\n")
    assert found == {"busbw": {1073741824: 315.22}, "wrong": 0, "ranks": 1, "ok": True}


# The data


def test_every_figure_says_where_it_is_from() -> None:
    for name, threshold in DATA["thresholds"].items():
        assert threshold["basis"], name
        assert threshold["unit"], name
        assert threshold["min"], name
    facts = [fact for fact in DATA["model"].values() if isinstance(fact, dict)]
    assert len(facts) >= 6
    assert all(fact["value"] and fact["basis"] for fact in facts)


def test_the_role_names_the_commands_that_the_module_runs(bench: Bench) -> None:
    defaults = yaml.safe_load((ROLE / "defaults/main.yml").read_text(encoding="utf-8"))
    assert set(defaults["gpu_health_commands"]) == set(COMMANDS)
    assert set(defaults["gpu_health_burn_tests"]) <= set(TESTS)
    renamed = replace(bench, commands={})
    with pytest.raises(KeyError):
        burn(renamed, "rvs")
