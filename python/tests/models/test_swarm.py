"""Nodes bring a model together: once from the source, whole or not at all, whatever fails on the way."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import asdict
from pathlib import Path

import pytest

import splitrail
from splitrail.ansible.module_utils.splitrail_models.folder import JOURNAL, MARK, is_whole, part_of
from tests.models.conftest import CHUNK_MIB, Fleet

CHUNK = int(CHUNK_MIB * 2**20)
UTILS = Path(splitrail.__file__).parent / "ansible/module_utils"


def test_every_node_has_the_model_and_the_source_gave_it_once(fleet: Fleet) -> None:
    fleet.run()
    assert fleet.errors == {}
    assert all(fleet.is_right(name) for name in fleet.nodes)
    given = {name: agent.server.served for name, agent in fleet.agents.items()}
    took = {name: agent.status for name, agent in fleet.agents.items()}
    assert sum(status.from_source for status in took.values()) == fleet.manifest.size
    assert fleet.hub.bytes == fleet.manifest.size
    assert all(status.from_source + status.from_peers == fleet.manifest.size for status in took.values())
    # Nobody carries the others: each gives out about what it takes from them.
    assert max(given.values()) < 1.5 * fleet.manifest.size


def test_a_file_that_is_not_wanted_stays_away_and_modes_let_engines_read(fleet: Fleet) -> None:
    fleet.run()
    names = {path.name for path in fleet.folder("n0").iterdir()}
    assert names == {file.path for file in fleet.manifest.files} | {MARK}
    assert all(
        stat.S_IMODE((fleet.folder("n0") / file.path).stat().st_mode) == 0o644
        for file in fleet.manifest.files
    )


def test_one_node_alone_with_the_source_feeds_all(fleet: Fleet) -> None:
    fleet.run(fetchers=["n2"])
    assert fleet.errors == {}
    assert all(fleet.is_right(name) for name in fleet.nodes)
    assert fleet.hub.bytes == fleet.manifest.size
    # It gives each chunk to the chunk's distributor, and is a distributor itself: no more.
    assert fleet.agents["n2"].server.served < 2 * fleet.manifest.size


def test_a_new_node_takes_nothing_from_the_source(fleet: Fleet) -> None:
    fleet.run("n0", "n1", fetchers=["n0", "n1"])
    fleet.end()
    before = fleet.hub.bytes
    fleet.hub.down = True
    fleet.run(seeds=["n0", "n1"], fetchers=[])
    assert fleet.errors == {}
    assert all(fleet.is_right(name) for name in fleet.nodes)
    assert fleet.hub.bytes == before


def test_a_node_that_is_not_there_is_passed_over(fleet: Fleet) -> None:
    fleet.run("n0", "n1", "n3")
    assert fleet.errors == {}
    assert all(fleet.is_right(name) for name in ("n0", "n1", "n3"))


def test_a_node_whose_source_does_not_answer_has_all_from_the_others(fleet: Fleet) -> None:
    nowhere = {**fleet.job("n1").source, "url": "http://127.0.0.1:9"}
    fleet.start("n1", source=nowhere)
    fleet.run()
    assert fleet.errors == {}
    assert fleet.is_right("n1")
    assert fleet.agents["n1"].status.from_source == 0


def test_without_a_source_each_node_gives_up_and_says_why(fleet: Fleet) -> None:
    fleet.hub.down = True
    fleet.run(stall_s=1)
    assert set(fleet.errors) == set(fleet.nodes)
    assert all("503" in why and "chunks are missing" in why for why in fleet.errors.values())
    assert not any(fleet.folder(name).exists() for name in fleet.nodes)


def test_an_altered_file_is_named_and_nothing_gets_the_models_name(fleet: Fleet) -> None:
    (fleet.hub.folder / "model-2.safetensors").write_bytes(
        bytes((fleet.hub.folder / "model-2.safetensors").stat().st_size)
    )
    fleet.run()
    assert set(fleet.errors) == set(fleet.nodes)
    assert all("model-2.safetensors" in why for why in fleet.errors.values())
    (wrong,) = fleet.agents["n0"].status.wrong
    assert wrong["path"] == "model-2.safetensors"
    assert wrong["wanted"] != wrong["found"]
    assert not fleet.folder("n0").exists()


def test_a_file_that_was_wrong_alone_is_fetched_again(fleet: Fleet, model: Path) -> None:
    right = (model / "model-2.safetensors").read_bytes()
    (model / "model-2.safetensors").write_bytes(bytes(len(right)))
    fleet.run()
    fleet.end()
    (model / "model-2.safetensors").write_bytes(right)
    before = fleet.hub.bytes
    fleet.run()
    assert fleet.errors == {}
    assert fleet.is_right("n3")
    assert fleet.hub.bytes - before == len(right)


def test_a_chunk_that_comes_altered_is_asked_for_again(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet.start("n0")
    real, lied = fleet.agents["n0"].part.digest, []

    def lie(index: int) -> str:
        if index not in lied:
            lied.append(index)
            return 64 * "0"
        return real(index)

    monkeypatch.setattr(fleet.agents["n0"].part, "digest", lie)
    fleet.run()
    assert lied
    assert fleet.errors == {}
    assert all(fleet.is_right(name) for name in fleet.nodes)


def test_what_was_replaced_is_kept_and_what_is_the_same_is_not_fetched(fleet: Fleet, model: Path) -> None:
    fleet.run()
    fleet.end()
    (model / "config.json").write_text('{"architectures": ["Other"]}')
    fleet.manifest = fleet.source.manifest(["*.json", "*.safetensors"])
    before = fleet.hub.bytes
    fleet.run()
    assert fleet.errors == {}
    assert fleet.hub.bytes - before == (model / "config.json").stat().st_size
    kept = [path.name for path in fleet.folder("n0").parent.iterdir() if path.name.startswith("tiny.was-")]
    assert len(kept) == 1


def test_a_folder_that_somebody_copied_there_is_taken_over(fleet: Fleet, model: Path) -> None:
    for name in fleet.nodes:
        fleet.folder(name).mkdir(parents=True)
        for file in fleet.manifest.files:
            (fleet.folder(name) / file.path).write_bytes((model / file.path).read_bytes())
    before = fleet.hub.bytes
    fleet.run()
    assert fleet.errors == {}
    assert all(is_whole(fleet.folder(name), fleet.manifest) for name in fleet.nodes)
    assert fleet.hub.bytes == before


def test_only_the_corrupt_file_is_fetched_anew(fleet: Fleet) -> None:
    fleet.run()
    fleet.end()
    path = fleet.folder("n1") / "model-1.safetensors"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    assert not is_whole(fleet.folder("n1"), fleet.manifest)
    fleet.run(seeds=["n0", "n2", "n3"], fetchers=[])
    assert fleet.errors == {}
    assert fleet.is_right("n1")
    assert fleet.agents["n1"].status.from_peers == len(content)
    assert [each.name for each in fleet.folder("n1").parent.iterdir()] == ["tiny"]


def test_bytes_that_changed_behind_the_stamp_are_found_by_reading(fleet: Fleet) -> None:
    fleet.run("n0", fetchers=["n0"])
    path = fleet.folder("n0") / "model-1.safetensors"
    was = path.stat()
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert is_whole(fleet.folder("n0"), fleet.manifest)
    assert not is_whole(fleet.folder("n0"), fleet.manifest, rehash=True)


@pytest.mark.parametrize(
    ("path", "token", "status"),
    [
        ("{manifest}/0", "", 401),
        ("{manifest}/0", "Bearer wrong", 401),
        ("{other}/0", "right", 409),
        ("{manifest}/99999", "right", 400),
        ("{manifest}/../../etc/passwd", "right", 400),
    ],
)
def test_a_stranger_gets_nothing(fleet: Fleet, path: str, token: str, status: int) -> None:
    fleet.run("n0", fetchers=["n0"])
    place = path.format(manifest=fleet.manifest.digest, other=64 * "0")
    sent = f"Bearer {fleet.job('n0').token}" if token == "right" else token  # noqa: S105  a word for it
    request = urllib.request.Request(
        f"http://127.0.0.2:{fleet.port}/{place}", headers={"Authorization": sent}
    )
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(request, timeout=5)  # noqa: S310  built above
    assert error.value.code == status


def test_it_listens_on_its_own_address_only(fleet: Fleet) -> None:
    agent = fleet.start("n0")
    assert agent.server.server_address == ("127.0.0.2", fleet.port)


def test_a_full_disk_is_an_error_before_anything_is_fetched(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        fleet.start("n0")
    assert fleet.hub.bytes == 0


def process(fleet: Fleet, name: str, **other: object) -> subprocess.Popen[bytes]:
    """An agent as a process, as on a node."""
    fleet.folder(name).parent.mkdir(parents=True, exist_ok=True)
    job = fleet.root / name / "job.json"
    job.write_text(json.dumps({**asdict(fleet.job(name)), **other}))
    environment = {"PYTHONPATH": str(UTILS), "PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "splitrail_models.agent", str(job)], env=environment, cwd=fleet.root
    )


def status(fleet: Fleet, name: str) -> dict[str, object]:
    """What a node's agent says of itself."""
    try:
        found: dict[str, object] = json.loads((fleet.root / name / "status.json").read_text())
    except (OSError, ValueError):
        return {}
    return found


