"""What the gate lets through, and every reason for which it does not."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from splitrail import proof
from splitrail.proof import Claim, Identity, Proof, ProofError
from splitrail.run.record import Run
from splitrail.verdict import Check, Verdict, verdict_file

NIC = {
    "rail": 0,
    "name": "rail0",
    "rdma_device": "mlx5_0",
    "pci": "0000:0c:00.0",
    "mac": "02:00:00:00:00:01",
    "guid": "0200:00ff:fe00:0001",
    "firmware": "28.43.1014",
}
NODES = ("a", "b")
IMAGE = "sha256:1234"


def identity(boot: str = "boot-1", **change: Any) -> dict[str, Any]:
    return {"boot_id": boot, "nics": [{**NIC, **change}]}


def file_verdict(run_dir: Path, verb: str, host: str, *, ok: bool = True, subject: str = "rail0") -> None:
    check = Check(name=f"{verb}.mtu", host=host, subject=subject, ok=ok, measured=1, required=1)
    Verdict.of([check]).save(verdict_file(run_dir, verb, host))


def prove(
    run_dir: Path, *verbs: str, transport: proof.Transport = "rdma", failing: str = "", cluster: str = "c"
) -> None:
    """A run of these verbs on both nodes."""
    for verb in verbs or ("fabric", "validate"):
        image = IMAGE if verb == "validate" else None
        proof.begin(run_dir, verb, cluster, transport, image)
        for host in NODES:
            subject = "rail0" if transport == "rdma" else f"{proof.TCP_SUBJECT} (declared), a -> b"
            file_verdict(run_dir, verb, host, ok=host != failing, subject=subject)
        proof.conclude(run_dir, verb, NODES, dict.fromkeys(NODES, identity()))


def claim(**change: Any) -> Claim:
    wanted: dict[str, Any] = {
        "cluster": "c",
        "transport": "rdma",
        "hosts": NODES,
        "identities": dict.fromkeys(NODES, identity()),
        "image": IMAGE,
        "max_age": timedelta(hours=24),
        **change,
    }
    return Claim(**wanted)


def refused(run_dir: Path, wanted: Claim, **options: Any) -> list[str]:
    """What the gate says no to: name, host, and what was found."""
    checks = proof.judge(run_dir, wanted, "a", **options)
    assert checks
    for check in checks:
        assert check.ok or check.hint, check
    return [f"{check.name} {check.host}: {check.measured}" for check in checks if not check.ok]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "runs/20261121T100000Z"
    folder.mkdir(parents=True)
    return folder


def test_a_proven_fabric_is_let_through(run_dir: Path) -> None:
    prove(run_dir)
    assert refused(run_dir, claim()) == []


def test_a_later_run_finds_the_proof_of_an_earlier_one(run_dir: Path) -> None:
    prove(run_dir)
    assert refused(run_dir.parent / "20261121T110000Z", claim()) == []


def test_nothing_proven(run_dir: Path) -> None:
    assert refused(run_dir, claim()) == [
        "gate.proof a: none in the run records",
        "gate.proof a: none in the run records",
    ]


def test_the_proof_of_another_cluster_counts_for_nothing(run_dir: Path) -> None:
    prove(run_dir, cluster="other")
    assert len(refused(run_dir, claim())) == len(proof.VERBS["rdma"])


def test_a_failed_host_is_named_with_its_check(run_dir: Path) -> None:
    prove(run_dir, failing="b")
    found = refused(run_dir, claim())
    assert found[0] == f"gate.verdict a: not ok in {run_dir.name}: b: fabric.mtu (rail0)"


def test_the_newest_proof_counts_also_when_it_is_the_worse_one(run_dir: Path) -> None:
    prove(run_dir)
    later = run_dir.parent / "20261121T110000Z"
    proof.begin(later, "fabric", "c", "rdma")
    assert refused(run_dir, claim()) == [
        f"gate.verdict a: not ok in {later.name}: the run broke off before its end",
        "gate.hosts a: a is not in it",
        "gate.hosts b: b is not in it",
    ]


def test_a_proof_grows_old(run_dir: Path) -> None:
    prove(run_dir)
    late = datetime.now(UTC) + timedelta(hours=25)
    assert refused(run_dir, claim(), now=late) == ["gate.age a: 25.0 h", "gate.age a: 25.0 h"]


def test_a_proof_of_the_future_is_none(run_dir: Path) -> None:
    prove(run_dir)
    early = datetime.now(UTC) - timedelta(hours=1)
    assert [line.partition(":")[0] for line in refused(run_dir, claim(), now=early)] == 2 * ["gate.age a"]


def test_tcp_proves_nothing_for_rdma(run_dir: Path) -> None:
    prove(run_dir, transport="tcp")
    assert refused(run_dir, claim()) == 2 * ["gate.transport a: tcp"]


def test_a_declared_tcp_needs_the_fabric_alone(run_dir: Path) -> None:
    prove(run_dir, "fabric", transport="tcp")
    assert refused(run_dir, claim(transport="tcp")) == []


def test_a_measurement_over_tcp_cannot_become_a_proof_of_rdma(run_dir: Path) -> None:
    proof.begin(run_dir, "fabric", "c", "rdma")
    file_verdict(run_dir, "fabric", "a", subject="transport: tcp (declared), a -> b")
    made = proof.conclude(run_dir, "fabric", ["a"], {"a": identity()})
    assert not made.ok
    assert made.problems == ("a: was measured over TCP, and RDMA is declared",)


def test_a_host_that_was_not_there(run_dir: Path) -> None:
    prove(run_dir)
    Run(verb="fabric", started=datetime.now(UTC), inventory=[], limit="a,b").save(run_dir)
    found = refused(run_dir, claim(hosts=("a", "b", "new")))
    assert found == 2 * ["gate.hosts new: new is not in it: that run was limited to a,b"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"mac": "02:00:00:00:00:99"}, "mac 02:00:00:00:00:99"),
        ({"pci": "0000:0d:00.0"}, "pci 0000:0d:00.0"),
        ({"guid": "ffff"}, "guid ffff"),
        ({"firmware": "28.44.0000"}, "firmware 28.44.0000"),
        ({"rdma_device": ""}, "rdma_device none"),
        ({"rdma_device": "mlx5_7", "name": "eth7"}, "name eth7, rdma_device mlx5_7"),
    ],
)
def test_a_nic_that_changed(run_dir: Path, change: dict[str, Any], says: str) -> None:
    prove(run_dir)
    now = {"a": identity(), "b": identity(**change)}
    assert refused(run_dir, claim(identities=now)) == 2 * [f"gate.nic b: {says}"]


def test_a_nic_that_is_gone_and_one_that_is_new(run_dir: Path) -> None:
    prove(run_dir)
    now = {"a": identity(), "b": identity(rail=1)}
    found = refused(run_dir, claim(identities=now))
    assert found == 2 * ["gate.nic b: gone", "gate.nic b: present"]


def test_a_host_without_any_nic_now(run_dir: Path) -> None:
    prove(run_dir)
    now = {"a": identity(), "b": {"boot_id": "boot-1", "nics": []}}
    found = refused(run_dir, claim(identities=now))
    assert [line[:27] for line in found] == 2 * ["gate.nic b: not known now: "]


def test_a_reboot(run_dir: Path) -> None:
    prove(run_dir)
    now = {"a": identity(), "b": identity("boot-2")}
    assert refused(run_dir, claim(identities=now)) == 2 * ["gate.boot b: rebooted since"]


def test_another_image(run_dir: Path) -> None:
    prove(run_dir)
    assert refused(run_dir, claim(image="sha256:9")) == [f"gate.image a: {IMAGE}"]


def test_a_broken_file_hides_no_other_and_proves_nothing(run_dir: Path) -> None:
    prove(run_dir)
    broken = run_dir.parent / "20261121T120000Z/proofs/fabric.json"
    broken.parent.mkdir(parents=True)
    broken.write_text("{")
    assert refused(run_dir, claim()) == []


# What makes a proof.


def _no_verdict(run_dir: Path) -> None:
    verdict_file(run_dir, "fabric", "a").unlink()


def _old_verdict(run_dir: Path) -> None:
    os.utime(verdict_file(run_dir, "fabric", "a"), (1e9, 1e9))


def _broken_verdict(run_dir: Path) -> None:
    verdict_file(run_dir, "fabric", "a").write_text("{}")


@pytest.mark.parametrize(
    ("breaks", "says"),
    [
        (_no_verdict, "a: no verdict"),
        (_old_verdict, "a: its verdict is older than this run"),
        (_broken_verdict, "a: "),
    ],
)
def test_what_proves_nothing(run_dir: Path, breaks: Callable[[Path], None], says: str) -> None:
    proof.begin(run_dir, "fabric", "c", "rdma")
    file_verdict(run_dir, "fabric", "a")
    breaks(run_dir)
    made = proof.conclude(run_dir, "fabric", ["a"], {"a": identity()})
    assert not made.ok
    assert made.problems[0].startswith(says)


def test_a_host_whose_nics_nobody_looked_at(run_dir: Path) -> None:
    proof.begin(run_dir, "fabric", "c", "rdma")
    file_verdict(run_dir, "fabric", "a")
    made = proof.conclude(run_dir, "fabric", ["a"], {})
    assert made.problems == ("a: its NICs were not looked at",)
    assert not proof.conclude(run_dir, "fabric", [], {}).ok


def test_nothing_is_concluded_that_was_not_begun(run_dir: Path) -> None:
    with pytest.raises(ProofError, match="never begun"):
        proof.conclude(run_dir, "fabric", ["a"], {"a": identity()})


def test_the_file_is_what_others_read(run_dir: Path) -> None:
    prove(run_dir)
    document = json.loads((run_dir / "proofs/validate.json").read_text())
    assert document["verb"] == "validate"
    assert document["ok"] is True
    assert document["transport"] == "rdma"
    assert document["image"] == IMAGE
    assert document["hosts"]["a"] == identity()
    assert Proof.model_validate(document).hosts["a"] == Identity.model_validate(identity())


# Waivers.


def test_a_waiver_opens_the_gate_and_stays_in_the_record(run_dir: Path) -> None:
    checks = proof.judge(run_dir, claim(), "a")
    made = proof.waive(run_dir, "switch\n is replaced tonight", what="ray_cluster", host="a", refused=checks)
    assert all(check.ok for check in made)
    assert "WAIVED (switch is replaced tonight): none in the run records" in str(made[0])
    kept = json.loads((run_dir / "waivers/ray_cluster/a.json").read_text())
    assert kept["reason"] == "switch is replaced tonight"
    assert len(kept["refused"]) == len(checks)
    (line,) = proof.waived(run_dir)
    assert "ray_cluster on a was started WITHOUT A PROOF" in line
    assert "switch is replaced tonight" in line


@pytest.mark.parametrize("reason", ["", "   ", "yes", "just because"])
def test_a_waiver_without_a_reason_is_none(run_dir: Path, reason: str) -> None:
    with pytest.raises(ProofError, match="needs its reason in words"):
        proof.waive(run_dir, reason, what="ray_cluster", host="a", refused=[])
    assert not (run_dir / "waivers").exists()


def test_a_run_without_waivers_says_nothing(run_dir: Path) -> None:
    assert proof.waived(run_dir) == []
