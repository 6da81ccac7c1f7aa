"""Every way to deploy ends with replicas that have answered, before anything else gets its requests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
ROLE = ROOT / "roles/llm_serve/tasks"


def done(name: str) -> list[str]:
    """What a file of tasks does, in order: files that it includes, else the module."""
    found = []
    for task in yaml.safe_load((ROLE / name).read_text()):
        for key, value in task.items():
            if key.endswith(("import_tasks", "include_tasks")):
                found.append(value if isinstance(value, str) else str(value["file"]))
            elif "splitrail_" in key or key.startswith("ansible.builtin."):
                found.append(key)
    return found


@pytest.mark.parametrize(
    ("name", "deploys"),
    [
        ("main.yml", "configure.yml"),
        ("canary.yml", "splitrail_serve_slots"),
        ("slots.yml", "splitrail_serve_slots"),
    ],
)
def test_a_deploy_ends_warm(name: str, deploys: str) -> None:
    steps = done(name)
    assert steps.count("warm.yml") == 1
    assert steps.index(deploys) < steps.index("warm.yml")


def test_what_replicas_are_asked_is_the_module_and_its_verdict_counts() -> None:
    assert done("warm.yml") == ["splitrail_warm", "splitrail_verdict"]


def tasks_of(path: Path) -> list[dict[str, Any]]:
    """The tasks of a playbook's last play."""
    found: list[dict[str, Any]] = yaml.safe_load(path.read_text())[-1]["tasks"]
    return found


def test_requests_come_after_the_deploy() -> None:
    serve = [task["name"] for task in tasks_of(ROOT / "playbooks/serve.yml")]
    assert serve.index("Deploy the topology") < serve.index("Open the public entrance")
    start = next(task for task in tasks_of(ROOT / "playbooks/canary.yml") if task["name"] == "Start a canary")
    steps = [task["name"] for task in start["block"]]
    assert steps.index("Deploy the topology beside the live application") < steps.index(
        "Send it a part of the requests"
    )
