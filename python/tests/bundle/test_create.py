"""`bundle create`: all of it, nothing half, everything that is missing at once, and on where it stopped."""

from __future__ import annotations

import os
import subprocess
import threading
from collections import namedtuple
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar

import httpx
import pytest

from splitrail.bundle import manifest, signing
from splitrail.bundle.create import Watcher, left_out
from splitrail.bundle.fetch import Wanted, fetch_all
from splitrail.bundle.manifest import BundleError
from splitrail.bundle.store import Store, digest_of
from splitrail.release import load as load_release
from tests.bundle.conftest import LOCK, ROOT, World, make_index, make_wheel

FAR_PAST = "20200101T000000"


def blobs(world: World) -> int:
    return len(list(Store(world.out).blobs()))


def refused(world: World, code: int = 1) -> str:
    """What it says when it refuses; nothing that could be taken for a bundle is there then."""
    with pytest.raises(BundleError) as caught:
        world.create()
    assert caught.value.code == code
    assert not (world.out / manifest.NAME).exists()
    return str(caught.value)


def test_a_bundle_holds_what_is_needed_and_what_that_needs(world: World) -> None:
    made = world.create()
    # `apt` by its priority, as mmdebstrap would install it; `library` because `tool` depends on it.
    assert {deb.name for deb in made.of("deb")} == {"tool", "library", "apt"}
    assert sorted(f"{wheel.name}=={wheel.version}" for wheel in made.of("wheel")) == LOCK
    for artifact in made.artifacts:
        path = Store(world.out).blob(artifact.sha256)
        assert digest_of(path) == artifact.sha256
        assert path.stat().st_size == artifact.bytes
    assert manifest.load(world.out) == made
    assert not (world.out / "partial").exists()
    finding = signing.examine(world.out / manifest.NAME, world.out / manifest.SIGNATURE, world.key.public)
    assert finding.fault == ""


def test_a_second_time_fetches_nothing(made: World) -> None:
    class Count(Watcher):
        total = 0

        def arrived(self, count: int) -> None:
            self.total += count

    count = Count()
    before = blobs(made)
    made.create(count)
    assert count.total == 0
    # But for InRelease and signatures, which bear the time.
    assert blobs(made) == before


def test_the_secret_key_is_its_owners_and_not_in_the_bundle(made: World) -> None:
    assert made.key.secret.stat().st_mode & 0o777 == 0o600
    secret = made.key.secret.read_text(encoding="utf-8").splitlines()[3]
    assert all(secret.encode() not in path.read_bytes() for path in made.out.rglob("*") if path.is_file())


def test_what_a_bundle_does_not_hold_is_said() -> None:
    folder = ROOT / "inventories/releases"
    assert left_out(load_release(folder / "cpu.yml")) == []
    said = " ".join(left_out(load_release(folder / "mi325x-rocm7.0.yml")))
    for part in ("release.host", "Containerfile", "3.12.12"):
        assert part in said


# Bad inputs


def test_all_that_is_missing_is_told_at_once_and_nothing_is_fetched(world: World) -> None:
    world.host = world.host.model_copy(
        update={"packages": ["tool", "no-tool"], "base_packages": ["no-library"]}
    )
    world.release["wheels"] = [*LOCK, "gone==1.0", "lost==2.0"]
    world.host = world.host.model_copy(update={"model": "owner/big-model"})
    said = refused(world)
    for name in (
        "package no-tool",
        "package no-library",
        "wheel gone==1.0",
        "wheel lost==2.0",
        "model owner/big",
    ):
        assert name in said
    assert "Nothing was fetched" in said
    assert blobs(world) == 0


def test_a_wheel_of_another_checksum_than_its_index_says(world: World) -> None:
    world.wheels[1].write_bytes(world.wheels[1].read_bytes() + b"x")
    said = refused(world)
    assert "ray" in said


def test_a_wheel_of_another_checksum_than_the_release_pins(world: World) -> None:
    world.release |= {"wheel_sha256": dict.fromkeys(LOCK, "ab" * 32), "unpinned": []}
    said = refused(world)
    assert "the release pins abab" in said
    assert blobs(world) == 0


