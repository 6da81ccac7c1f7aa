"""Make a bundle: find everything that an inventory needs, then fetch it, then write down what it is."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import httpx

from splitrail.bundle import debs, gitsource, images, manifest, wheels
from splitrail.bundle.fetch import Wanted, client, fetch_all, size
from splitrail.bundle.manifest import Artifact, BundleError, Manifest
from splitrail.bundle.needs import Needs
from splitrail.bundle.signing import Key
from splitrail.bundle.store import Store, digest_of, explain, refuse_full
from splitrail.release import Release
from splitrail.verdict import write_json


@dataclass
class Plan:
    """What is to be fetched as files, what is fetched otherwise, and what cannot be had."""

    files: list[tuple[Artifact, Wanted]] = field(default_factory=list)
    debs: list[debs.Deb] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def attempt(self, step: Callable[[], None]) -> None:
        """Take a step; what is missing is noted, so that all of it is told at once."""
        try:
            step()
        except BundleError as error:
            if error.code != 1:
                raise
            self.faults += error.faults


class Watcher:
    """Told of what happens; the command line shows it."""

    def step(self, what: str) -> None:
        """A step begins."""

    def begin(self, total: int, have: int) -> None:
        """Files of ``total`` bytes are fetched, of which ``have`` are here."""

    def arrived(self, count: int) -> None:
        """Some bytes came."""


@dataclass(frozen=True)
class Request:
    """What a bundle is made of beside the inventory's needs."""

    suite: str
    sources: str | None = None
    models: tuple[Path, ...] = ()


def create(needs: Needs, request: Request, out: Path, key: Key, watch: Watcher) -> Manifest:
    """Make or complete the bundle in ``out``; returns its manifest, which is written last and signed.

    Raises BundleError with every artifact that is missing; what could be fetched is kept for the next time.
    """
    store = Store(out)
    release = needs.parsed
    # Made, and seen to be good, before an hour of downloads.
    key.ensure()
    key.sign(b"", "--detach-sign")
    with store.locked(), client(wheels.certificates()) as http:
        plan = _plan(needs, release, request, http, watch)
        if plan.faults:
            raise BundleError([*plan.faults, "Nothing was fetched: correct what is named above"], 1)
        try:
            artifacts = _fetch(plan, store, http, watch)
            artifacts += _fetch_others(plan, needs, store, watch)
            artifacts += _models(request.models, store, watch)
            artifacts += _apt_index(plan.debs, request.suite, store, key)
            if plan.faults:
                raise BundleError([*plan.faults, "The rest was fetched and is kept"], 1)
            made = _conclude(artifacts, needs, request, store, key)
            for what in left_out(release):
                watch.step(f"NOT in the bundle: {what}")
            return made
        except OSError as error:
            raise BundleError(explain(error, out)) from error


def _plan(needs: Needs, release: Release, request: Request, http: httpx.Client, watch: Watcher) -> Plan:
    plan = Plan()
    watch.step(f"packages of {request.suite}")
    plan.attempt(lambda: _plan_debs(plan, needs, release, request))
    if needs.builds:
        watch.step("wheels")
        plan.attempt(lambda: _plan_wheels(plan, release))
    given = {folder.name for folder in request.models}
    plan.faults += [
        f"model {name}: the hosts do not make it themselves: name its folder with --model"
        for name in needs.models
        if name.rpartition("/")[2] not in given
    ]
    plan.faults += [f"model {folder}: no such folder" for folder in request.models if not folder.is_dir()]
    watch.step("sizes")
    plan.attempt(lambda: _sizes(plan, http))
    return plan


def left_out(release: Release) -> list[str]:
    """What a release wants beside all that a bundle holds, in words; docs/air-gap.md says what to do."""
    found = []
    if release.host is not None:
        found.append("the vendor's repositories for the servers themselves (release.host)")
    if release.base_image.source == "registry":
        found.append("packages that the Containerfile installs inside the base image")
    if release.python_full:
        found.append(f"the interpreter that uv fetches for the image (Python {release.python_full})")
    return found


