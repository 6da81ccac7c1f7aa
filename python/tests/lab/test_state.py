"""Locks and records."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from splitrail.lab import network, ssh
from splitrail.lab.files import write
from splitrail.lab.run import LabError
from splitrail.lab.spec import Lab, parse
from splitrail.lab.state import State, cache, locked, prune


def _lab(listing: dict[str, Any], **values: Any) -> Lab:
    for host in listing["_meta"]["hostvars"].values():
        host.update(values)
    return parse(Path("/srv/try/hosts.yml"), listing)


def test_one_command_at_a_time(tmp_path: Path) -> None:
    order: list[str] = []
    waits = threading.Event()

    def told(line: str) -> None:
        order.append(line)
        waits.set()

    def second() -> None:
        with locked("a", told, tmp_path):
            order.append("second")

    with locked("a", order.append, tmp_path) as path:
        thread = threading.Thread(target=second)
        thread.start()
        assert waits.wait(10)
        order.append("first")
        path.unlink()  # as `down` does: whoever waited must not go on with the removed file
    thread.join(10)
    assert order == ["Waiting for another command that works on a", "first", "second"]
    with locked("b", order.append, tmp_path):
        assert len(order) == 3


def test_claims(tmp_path: Path, listing: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPLITRAIL_CACHE", "/one")
    state = State("try", tmp_path)
    state.claim(_lab(listing))
    state.claim(_lab(listing))
    monkeypatch.setenv("SPLITRAIL_CACHE", "/two")
    with pytest.raises(LabError, match=r"stands on the cache /one, and SPLITRAIL_CACHE says /two"):
        state.claim(_lab(listing))
    monkeypatch.setenv("SPLITRAIL_CACHE", "/one")
    with pytest.raises(
        LabError, match=r"lab_network is 10\.66\.0\.0/16, and the lab stands on 10\.66\.0\.0/24"
    ):
        state.claim(_lab(listing, lab_network="10.66.0.0/16"))
    with pytest.raises(LabError, match="another inventory's lab is called `try`"):
        state.claim(_lab(listing, lab_network="10.66.0.0/24", ansible_ssh_private_key_file="/elsewhere/key"))


def test_a_standing_lab_keeps_its_kind(listing: dict[str, Any], tmp_path: Path) -> None:
    state = State("try", tmp_path)
    state.claim(_lab(listing))
    # One from before there were kinds is of containers.
    record = state.record() or {}
    del record["kind"]
    (state.folder / "lab.json").write_text(json.dumps(record))
    state.claim(_lab(listing))
    for host in listing["_meta"]["hostvars"].values():
        del host["lab_mounts"]
    with pytest.raises(LabError, match=r"lab_kind is vm, and the lab's nodes are of another kind.*lab down"):
        state.claim(_lab(listing, lab_kind="vm"))


@pytest.mark.parametrize("value", ["relative", "/with:colon", "/with,comma"])
def test_cache_that_overlayfs_cannot_name(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("SPLITRAIL_CACHE", value)
    with pytest.raises(LabError, match=r"SPLITRAIL_CACHE=.*set it to an absolute path"):
        cache()


def test_prune_stops_at_what_is_in_use(tmp_path: Path) -> None:
    deep = tmp_path / "top/a/b"
    deep.mkdir(parents=True)
    (tmp_path / "top/keep").write_text("")
    prune(deep, tmp_path / "top")
    assert [entry.name for entry in (tmp_path / "top").iterdir()] == ["keep"]


def test_write_replaces_a_link(tmp_path: Path) -> None:
    (tmp_path / "host").write_text("the host's\n")
    (tmp_path / "resolv.conf").symlink_to(tmp_path / "host")
    write(tmp_path / "resolv.conf", "the node's\n", mode=0o600)
    assert (tmp_path / "host").read_text() == "the host's\n"
    assert (tmp_path / "resolv.conf").read_text() == "the node's\n"
    assert (tmp_path / "resolv.conf").stat().st_mode & 0o777 == 0o600


def test_ip_forward_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setting, saved = tmp_path / "ip_forward", tmp_path / "saved"
    setting.write_text("1\n")
    monkeypatch.setattr(network, "_FORWARD", setting)
    network.restore_forward(saved)
    assert setting.read_text() == "1\n"
    saved.write_text("0\n")
    network.restore_forward(saved)
    assert setting.read_text() == "0\n"
    assert not saved.exists()


def test_keys_go_with_the_lab(tmp_path: Path, listing: dict[str, Any]) -> None:
    lab = _lab(listing, ansible_ssh_private_key_file=str(tmp_path / ".lab/try/id_ed25519"))
    ssh.ensure_key(lab)
    assert lab.key.stat().st_mode & 0o777 == 0o600
    before = lab.key.with_suffix(".pub").read_text().split()[:2]
    lab.key.with_suffix(".pub").unlink()
    ssh.ensure_key(lab)
    assert lab.key.with_suffix(".pub").read_text().split()[:2] == before
    ssh.write_known_hosts(lab, {lab.nodes[0]: "ssh-ed25519 AAAA root@n1"})
    assert lab.known_hosts.read_text() == "10.66.0.11,n1 ssh-ed25519 AAAA\n"
    ssh.remove(lab.key)
    assert not (tmp_path / ".lab").exists()
