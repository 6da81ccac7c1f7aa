"""The disk of the VM nodes: what its key follows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from splitrail.lab import image, rootfs, standins
from splitrail.lab.apt import AptConfig

RECIPE = rootfs.Recipe(
    codename="bookworm", user="splitrail", apt=AptConfig("", "", {}), certificates={}, environment=""
)


def test_the_key_follows_packages_seed_and_additions(monkeypatch: pytest.MonkeyPatch) -> None:
    added = {"/usr/local/sbin/a": b"#!/bin/sh\n"}
    first = image.key(RECIPE, added)
    others = [
        image.key(replace(RECIPE, extra=("perftest",)), added),
        image.key(replace(RECIPE, seed={"/etc/a": b"a"}), added),
        image.key(replace(RECIPE, seed={"/etc/a": b"b"}), added),
        image.key(RECIPE, {"/usr/local/sbin/a": b"#!/bin/sh\ntrue\n"}),
        image.key(RECIPE, {}),
    ]
    monkeypatch.setattr(image, "BUILDER", image.BUILDER + 1)
    assert len({first, *others, image.key(RECIPE, added)}) == len(others) + 2


def test_additions_are_soft_roce_and_every_stand_in() -> None:
    added = image.additions()
    assert added["/usr/local/sbin/splitrail-lab-soft-roce"].startswith(b"#!/bin/sh\n")
    assert (
        b"ExecStart=/usr/local/sbin/splitrail-lab-soft-roce\n"
        in (added["/etc/systemd/system/splitrail-lab-soft-roce.service"])
    )
    for tool in standins.TOOLS:
        assert added[f"/usr/local/sbin/{tool}"].startswith(b"#!")
    # Nothing takes the place of a file that a package brings.
    assert all(name.startswith(("/usr/local/", "/etc/systemd/system/")) for name in added)


def test_a_failed_build_takes_its_mount_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[list[str]] = []
    monkeypatch.setattr(image, "run", called.append)
    with pytest.raises(OSError, match="no space"), image._layered(tmp_path / "tree", tmp_path / "building"):
        raise OSError("no space")
    assert [argv[0] for argv in called] == ["mount", "umount"]