def _plan_debs(plan: Plan, needs: Needs, release: Release, request: Request) -> None:
    with debs.empty_system(request.suite, request.sources) as apt:
        if missing := apt.missing(needs.packages | needs.base_packages):
            raise BundleError(
                [
                    f"package {name}: no APT source of {request.suite} has it: see --apt-sources"
                    for name in missing
                ],
                1,
            )
        found = {deb.file: deb for deb in apt.closure(needs.packages)}
        if release.base_image.source == "apt":
            found |= {deb.file: deb for deb in apt.closure(needs.base_packages, bootstrap=True)}
    plan.debs = sorted(found.values(), key=lambda deb: deb.file)
    for deb in plan.debs:
        artifact = Artifact(
            kind="deb",
            name=deb.package,
            version=deb.version,
            path=f"apt/pool/{quote(deb.file, safe='+~.')}",
            sha256=deb.sha256,
            bytes=deb.bytes,
            source=deb.url,
        )
        plan.files.append((artifact, Wanted(deb.file, deb.url, deb.sha256, deb.bytes)))


def _plan_wheels(plan: Plan, release: Release) -> None:
    if not release.wheels_locked:
        raise BundleError(
            f"release {release.name}: its wheels are not locked, so what a build would take is not known: "
            "build once and lock them (see `unpinned` in the release)",
            1,
        )
    found = wheels.resolve(release.wheels, release.python, release.glibc, release.wheel_index)
    for wheel in found:
        name = f"{wheel.name}=={wheel.version}"
        pinned = {wheels.normalized(key): value for key, value in release.wheel_sha256.items()}
        if pinned.get(wheels.normalized(name), wheel.sha256) != wheel.sha256:
            plan.faults.append(
                f"wheel {name}: {wheel.url} has sha256 {wheel.sha256}, the release pins "
                f"{pinned[wheels.normalized(name)]}: find out who changed it before you change the pin"
            )
        artifact = Artifact(
            kind="wheel",
            name=wheel.name,
            version=wheel.version,
            path=f"wheels/{wheel.file}",
            sha256=wheel.sha256,
            bytes=0,
            source=wheel.url,
        )
        plan.files.append((artifact, Wanted(wheel.file, wheel.url, wheel.sha256)))


def _sizes(plan: Plan, http: httpx.Client) -> None:
    """Ask how large the files are of which no index says it."""

    def ask(wanted: Wanted) -> int | BundleError:
        try:
            return wanted.bytes or size(wanted.url, http)
        except BundleError as error:
            return error

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, [wanted for _, wanted in plan.files]))
    faults = [
        f"{wanted.name}: {answer}"
        for (_, wanted), answer in zip(plan.files, answers, strict=True)
        if isinstance(answer, BundleError)
    ]
    if faults:
        raise BundleError(faults, 1)
    plan.files = [
        (
            artifact.model_copy(update={"bytes": answer}),
            Wanted(wanted.name, wanted.url, wanted.sha256, int(str(answer))),
        )
        for (artifact, wanted), answer in zip(plan.files, answers, strict=True)
    ]


def _fetch(plan: Plan, store: Store, http: httpx.Client, watch: Watcher) -> list[Artifact]:
    wanted = [item for _, item in plan.files]
    total = sum(item.bytes for item in wanted)
    have = sum(_here(item, store) for item in wanted)
    refuse_full(store.root, total - have)
    watch.begin(total, have)
    plan.faults += fetch_all(wanted, store, http, watch.arrived)
    return [
        artifact.model_copy(update={"bytes": store.blob(artifact.sha256).stat().st_size})
        for artifact, _ in plan.files
        if store.has(artifact.sha256)
    ]


def _here(item: Wanted, store: Store) -> int:
    if store.has(item.sha256):
        return item.bytes
    part = store.partial(item.sha256)
    return min(part.stat().st_size, item.bytes) if part.exists() else 0


