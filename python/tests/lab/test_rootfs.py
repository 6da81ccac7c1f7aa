"""The key of a root file system, and a build that fails."""

from __future__ import annotations

import io
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from splitrail.lab import rootfs
from splitrail.lab.apt import AptConfig
from splitrail.lab.report import Reporter
from splitrail.lab.run import LabError

RECIPE = rootfs.Recipe(
    codename="bookworm",
    user="splitrail",
    apt=AptConfig("Types: deb\n", "", {"/etc/apt/keyrings/a.gpg": b"a"}),
    certificates={"/usr/local/share/ca-certificates/a.crt": b"a"},
    environment="",
)


def test_key_follows_content(monkeypatch: pytest.MonkeyPatch) -> None:
    same = replace(RECIPE, certificates=dict(RECIPE.certificates))
    others = [
        replace(RECIPE, codename="trixie"),
        replace(RECIPE, user="other"),
        replace(RECIPE, environment='http_proxy="x"\n'),
        replace(RECIPE, certificates={"/usr/local/share/ca-certificates/a.crt": b"b"}),
        replace(RECIPE, certificates={"/usr/local/share/ca-certificates/b.crt": b"a"}),
        replace(RECIPE, apt=replace(RECIPE.apt, sources="Types: deb\nURIs: x\n")),
        replace(RECIPE, apt=replace(RECIPE.apt, options='Acquire::Retries "1";\n')),
        replace(RECIPE, apt=replace(RECIPE.apt, files={"/etc/apt/keyrings/a.gpg": b"b"})),
    ]
    keys = [recipe.key for recipe in others]
    assert same.key == RECIPE.key
    assert RECIPE.key.startswith("bookworm-")
    assert len({RECIPE.key, *keys}) == len(keys) + 1
    before = RECIPE.key
    monkeypatch.setattr(rootfs, "PACKAGES", (*rootfs.PACKAGES, "one-more"))
    more = RECIPE.key
    monkeypatch.setattr(rootfs, "BUILDER", rootfs.BUILDER + 1)
    assert len({before, more, RECIPE.key}) == 3


def _stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """An mmdebstrap that does `body`."""
    program = folder / "bin/mmdebstrap"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ncat >/dev/null\n{body}\n")
    program.chmod(0o755)
    monkeypatch.setattr(
        rootfs, "environment", lambda extra: {**extra, "PATH": f"{program.parent}:/usr/bin:/bin"}
    )


def test_failed_build_leaves_nothing_to_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _stand_in(
        tmp_path, monkeypatch, "echo 'I: running apt-get update...'; echo 'E: no such host' >&2; exit 25"
    )
    said = io.StringIO()
    with pytest.raises(LabError, match=r"mmdebstrap exited with 25; .*`apt-get update`[^$]*E: no such host"):
        rootfs.ensure(RECIPE, tmp_path / "cache", Reporter(Console(file=said)))
    assert "  running apt-get update..." in said.getvalue()
    assert not (tmp_path / "cache/rootfs" / RECIPE.key).exists()


def test_finished_build_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Its last argument but one is the folder to fill; what a killed build left is not in the result.
    _stand_in(tmp_path, monkeypatch, 'for last; do target=$previous; previous=$last; done; mkdir "$target"')
    monkeypatch.setattr(rootfs, "_finish", lambda _wanted, _root: None)
    stale = tmp_path / "cache/rootfs" / f".building-{RECIPE.key}"
    (stale / "root/half").mkdir(parents=True)
    reporter = Reporter(Console(file=io.StringIO()))
    done = rootfs.ensure(RECIPE, tmp_path / "cache", reporter)
    assert done.is_dir()
    assert not stale.exists()
    assert not (done / "half").exists()
    monkeypatch.setattr(subprocess, "Popen", None)
    assert rootfs.ensure(RECIPE, tmp_path / "cache", reporter) == done
