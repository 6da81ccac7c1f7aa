"""What splitrail_ray_node finds, against heads whose answers a test writes down in order."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from ansible.module_utils.splitrail_ray import RayError, RayRefused

from splitrail.ansible.modules import splitrail_ray_node
from splitrail.ansible.modules.splitrail_ray_node import last_words, look

ADDRESS = "10.0.0.12"
Node = dict[str, Any]


class Script:
    """A head that gives one answer after the other, and the last one for ever."""

    def __init__(self, *answers: list[Node] | Exception) -> None:
        self.answers = list(answers)
        self.asked = 0

    def nodes(self) -> list[Node]:
        self.asked += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def node(address: str = ADDRESS, pool: str = "prefill", amount: float = 8) -> Node:
    """A live node as Ray's state interface describes it."""
    return {"node_ip": address, "labels": {"pool": pool}, "resources_total": {pool: amount, "CPU": 2}}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No journal, and a clock that only sleeping moves."""
    now = [0.0]
    monkeypatch.setattr(splitrail_ray_node, "last_words", lambda unit: f"({unit} says why)")
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def sleep(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(time, "sleep", sleep)


def found(head: Script, **changed: Any) -> tuple[list[str], list[dict[str, Any]]]:
    """Names of the checks that were made, and those that failed."""
    wanted = {
        "address": ADDRESS,
        "labels": {"pool": "prefill"},
        "resources": {"prefill": 8},
        "members": [],
        "unit": "ray.service",
        "timeout_s": 10,
    }
    checks = look(head, {**wanted, **changed})
    return [one["name"] for one in checks], [one for one in checks if not one["ok"]]


def test_a_node_as_declared_passes_at_once() -> None:
    head = Script([node("10.0.0.11", "head"), node()])
    assert found(head) == (["cluster.node_alive", "cluster.label", "cluster.resource"], [])
    assert head.asked == 1


def test_a_node_that_comes_late_is_waited_for() -> None:
    head = Script(RayError("not yet"), [], [node()])
    assert found(head)[1] == []
    assert head.asked == 3


def test_the_node_before_a_restart_is_not_taken_for_the_one_after_it() -> None:
    head = Script([node(pool="decode")], [node(pool="decode"), node()], [node()])
    assert found(head)[1] == []
    assert head.asked == 3


def test_a_node_that_never_comes_fails_in_time_and_its_journal_says_why() -> None:
    head = Script([node("10.0.0.11")])
    names, bad = found(head)
    assert names == ["cluster.node_alive"]
    assert (bad[0]["measured"], bad[0]["subject"]) == ("not in the cluster", ADDRESS)
    assert bad[0]["hint"] == "Read `journalctl --unit ray.service`; its last lines: (ray.service says why)"
    assert head.asked == 12  # once a second, for 10 s


def test_a_refused_token_ends_the_wait_at_once() -> None:
    head = Script(RayRefused("the token is refused"))
    names, bad = found(head, members=[ADDRESS])
    assert head.asked == 1
    assert names == [one["name"] for one in bad] == ["cluster.node_alive", "cluster.no_strangers"]
    assert bad[0]["measured"] == "the token is refused"
    assert bad[1]["measured"] == "could not be checked: the token is refused"


def test_a_head_that_stops_answering_is_not_judged_by_what_it_said_before() -> None:
    _, bad = found(Script([node("10.0.0.11")], RayError("gone")))
    assert bad[0]["measured"] == "gone"


@pytest.mark.parametrize(
    ("live", "name", "measured"),
    [
        (node(pool="decode") | {"resources_total": {"prefill": 8}}, "cluster.label", "decode"),
        (node() | {"labels": {}}, "cluster.label", "none"),
        (node(amount=4), "cluster.resource", 4),
        (node() | {"resources_total": {}}, "cluster.resource", 0),
    ],
)
def test_what_differs_from_the_declaration_is_named(live: Node, name: str, measured: object) -> None:
    head = Script([live])
    _, bad = found(head)
    assert [(one["name"], one["measured"]) for one in bad] == [(name, measured)]
    assert head.asked == 12
    assert "Restart ray.service" in bad[0]["hint"]


def test_more_than_declared_is_enough() -> None:
    assert found(Script([node(amount=16)]))[1] == []


def test_strangers_are_named_where_members_are() -> None:
    nodes = [node("10.0.0.99", "x"), node(), node("10.0.0.98", "x"), node("10.0.0.99", "x")]
    _, bad = found(Script(nodes), members=[ADDRESS, "10.0.0.11"])
    assert [(one["name"], one["measured"]) for one in bad] == [
        ("cluster.no_strangers", "10.0.0.98, 10.0.0.99")
    ]
    assert found(Script(nodes), members=[])[1] == []
    assert found(Script(nodes), members=[ADDRESS, "10.0.0.98", "10.0.0.99"])[1] == []


def test_the_journal_is_short_and_its_absence_no_error(program: Callable[[str], None]) -> None:
    program("seq 100; echo 'x container start y'; printf '%0.s-' $(seq 500); echo; echo")
    assert last_words("ray.service") == f"98 | 99 | 100 | {300 * '-'}"
    program(":")
    assert last_words("ray.service") == "(nothing in the journal)"
    program("")
    assert last_words("ray.service").startswith("(no journal: ")


@pytest.fixture
def program(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Put a journalctl of this text on PATH; none for an empty one."""
    monkeypatch.setenv("PATH", str(tmp_path))
    path = tmp_path / "journalctl"

    def write(text: str) -> None:
        path.write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{text}\n" if text else "#!/no/such/interpreter\n")
        path.chmod(0o755)

    return write