def _fetch_others(plan: Plan, needs: Needs, store: Store, watch: Watcher) -> list[Artifact]:
    """Git sources and registry images, whose own programs fetch them."""
    found: list[Artifact] = []
    work = store.root / "partial"
    sources = {name: source for host in needs.hosts.values() for name, source in host.sources.items()}

    def git(name: str) -> None:
        url, commit = str(sources[name]["url"]), str(sources[name].get("commit", ""))
        if not commit:
            raise BundleError(
                f"source {name}: {url}: an archive, not a repository at a commit: not supported", 1
            )
        watch.step(f"{name} at {commit}")
        packed = gitsource.pack(url, commit, work / "git")
        place = f"{gitsource.place(url)}/{packed.commit}"
        contents = {path.name: path.read_bytes() for path in packed.files} | {
            "shallow": packed.shallow.encode()
        }
        for file, content in contents.items():
            sha256 = store.put(content)
            found.append(_artifact("git", url, f"{place}/{file}", sha256, store=store, of=packed.commit))

    def image(ref: str) -> None:
        watch.step(f"image {ref}")
        blobs = work / "oci-blobs/sha256"
        copied = images.copy(ref, blobs, work)
        place = images.place(copied.name)
        for digest in (copied.manifest, *copied.blobs):
            if not store.has(digest):
                path = blobs / digest
                if (got := digest_of(path)) != digest:
                    raise BundleError(f"image {ref}: a blob's sha256 is {got}, expected {digest}", 1)
                store.adopt(path, digest)
            kind = "manifests" if digest == copied.manifest else "blobs"
            found.append(
                _artifact("image", ref, f"{place}/{kind}/sha256:{digest}", digest, store=store, of=digest)
            )

    for name in sorted(sources):
        plan.attempt(lambda name=name: git(name))  # type: ignore[misc]
    for ref in sorted({host.base_image for host in needs.hosts.values() if host.base_image}):
        plan.attempt(lambda ref=ref: image(ref))  # type: ignore[misc]
    return found


def _models(folders: tuple[Path, ...], store: Store, watch: Watcher) -> list[Artifact]:
    found = []
    for folder in folders:
        watch.step(f"model {folder.name}")
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            sha256 = digest_of(path)
            if not store.has(sha256):
                refuse_full(store.root, path.stat().st_size)
                _copy(path, store, sha256)
            place = f"models/{folder.name}/{quote(path.relative_to(folder).as_posix())}"
            found.append(_artifact("model", folder.name, place, sha256, store=store))
    return found


def _copy(path: Path, store: Store, sha256: str) -> None:
    part = store.partial(sha256)
    part.parent.mkdir(parents=True, exist_ok=True)
    part.unlink(missing_ok=True)
    with path.open("rb") as source, part.open("wb") as target:
        while block := source.read(1 << 20):
            target.write(block)
    if digest_of(part) != sha256:
        raise BundleError(f"{path}: changed while it was copied: run the same again", 1)
    store.adopt(part, sha256)


def _apt_index(found: list[debs.Deb], suite: str, store: Store, key: Key) -> list[Artifact]:
    files = debs.index(found, suite)
    release = files[f"dists/{suite}/Release"]
    files[f"dists/{suite}/InRelease"] = key.sign(release, "--clearsign")
    files[f"dists/{suite}/Release.gpg"] = key.sign(release, "--detach-sign")
    return [
        _artifact("apt-index", path, f"apt/{path}", store.put(data), store=store)
        for path, data in sorted(files.items())
    ]


def _artifact(
    kind: manifest.Kind, name: str, path: str, sha256: str, *, store: Store, of: str = ""
) -> Artifact:
    """A file that is in the store already; ``of`` is its version."""
    length = store.blob(sha256).stat().st_size
    return Artifact(kind=kind, name=name, version=of, path=path, sha256=sha256, bytes=length, source=name)


def _conclude(artifacts: list[Artifact], needs: Needs, request: Request, store: Store, key: Key) -> Manifest:
    made = Manifest(
        release=str(needs.release["name"]),
        release_sha256=needs.release_sha256,
        suite=request.suite,
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        artifacts=sorted(artifacts, key=lambda artifact: artifact.path),
    )
    path = store.root / manifest.NAME
    # Away with the old one first: between the two files a manifest would have another's signature.
    path.unlink(missing_ok=True)
    document = json.loads(made.model_dump_json())
    write_json(store.root / ".manifest.new", document)
    content = (store.root / ".manifest.new").read_bytes()
    (store.root / manifest.SIGNATURE).write_bytes(key.sign(content, "--detach-sign"))
    (store.root / manifest.KEY).write_bytes(key.public.read_bytes())
    (store.root / ".manifest.new").replace(path)
    store.prune({artifact.sha256 for artifact in made.artifacts})
    return made
