"""The table of what differs, from verdicts as the role files them."""

from __future__ import annotations

from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from splitrail.fabric.drift import Row, document, judge, rows, show
from splitrail.run.execute import COULD_NOT_RUN, FAILED, OK
from splitrail.verdict import Check, Verdict


def check(name: str, subject: str, *, ok: bool = True, measured: Any = 1, required: Any = 1) -> Check:
    return Check(
        name=f"roce_nic.{name}",
        host="node-1",
        subject=subject,
        ok=ok,
        measured=measured,
        required=required,
        unit="",
        hint=f"Mend {name}.",
    )


def found(*checks: Check) -> list[Row]:
    return rows(Verdict.of(checks))


def shown(*checks: Check) -> str:
    stream = StringIO()
    show(found(*checks), Console(file=stream, width=160))
    return stream.getvalue()


GOOD = (
    check("mtu", "rail0"),
    check("mtu", "rail10"),
    check("mtu", "rail2"),
    check("firmware", "rail0 0000:0c:00.0 ATS_ENABLED"),
    check("sysctl", "net.ipv4.conf.rail2.arp_ignore"),
    check("rule", "rail2 from 10.30.2.0"),
    check("acs", "PCI bridges"),
)


def test_a_row_a_nic_in_their_order_and_the_node_last() -> None:
    made = found(*GOOD)
    assert [row.nic for row in made] == ["rail0", "rail2", "rail10", "node"]
    assert [sorted(row.settings) for row in made] == [
        ["ATS_ENABLED", "mtu"],
        ["arp_ignore", "mtu", "rule"],
        ["mtu"],
        ["acs (PCI bridges)"],
    ]


def test_without_drift_nothing_is_drawn() -> None:
    text = shown(*GOOD)
    assert "declared 1" not in text
    assert "3 NICs: no drift (7 settings compared)" in text
    assert "ATS_ENABLED, acs (PCI bridges), arp_ignore, mtu, rule" in text


def test_what_differs_stands_beside_what_is_declared_with_its_cure() -> None:
    text = shown(
        *GOOD,
        check("pfc", "rail0", ok=False, measured=[], required=[3]),
        check("pfc", "rail2"),
        check("firmware", "rail2 0000:0d:00.0 CNP_DSCP_P1", ok=False, measured="pending: 48, next boot 4"),
    )
    assert "none" in text
    assert "declared 3" in text
    assert "pending: 48, next boot 4" in text
    assert "node-1 rail0: Mend pfc." in text
    assert "node-1 rail2: Mend firmware." in text
    assert "rail10" not in text
    assert "3 NICs: 2 of 10 settings differ" in text


def test_the_document() -> None:
    made = document(found(check("mtu", "rail0"), check("pfc", "rail0", ok=False, measured=[], required=[3])))
    assert made == [
        {
            "host": "node-1",
            "nic": "rail0",
            "as_declared": 1,
            "differs": [{"setting": "pfc", "declared": [3], "actual": [], "hint": "Mend pfc."}],
        }
    ]


@pytest.mark.parametrize(
    ("code", "made", "judged"),
    [(OK, found(*GOOD), OK), (FAILED, found(*GOOD), FAILED), (OK, [], COULD_NOT_RUN), (FAILED, [], FAILED)],
)
def test_a_run_that_compared_nothing_proves_nothing(code: int, made: list[Row], judged: int) -> None:
    assert judge(code, made) == judged
