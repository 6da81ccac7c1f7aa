"""Prometheus' rules as the role writes them, their own tests by promtool, and the dashboards' queries."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml

ROOT = Path(__file__).parents[3]
ROLE = ROOT / "roles/monitoring"
TESTS = ROOT / "molecule/monitoring/files/rules_test.yml"
DASHBOARDS = sorted((ROOT / "templates/dashboards").glob("*.json"))
VARIABLES = {
    **yaml.safe_load((ROLE / "defaults/main.yml").read_text()),
    "ansible_managed": "managed",
    "monitoring_address": "10.0.0.1",
    "monitoring_nodes": {"b": "10.0.0.2", "a": "10.0.0.1"},
    "monitoring_targets": {"ingress": ["127.0.0.1:8405"], "amd": []},
    "monitoring_ttft_s": 1.0,
    "monitoring_tpot_s": 0.05,
}


def render(name: str, **change: Any) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ROLE / "templates"),
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # noqa: S701  # YAML, not HTML
        keep_trailing_newline=True,
    )
    environment.filters["to_json"] = json.dumps
    return environment.get_template(f"{name}.yml.j2").render({**VARIABLES, **change})


def rules(name: str, **change: Any) -> list[dict[str, Any]]:
    groups = yaml.safe_load(render(name, **change))["groups"]
    return [rule for group in groups for rule in group["rules"]]


@pytest.fixture
def promtool() -> str:
    """Prometheus' own tool, which the scenario `monitoring` runs too."""
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not installed here (Debian: prometheus); the scenario monitoring runs it")
    return found


def test_promtool_takes_the_rules_and_their_tests_pass(promtool: str, tmp_path: Path) -> None:
    for name in ("recording", "alerts"):
        (tmp_path / f"{name}.yml").write_text(render(name))
    shutil.copy(TESTS, tmp_path)
    command = [promtool, "test", "rules", TESTS.name]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_sees_a_rule_that_does_not_fire(promtool: str, tmp_path: Path) -> None:
    (tmp_path / "recording.yml").write_text(render("recording"))
    (tmp_path / "alerts.yml").write_text(render("alerts").replace("expr: up == 0", "expr: up == 7"))
    shutil.copy(TESTS, tmp_path)
    command = [promtool, "test", "rules", TESTS.name]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "ExporterDown" in done.stdout + done.stderr


def test_every_alert_has_a_firing_and_a_silent_case() -> None:
    cases: dict[str, set[bool]] = {}
    for test in yaml.safe_load(TESTS.read_text())["tests"]:
        for one in test["promql_expr_test"]:
            if named := re.search(r'alertname="(\w+)"', one["expr"]):
                cases.setdefault(named[1], set()).add(bool(one["exp_samples"]))
    alerts = [rule["alert"] for rule in rules("alerts")]
    assert len(alerts) == len(set(alerts))
    assert cases == {name: {True, False} for name in alerts}


def test_every_alert_says_what_and_how() -> None:
    for rule in rules("alerts"):
        assert rule["labels"]["severity"] in {"page", "ticket"}, rule["alert"]
        assert rule["annotations"].keys() == {"summary", "cure"}, rule["alert"]


def test_an_inventory_chooses_its_alerts() -> None:
    over_tcp = {rule["alert"] for rule in rules("alerts", monitoring_transport="tcp")}
    assert {rule["alert"] for rule in rules("alerts")} - over_tcp == {"TransfersWithoutRdma"}
    without = rules("alerts", monitoring_ttft_s=0, monitoring_tpot_s=0)
    assert not [rule["alert"] for rule in without if "Missed" in rule["alert"]]
    strict = {rule["alert"]: rule["expr"] for rule in rules("alerts", monitoring_objective=0.99)}
    assert "> 0.05" in strict["TtftMissedFast"]


def recorded() -> set[str]:
    return {rule["record"] for rule in rules("recording")}


def test_alerts_use_rules_that_are_recorded() -> None:
    for rule in [*rules("alerts"), *rules("recording")]:
        used = set(re.findall(r"splitrail:[a-z0-9_:]*[a-z0-9]", rule["expr"]))
        assert used <= recorded(), rule


def test_targets_are_those_of_the_inventory() -> None:
    jobs = {
        job["job_name"]: job["static_configs"]
        for job in yaml.safe_load(render("prometheus"))["scrape_configs"]
    }
    assert jobs["node"] == [
        {"targets": ["10.0.0.1:9100"], "labels": {"host": "a"}},
        {"targets": ["10.0.0.2:9100"], "labels": {"host": "b"}},
    ]
    assert jobs["ray"][1]["targets"] == ["10.0.0.2:8080"]
    assert jobs["ingress"] == [{"targets": ["127.0.0.1:8405"]}]
    assert "amd" not in jobs


def queries(panels: list[dict[str, Any]]) -> Iterator[str]:
    for panel in panels:
        for target in panel.get("targets", []):
            yield target["expr"]


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.name)
def test_a_dashboard_asks_for_what_is_recorded(path: Path) -> None:
    dashboard = json.loads(path.read_text())
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for query in queries(panels):
        used = set(re.findall(r"splitrail:[a-z0-9_:]*[a-z0-9]", query))
        assert used, f"{path.name}: {query}: ask for a recorded rule"
        assert used <= recorded(), f"{path.name}: {query}"


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.name)
def test_promtool_takes_a_dashboards_queries(path: Path, promtool: str, tmp_path: Path) -> None:
    asked = [query.replace("$application", ".*") for query in queries(json.loads(path.read_text())["panels"])]
    group = {"name": "g", "rules": [{"record": f"r{at}", "expr": query} for at, query in enumerate(asked)]}
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [group]}))
    done = subprocess.run(
        [promtool, "check", "rules", "rules.yml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_there_are_dashboards() -> None:
    assert {path.name for path in DASHBOARDS} == {"serving.json", "kv.json"}
