"""A look at what is in place: each thing is seen to differ, and nothing when all is well."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from splitrail.ansible.modules import splitrail_in_place
from splitrail.ansible.modules.splitrail_in_place import file_differs, look, packages_differ, services_differ

TEXT = "nofile = 1\n"
DIGEST = hashlib.sha256(TEXT.encode()).hexdigest()
DPKG = """#!/bin/sh
for name in "$@"; do case $name in
  podman) echo "podman installed" ;;
  libc6) echo "libc6:amd64 installed" ;;
  removed) echo "removed config-files" ;;
esac; done
exit 1
"""
SYSTEMCTL = """#!/bin/sh
question=$1; shift
for name in "$@"; do case $name.$question in
  good.*) echo ${question#is-} ;;
  *.is-active) echo inactive ;;
  stopped.is-enabled) echo enabled ;;
  *) echo "Failed to get unit file state for $name" >&2 ;;
esac; done
"""


@pytest.fixture(autouse=True)
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Programs that answer as dpkg-query and systemctl do, and one file."""
    for name, text in (("dpkg-query", DPKG), ("systemctl", SYSTEMCTL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(splitrail_in_place, "OWNER", (os.getuid(), os.getgid()))
    (tmp_path / "file").write_text(TEXT)
    (tmp_path / "file").chmod(0o644)
    return tmp_path / "file"


def given(file: Path, **other: Any) -> dict[str, Any]:
    """Arguments under which nothing differs, but for what is named."""
    return {
        "packages": ["podman", "libc6"],
        "files": [{"dest": str(file), "mode": "0644", "digest": DIGEST}],
        "services": ["good"],
        "paths": [str(file.parent)],
        "absent": [f"{file}.gone"],
        "lines": [{"path": str(file), "line": "nofile = 1"}],
        **other,
    }


def test_all_in_place(node: Path) -> None:
    assert look(given(node)) == {"packages": True, "settings": True, "differs": []}


def test_a_package_that_is_missing_leaves_the_settings_alone(node: Path) -> None:
    found = look(given(node, packages=["podman", "crun"]))
    assert (found["packages"], found["settings"]) == (False, True)
    assert found["differs"] == ["the package crun is not installed"]


def test_a_removed_package_is_not_installed() -> None:
    assert packages_differ(["removed"]) == ["the package removed is not installed"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda file: file.write_text("nofile = 2\n"), "other content"),
        (lambda file: file.chmod(0o600), "mode 0600, not 0644"),
        (lambda file: file.unlink(), "No such file"),
        (lambda file: (file.rename(f"{file}.old"), file.symlink_to(f"{file}.old")), "mode 0777"),
    ],
)
def test_a_file_that_was_changed_since(node: Path, change: Any, said: str) -> None:
    change(node)
    found = look(given(node))
    assert (found["packages"], found["settings"]) == (True, False)
    assert said in found["differs"][0]


def test_a_file_of_another_owner(node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splitrail_in_place, "OWNER", (12345, 0))
    assert "not to root" in str(file_differs(str(node), "0644", DIGEST))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("stopped", ["good, stopped: is-active says active inactive"]),
        ("none", ["good, none: is-active says active inactive", "good, none: is-enabled says enabled"]),
        ("good", []),
    ],
)
def test_a_service_that_does_not_run(name: str, said: list[str]) -> None:
    assert services_differ(["good", name]) == said


def test_a_path_that_is_not_there(node: Path) -> None:
    assert look(given(node, paths=[f"{node}.lock"]))["differs"] == [f"{node}.lock: is not there"]


def test_a_path_that_is_still_there(node: Path) -> None:
    assert look(given(node, absent=[str(node)]))["differs"] == [f"{node}: is there"]


def test_a_line_that_a_file_lacks(node: Path) -> None:
    lines = [{"path": str(node), "line": "nofile"}, {"path": f"{node}.gone", "line": "x"}]
    assert look(given(node, lines=lines))["differs"] == [
        f"{node}: lacks the line nofile",
        f"{node}.gone: No such file or directory",
    ]


def test_a_file_without_a_digest_is_an_error(node: Path) -> None:
    with pytest.raises(KeyError, match="digest"):
        look(given(node, files=[{"dest": str(node), "mode": "0644", "src": "file.j2"}]))


def test_no_package_manager_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(OSError, match="dpkg-query"):
        packages_differ(["podman"])