def test_a_package_of_another_checksum_than_its_archive_says(world: World) -> None:
    pool = next((world.root / "archive/pool").glob("tool_*"))
    pool.write_bytes(b"x" * pool.stat().st_size)
    said = refused(world)
    assert "sha256" in said and "tool_" in said
    # What was right is kept for the next time, what was wrong is not.
    assert blobs(world) > 0
    assert not any(path.read_bytes().startswith(b"xxx") for path in Store(world.out).blobs())


def test_an_archive_without_signature(world: World) -> None:
    (world.root / "archive/dists/bookworm/InRelease").unlink()
    said = refused(world)
    assert "not signed" in said or "no longer" in said or "Release file" in said


def test_an_archive_signed_by_another_key(world: World) -> None:
    other = signing.Key(world.root / "other")
    other.ensure()
    sources = world.sources
    world.archive_key = other
    world.sign()
    world.archive_key = signing.Key(world.root / "archive-key")
    assert world.sources == sources
    assert "NO_PUBKEY" in refused(world)


def expired(folder: Path, monkeypatch: pytest.MonkeyPatch) -> signing.Key:
    """A key whose two years are over: made with the clock set back."""
    key = signing.Key(folder)
    whole = signing._run

    def past(home: Path, arguments: list[str], stdin: bytes | None) -> subprocess.CompletedProcess[bytes]:
        return whole(home, ["--faked-system-time", FAR_PAST, *arguments], stdin)

    with monkeypatch.context() as patch:
        patch.setattr(signing, "_run", past)
        key.ensure()
    return key


def test_an_archive_with_an_expired_key(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.archive_key = expired(world.root / "expired", monkeypatch)
    whole = signing._run
    with monkeypatch.context() as patch:
        patch.setattr(
            signing,
            "_run",
            lambda home, arguments, stdin: whole(home, ["--faked-system-time", FAR_PAST, *arguments], stdin),
        )
        patch.setattr("splitrail.bundle.signing.time.time", lambda: 0.0)
        world.sign()
    said = refused(world)
    assert "EXPKEYSIG" in said or "expired" in said.lower()


def test_an_expired_signing_key_is_refused_before_anything_is_fetched(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.key = expired(world.root / "expired", monkeypatch)
    said = refused(world, code=2)
    assert "expired on 2021-12-31" in said
    assert blobs(world) == 0


def test_an_archive_that_is_not_there(world: World) -> None:
    (world.root / "archive").rename(world.root / "moved")
    said = refused(world)
    assert f"{world.root}/archive" in said


def test_a_full_disk_is_seen_before_the_first_byte(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("splitrail.bundle.store.shutil.disk_usage", lambda _: usage(100, 100, 0))
    said = refused(world, code=2)
    assert "are free" in said and "Nothing was fetched" in said
    assert blobs(world) == 0


def test_a_disk_that_fills_up_meanwhile(world: World) -> None:
    digest = digest_of(world.wheels[0])
    part = Store(world.out).partial(digest)
    part.parent.mkdir(parents=True)
    part.symlink_to("/dev/full")
    said = refused(world, code=2)
    assert "the disk is full" in said
    assert not Store(world.out).has(digest)
    part.unlink()
    world.create()


def test_two_at_once(world: World) -> None:
    with Store(world.out).locked():
        assert "another `bundle create`" in refused(world, code=2)


def test_a_release_whose_wheels_are_not_locked(world: World) -> None:
    world.release["wheels_locked"] = False
    world.release["unpinned"] = [{"part": "wheels", "why": "not yet", "cure": "lock them"}]
    assert "not locked" in refused(world)


# Downloads


class Flaky(BaseHTTPRequestHandler):
    """A server with ranges that hangs up in the middle of the first answer."""

    content = os.urandom(300_000)
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        asked = self.headers.get("Range", "")
        Flaky.asked.append(asked)
        begin = int(asked.removeprefix("bytes=").rstrip("-") or 0)
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(self.content) - begin))
        self.end_headers()
        self.wfile.write(
            self.content[begin : begin + 100_000] if len(Flaky.asked) == 1 else self.content[begin:]
        )

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_half_a_download_goes_on_where_it_stopped(tmp_path: Path) -> None:
    server = HTTPServer(("127.0.0.1", 0), Flaky)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Flaky.asked.clear()
    (tmp_path / "x").write_bytes(Flaky.content)
    digest = digest_of(tmp_path / "x")
    url = f"http://127.0.0.1:{server.server_port}/x"
    store = Store(tmp_path / "bundle")
    counted: list[int] = []
    with httpx.Client(trust_env=False) as http:
        assert fetch_all([Wanted("x", url, digest)], store, http, counted.append) == []
    server.shutdown()
    assert store.blob(digest).read_bytes() == Flaky.content
    assert Flaky.asked == ["", "bytes=100000-"]
    assert sum(counted) == len(Flaky.content)


def test_what_an_earlier_run_left_and_was_damaged_since_is_fetched_anew(world: World) -> None:
    digest = digest_of(world.wheels[0])
    part = Store(world.out).partial(digest)
    part.parent.mkdir(parents=True)
    part.write_bytes(b"damaged")
    world.create()
    assert Store(world.out).has(digest)


def test_a_source_that_cannot_be_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("splitrail.bundle.fetch.ATTEMPTS", 1)
    with httpx.Client(trust_env=False) as http:
        wanted = [Wanted(name, f"http://127.0.0.1:9/{name}", "ab" * 32) for name in ("one", "two")]
        faults = fetch_all(wanted, Store(tmp_path), http, lambda _: None)
    assert len(faults) == 2
    assert all("cannot be reached" in fault for fault in faults)


def test_an_interrupt_keeps_what_came(world: World) -> None:
    class Impatient(Watcher):
        def step(self, what: str) -> None:
            if what.startswith("model"):
                raise KeyboardInterrupt

    model = world.root / "big"
    model.mkdir()
    (model / "weights").write_bytes(b"w")
    world.models = (model,)
    with pytest.raises(KeyboardInterrupt):
        world.create(Impatient())
    assert not (world.out / manifest.NAME).exists()
    kept = blobs(world)
    assert kept > 0
    made = world.create()
    assert [one.path for one in made.of("model")] == ["models/big/weights"]


# Git


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=T", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main"]
    try:
        done = subprocess.run(
            ["git", *identity, "-C", folder, *arguments], check=True, capture_output=True, text=True
        )
    except subprocess.CalledProcessError as error:
        error.add_note(error.stderr)
        raise
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "upstream/owner/project.git"
    folder.mkdir(parents=True)
    git(folder, "init", "--quiet")
    git(folder, "config", "uploadpack.allowAnySHA1InWant", "true")
    (folder / "configure").write_text("one", encoding="utf-8")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "one")
    git(folder, "tag", "v1")
    return folder


