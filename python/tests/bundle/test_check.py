"""What a node is told of a bundle before anything is changed; and that no role's packages are forgotten."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ansible.module_utils
import pytest
import yaml

import splitrail
from splitrail.bundle import server, signing
from splitrail.bundle.manifest import NAME
from tests.bundle.conftest import LOCK, ROOT, World
from tests.bundle.test_create import expired

# Where Ansible puts them on a node.
ansible.module_utils.__path__.append(str(Path(splitrail.__file__).parent / "ansible/module_utils"))

from splitrail.ansible.modules.splitrail_bundle import examine  # noqa: E402  # found by the line above

NEEDS: dict[str, Any] = {
    "release": "cpu",
    "release_sha256": "0" * 64,
    "packages": ["tool"],
    "base_packages": ["library"],
    "base_image": "",
    "wheels": LOCK,
    "sources": {},
    "model": "",
}


@pytest.fixture
def url(made: World, tmp_path: Path) -> Iterator[str]:
    listening = server.listen(server.Bundle(made.out, tmp_path), "127.0.0.1", 0)
    threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield f"http://127.0.0.1:{listening.server_port}"
    listening.shutdown()
    listening.server_close()


def failed(url: str, world: World, **needs: object) -> dict[str, str]:
    """Subject and measure of every check that failed."""
    about, checks = examine(url, world.key.public.read_text(encoding="utf-8"), NEEDS | needs)
    assert about["reached"]
    return {f"{check['name']} {check['subject']}": check["measured"] for check in checks if not check["ok"]}


def test_a_bundle_that_has_everything(url: str, made: World) -> None:
    about, checks = examine(url, made.key.public.read_text(encoding="utf-8"), NEEDS)
    assert about == {"reached": True, "suite": "bookworm", "sources": False}
    assert all(check["ok"] for check in checks)
    assert {check["name"] for check in checks} >= {
        "bundle.signature",
        "bundle.release",
        "bundle.package",
        "bundle.wheel",
    }


def test_all_that_is_missing_is_told_at_once(url: str, made: World) -> None:
    found = failed(
        url,
        made,
        packages=["tool", "absent", "also-absent"],
        wheels=[*LOCK, "Ray==9.9"],
        sources={"ucx": {"url": "https://example.org/ucx.git", "commit": "abc"}},
        base_image="docker.io/x/y:1",
        model="owner/big",
    )
    assert set(found) == {
        "bundle.package absent",
        "bundle.package also-absent",
        "bundle.wheel ray==9.9",
        "bundle.source https://example.org/ucx.git@abc",
        "bundle.image docker.io/x/y:1",
        "bundle.model big",
    }
    assert set(found.values()) == {"missing"}


def test_the_bundle_of_another_release(url: str, made: World) -> None:
    assert failed(url, made, release="h200") == {"bundle.release manifest.json": "cpu"}


def test_a_release_that_was_changed_since(url: str, made: World) -> None:
    [measured] = failed(url, made, release_sha256="1" * 64).values()
    assert "the file was changed since" in measured


def test_an_edited_manifest_is_not_compared(url: str, made: World) -> None:
    path = made.out / NAME
    document = json.loads(path.read_text(encoding="utf-8"))
    document["artifacts"].append({**document["artifacts"][0], "kind": "deb", "name": "absent", "path": "x"})
    path.write_text(json.dumps(document), encoding="utf-8")
    found = failed(url, made, packages=["absent"])
    assert list(found) == ["bundle.signature manifest.json"]
    assert "BAD signature" in found["bundle.signature manifest.json"]


def test_another_key(url: str, made: World) -> None:
    made.key = signing.Key(made.root / "archive-key")
    assert list(failed(url, made)) == ["bundle.signature manifest.json"]


def test_an_expired_key(url: str, made: World, monkeypatch: pytest.MonkeyPatch) -> None:
    made.key = expired(made.root / "expired", monkeypatch)
    assert failed(url, made) == {"bundle.signature manifest.json": "the declared key expired on 2021-12-31"}


def test_half_a_key(url: str, made: World) -> None:
    text = made.key.public.read_text(encoding="utf-8")[:200]
    _, checks = examine(url, text, NEEDS)
    assert "cut short" in next(check["measured"] for check in checks if not check["ok"])


def test_nobody_serves() -> None:
    about, [check] = examine("http://127.0.0.1:9", "", NEEDS)
    assert not about["reached"]
    assert check["name"] == "bundle.served"
    assert "refused" in check["measured"]


@pytest.mark.parametrize("text", ["{}", "no JSON", "[]"])
def test_something_else_is_served(url: str, made: World, text: str) -> None:
    (made.out / NAME).write_text(text, encoding="utf-8")
    [subject] = failed(url, made)
    assert subject == f"bundle.served {url}"


# Packages of the roles

# Of vendors' own repositories, or for machines with a network only; docs/air-gap.md says so.
ELSEWHERE = {"amdgpu_driver", "roce_nic/install_doca.yml"}


def installing() -> set[str]:
    """Roles with a task that installs packages, those of ELSEWHERE left out."""
    found = set()
    for path in (ROOT / "roles").glob("*/tasks/*.yml"):
        role = path.parts[-3]
        text = path.read_text(encoding="utf-8")
        names = re.search(r"ansible\.builtin\.apt:\n(?:      .*\n)*?    ? +name:", text)
        if names and not {role, f"{role}/{path.name}"} & ELSEWHERE:
            found.add(role)
    return found


def test_no_roles_packages_are_forgotten() -> None:
    tasks = yaml.safe_load((ROOT / "playbooks/tasks/bundle_needs.yml").read_text(encoding="utf-8"))
    loaded = set(tasks[0]["loop"])
    # Their lists are one package long and stand in a task.
    named = {
        "image_registry": "docker-registry",
        "host_tuning": "chrony",
        "package_mirror": "git",
        "ingress": "haproxy",
    }
    text = str(tasks[1])
    assert installing() == loaded | set(named)
    assert all(package in text for package in named.values())
    for role, package in named.items():
        tasks_of = "".join(
            p.read_text(encoding="utf-8") for p in (ROOT / "roles" / role / "tasks").glob("install*.yml")
        )
        assert package in tasks_of


def test_a_role_that_installs_is_found() -> None:
    assert {"container_engine", "roce_nic"} <= installing()
