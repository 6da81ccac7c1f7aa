"""Folders of this host on disks that VM nodes read."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from rich.console import Console

from splitrail.lab import share
from splitrail.lab.report import Reporter
from splitrail.lab.run import LabError

pytestmark = pytest.mark.skipif(
    shutil.which("mkfs.ext4") is None, reason="e2fsprogs is installed where VM nodes are used"
)


@pytest.fixture
def reporter() -> Reporter:
    return Reporter(Console(file=io.StringIO()))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    (folder / "layers").mkdir(parents=True)
    (folder / "layers/one").write_bytes(os.urandom(3 << 20))
    (folder / "layers/link").symlink_to("one")
    return folder


def content(disk: Path, path: str) -> bytes:
    return subprocess.run(["debugfs", "-R", f"cat {path}", str(disk)], capture_output=True, check=True).stdout


def test_the_disk_holds_the_folder(source: Path, tmp_path: Path, reporter: Reporter) -> None:
    disk = share.disk(source, tmp_path / "store", reporter)
    assert content(disk, "/layers/one") == (source / "layers/one").read_bytes()


def test_a_disk_is_made_again_only_for_other_content(
    source: Path, tmp_path: Path, reporter: Reporter
) -> None:
    store = tmp_path / "store"
    first = share.disk(source, store, reporter)
    made = first.stat().st_mtime_ns
    assert share.disk(source, store, reporter) == first
    assert first.stat().st_mtime_ns == made
    (source / "layers/two").write_text("more")
    second = share.disk(source, store, reporter)
    assert second != first
    assert content(second, "/layers/two") == b"more"
    # Of a folder's former disks none stays, of another folder's all do.
    other = tmp_path / "other"
    other.mkdir()
    third = share.disk(other, store, reporter)
    assert sorted(store.glob("*.ext4")) == sorted([second, third])


def test_a_folder_with_many_small_files_fits(tmp_path: Path, reporter: Reporter) -> None:
    source = tmp_path / "many"
    source.mkdir()
    for number in range(5000):
        (source / f"{number:04}").write_text("x")
    assert content(share.disk(source, tmp_path / "store", reporter), "/4999") == b"x"


def test_a_disk_that_cannot_be_made_leaves_none(
    source: Path, tmp_path: Path, reporter: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(share, "_SPARE_BYTES", -3 << 20)
    with pytest.raises(LabError, match=r"mkfs\.ext4"):
        share.disk(source, tmp_path / "store", reporter)
    assert not list((tmp_path / "store").glob("*.ext4"))
