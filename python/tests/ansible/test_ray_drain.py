"""Taking the work off a node, against a head whose answers a test writes down in order."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from splitrail.ansible.modules import splitrail_ray_drain
from splitrail.ansible.modules.splitrail_ray_drain import Refused, Stuck, drain

HEAD, NODE, OTHER = "10.0.0.11", "10.0.0.13", "10.0.0.12"
Json = dict[str, Any]


def answer(*at: str, wanted: int = 2, state: str = "RUNNING") -> Json:
    """What Serve says of an application whose engines are at these addresses."""
    replicas = [{"node_ip": address, "state": state} for address in at]
    return {
        "applications": {
            "llm-a": {
                "status": "RUNNING",
                "message": "",
                "deployments": {
                    "Engine": {
                        "status": "HEALTHY",
                        "message": "",
                        "target_num_replicas": wanted,
                        "replicas": replicas,
                    }
                },
            }
        }
    }


class Script:
    """A head with three nodes that gives one answer of Serve after the other, and the last one for ever."""

    def __init__(self, *answers: Json) -> None:
        self.answers = list(answers)
        self.offers = {HEAD: 0, OTHER: 2, NODE: 2}

    def nodes(self) -> list[Json]:
        return [
            {
                "node_ip": ip,
                "node_id": f"id-{ip}",
                "is_head_node": ip == HEAD,
                "resources_total": {"engine": engines},
            }
            for ip, engines in self.offers.items()
        ]

    def request(self, _method: str, _path: str) -> Json:
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands given to Ray, and a clock that only sleeping moves."""
    commands: list[list[str]] = []
    now = [0.0]
    monkeypatch.setattr(splitrail_ray_drain, "ask_ray", commands.append)
    monkeypatch.setattr(splitrail_ray_drain, "reasons", lambda *_: "(Serve says why)")
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    return commands


@pytest.fixture
def last_good(tmp_path: Path) -> Path:
    """Two engines run, each of one `engine`."""
    config = {
        "deployment_config": {"num_replicas": 2},
        "placement_group_config": {"bundles": [{"engine": 1}]},
    }
    path = tmp_path / "current.yaml"
    app = {"name": "llm-a", "route_prefix": "/a", "args": {"llm_config": config}}
    path.write_text(json.dumps({"applications": [app]}))
    return path


def given(last_good: Path, address: str = NODE) -> Json:
    return {
        "address": address,
        "gcs": f"{HEAD}:6379",
        "last_good": str(last_good),
        "engine": "podman",
        "timeout_s": 60,
    }


def test_it_waits_until_the_work_is_done_elsewhere(asked: list[list[str]], last_good: Path) -> None:
    head = Script(
        answer(OTHER, NODE),
        # The successor loads beside it, then the one that goes ends its requests.
        answer(OTHER, NODE, OTHER),
        answer(OTHER, OTHER, NODE),
        answer(OTHER, OTHER),
    )
    assert drain(head, given(last_good)) == {"Engine": 1}
    assert head.answers == [answer(OTHER, OTHER)]
    (command,) = asked
    assert command[:5] == ["/usr/bin/podman", "exec", "ray", "ray", "drain-node"]
    assert command[command.index("--node-id") + 1] == f"id-{NODE}"


def test_a_node_that_lost_its_replica_before_the_other_runs_is_not_done(
    asked: list[list[str]], last_good: Path
) -> None:
    head = Script(answer(OTHER, NODE), answer(OTHER), answer(OTHER))
    with pytest.raises(Stuck, match=r"still has nothing.*restart ray.*Serve says why"):
        drain(head, given(last_good))
    assert len(asked) == 1


def test_what_stays_is_named_when_the_time_is_over(asked: list[list[str]], last_good: Path) -> None:
    with pytest.raises(Stuck, match=r"after 60 s still has 1 of Engine"):
        drain(Script(answer(OTHER, NODE)), given(last_good))
    assert asked


def test_nothing_begins_where_the_others_have_no_room(asked: list[list[str]], last_good: Path) -> None:
    head = Script(answer(OTHER, NODE))
    head.offers[OTHER] = 1
    with pytest.raises(Refused, match=r"reserve 2 engine, the 2 live nodes offer 1.*smaller topology"):
        drain(head, given(last_good))
    with pytest.raises(Refused, match="is the head"):
        drain(head, given(last_good, HEAD))
    assert asked == []


def test_a_node_without_ray_has_no_work(asked: list[list[str]], last_good: Path) -> None:
    assert drain(Script(answer(OTHER)), given(last_good, "10.0.0.99")) == {}
    assert asked == []


def test_what_ray_refuses_is_told() -> None:
    with pytest.raises(Refused, match=r"sh -c .* ended with 3: no such node"):
        splitrail_ray_drain.ask_ray(["sh", "-c", "echo no such node >&2; exit 3"])