def with_source(world: World, url: str, commit: str) -> None:
    world.host = world.host.model_copy(update={"sources": {"project": {"url": url, "commit": commit}}})


def test_a_source_is_taken_at_its_commit_though_its_tag_moved(world: World, repository: Path) -> None:
    pinned = git(repository, "rev-parse", "HEAD")
    (repository / "configure").write_text("two", encoding="utf-8")
    git(repository, "commit", "--quiet", "--all", "-m", "two")
    git(repository, "tag", "--force", "v1")
    with_source(world, repository.as_uri(), pinned)
    made = world.create()
    assert {one.version for one in made.of("git")} == {pinned}
    assert sorted(Path(one.path).suffix for one in made.of("git")) == ["", ".idx", ".pack"]


def test_a_short_commit_is_looked_up(world: World, repository: Path) -> None:
    pinned = git(repository, "rev-parse", "HEAD")
    with_source(world, repository.as_uri(), pinned[:8])
    assert {one.version for one in world.create().of("git")} == {pinned}


@pytest.mark.parametrize("commit", ["ab" * 20, "abcdef12"])
def test_a_commit_that_is_not_there(world: World, repository: Path, commit: str) -> None:
    with_source(world, repository.as_uri(), commit)
    assert f"there is no commit {commit}" in refused(world)


def test_a_repository_that_cannot_be_reached(world: World) -> None:
    with_source(world, f"file://{world.root}/nowhere", "ab" * 20)
    said = refused(world)
    assert "cannot be fetched" in said and "nowhere" in said


def test_a_wheel_that_only_another_python_has(world: World) -> None:
    wheel = make_wheel(world.root / "more", "only-new", "1.0")
    renamed = wheel.rename(wheel.with_name("only_new-1.0-cp313-cp313-manylinux_2_17_x86_64.whl"))
    make_index(world.root / "index", [renamed])
    world.release["wheels"] = [*LOCK, "only-new==1.0"]
    assert "wheel only-new==1.0: no index of this machine has it for Python 3.11" in refused(world)