def until(what: str, met: object, seconds: float = 40) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not met():  # type: ignore[operator]
        assert time.monotonic() < end, what
        time.sleep(0.05)


def test_a_kill_costs_no_more_than_what_was_on_its_way(fleet: Fleet) -> None:
    """Two nodes; one is killed in the middle, which is a sender and a receiver, and started again."""
    fleet.nodes = {name: fleet.nodes[name] for name in ("n0", "n1")}
    fleet.hub.rate = 250e3
    streams = 2
    # Nobody takes over what the killed node has yet to ask the source for: it is back before that.
    said = {"fetchers": ["n0", "n1"], "gone_s": 30}
    agents = {name: process(fleet, name, **said) for name in fleet.nodes}
    journal = part_of(fleet.folder("n1")) / JOURNAL

    def halfway() -> bool:
        return (
            journal.exists()
            and len(journal.read_text().splitlines()) > len(fleet.manifest.chunks(CHUNK)) // 2
        )

    try:
        until("half of the model on n1", halfway)
        agents["n1"].kill()
        agents["n1"].wait()
        had = len(journal.read_text().splitlines()) - 1
        agents["n1"] = process(fleet, "n1", **said)
        until("both done", lambda: all(status(fleet, each).get("state") == "done" for each in fleet.nodes))
    finally:
        for agent in agents.values():
            agent.terminate()
            agent.wait()
    assert all(fleet.is_right(name) for name in fleet.nodes)
    again = status(fleet, "n1")
    came = int(str(again["from_source"])) + int(str(again["from_peers"]))
    # Started again it took what its journal lacked, and nothing twice.
    assert came <= fleet.manifest.size - (had - streams) * CHUNK
    # Of the source as well.
    assert fleet.hub.bytes <= fleet.manifest.size + streams * CHUNK
    assert [agent.returncode for agent in agents.values()] == [0, 0]
