"""What a reset shows, deletes and refuses."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from splitrail.ansible.modules import splitrail_reset
from splitrail.ansible.modules.splitrail_reset import Refused, delete, is_of, look, refuse
from splitrail.cli import app
from splitrail.daytwo import reset as command
from splitrail.daytwo.reset import preview
from splitrail.run.playbook import CannotRun

ROOT = Path(__file__).parents[3]
IMAGES = "splitrail/serving"


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """A folder that stands for the root of a host."""
    (tmp_path / "etc/ray").mkdir(parents=True)
    (tmp_path / "etc/ray/token").write_text("t" * 5000)
    (tmp_path / "models/large").mkdir(parents=True)
    (tmp_path / "models/large/weights").write_bytes(b"w" * 20_000)
    (tmp_path / "link").symlink_to(tmp_path / "models")
    return tmp_path


def names(items: list[dict[str, Any]]) -> list[str]:
    return [Path(item["name"]).name for item in items]


def test_what_is_there_is_shown_with_its_size_and_then_deleted(node: Path) -> None:
    paths = [str(node / one) for one in ("etc/ray/token", "link", "models", "gone")]
    items = look(paths, IMAGES, "no-such-engine")
    assert [(item["kind"], Path(item["name"]).name) for item in items] == [
        ("file", "token"),
        ("file", "link"),
        ("folder", "models"),
    ]
    assert items[2]["bytes"] >= 20_000 > items[1]["bytes"]

    # The link first: what it leads to is another item, or not meant.
    assert names(delete(items[:2], "podman")) == ["token", "link"]
    assert (node / "models/large/weights").exists()
    assert names(delete(items, "podman")) == ["models"]
    assert not (node / "models").exists()


@pytest.mark.parametrize(
    ("item", "why"),
    [
        ({"kind": "folder", "name": "/var/lib/other/x"}, "is nothing that a reset may delete"),
        ({"kind": "folder", "name": "/var/lib"}, "is nothing that a reset may delete"),
        ({"kind": "folder", "name": "/var/lib/splitrail/../x"}, "is nothing that a reset may delete"),
        ({"kind": "folder", "name": "/var/lib/splitrail/ray"}, "/var/lib/splitrail/ray/shm is a mount"),
        ({"kind": "image", "name": "docker.io/library/debian:12"}, "is no image of splitrail/serving"),
    ],
)
def test_it_deletes_nothing_else(item: dict[str, Any], why: str) -> None:
    allowed = ["/var/lib", "/var/lib/splitrail/../x", "/var/lib/splitrail/ray"]
    with pytest.raises(Refused, match=re.escape(why)):
        refuse([item], allowed, IMAGES, ["/", "/var/lib/splitrail/ray/shm"])
    refuse(
        [{"kind": "folder", "name": "/var/lib/splitrail/ray"}], allowed, IMAGES, ["/", "/var/lib/splitrail/r"]
    )


def test_images_of_the_suite_are_told_by_their_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_of("localhost/splitrail/serving:abc", IMAGES)
    assert is_of("10.0.0.1:5000/splitrail/serving:abc", IMAGES)
    assert not is_of("localhost/other/splitrail/serving:abc", IMAGES)
    rows = [
        {"Names": ["localhost/splitrail/serving:a", "localhost/debian:12"], "Size": 7},
        {"Names": ["localhost/splitrail/serving:b"], "Size": 9, "ReadOnly": True},
        {"Names": None, "Size": 1},
    ]
    monkeypatch.setattr(splitrail_reset, "run", lambda _command: json.dumps(rows))
    monkeypatch.setattr("shutil.which", lambda program: f"/usr/bin/{program}")
    assert splitrail_reset.local_images(IMAGES, "podman") == {"localhost/splitrail/serving:a": 7}


def test_what_the_roles_of_serving_write_is_in_the_list() -> None:
    """A file that a role begins to write must not outlive a reset."""
    text = (ROOT / "playbooks/tasks/reset.yml").read_text(encoding="utf-8")
    listed = re.findall(r"(/(?:etc|usr|var)/[\w./-]+)", text)
    written = set()
    for role in ("ray_cluster", "llm_serve"):
        for file in (*ROOT.glob(f"roles/{role}/vars/*.yml"), *ROOT.glob(f"roles/{role}/tasks/configure.yml")):
            written |= set(re.findall(r"dest: \"?(/[\w./-]+)", file.read_text(encoding="utf-8")))
    assert {"/etc/ray/token", "/etc/systemd/system/llm-serve.service"} <= written
    folders = {"/usr/local/lib/splitrail/"}  # named file by file: other roles use it too
    left = [path for path in written - folders if not any(path.startswith(one) for one in listed)]
    assert left == []


def test_the_preview_names_each_thing_on_each_host() -> None:
    lines = preview(
        {"n2": [], "n1": [{"kind": "folder", "name": "/var/lib/splitrail/ray", "bytes": 3 << 20}]}
    )
    assert lines[:3] == [
        "n1: 1 things, 3.0 MiB",
        "  folder /var/lib/splitrail/ray  3.0 MiB",
        "n2: nothing",
    ]
    assert "every request fails" in lines[3]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """A project whose preview finds a token; returns what was executed."""
    executed: list[list[str]] = []
    for name in ("ansible.cfg", "site.yml", "hosts.yml"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    found = {"cluster": "mine", "hosts": {"n1": [{"kind": "file", "name": "/etc/ray/token", "bytes": 64}]}}
    monkeypatch.setattr(command, "ask", lambda *_: (found, None))

    def execute(_project: object, _verb: str, _playbook: str, options: Any, **_: Any) -> None:
        executed.append(list(options.extra_vars))
        raise CannotRun("enough")

    monkeypatch.setattr(command, "execute", execute)
    return executed


@pytest.mark.parametrize(
    ("words", "typed", "code", "deletes"),
    [
        (["--confirm", "mine"], "", 2, True),
        ([], "mine\n", 2, True),
        ([], "yes\n", 1, False),
        ([], "", 1, False),
        (["--confirm", "min"], "mine\n", 1, False),
        (["--check", "--confirm", "mine"], "", 0, False),
    ],
)
def test_only_the_clusters_name_confirms(
    project: list[list[str]], words: list[str], typed: str, code: int, deletes: bool
) -> None:
    done = CliRunner().invoke(app, ["reset", "-i", "hosts.yml", *words], input=typed)
    assert (done.exit_code, bool(project)) == (code, deletes), done.output
    assert "/etc/ray/token  64 B" in done.output
    if deletes:
        told = json.loads(project[0][-1])
        assert told["reset_confirmed"] == "mine"
        assert list(told["reset_items"]) == ["n1"]


def test_by_hand_nothing_is_deleted_without_the_confirmation(tmp_path: Path) -> None:
    plays = yaml.safe_load((ROOT / "playbooks/reset.yml").read_text(encoding="utf-8"))[:1]
    plays[0]["vars"] = {"cluster_name": "mine"}
    (tmp_path / "reset.yml").write_text(yaml.safe_dump(plays))
    command_line = ["ansible-playbook", "-i", "localhost,", "-c", "local", "reset.yml"]

    def code(*more: str) -> int:
        return subprocess.run(
            [*command_line, *more], cwd=tmp_path, capture_output=True, check=False
        ).returncode

    assert code("-e", '{"reset_confirmed": "other", "reset_items": {}}') != 0
    assert code("-e", '{"reset_confirmed": "mine", "reset_items": {}}') == 0
