"""`bundle serve` as its clients see it: APT, pip, git, podman's protocol, and whoever reads half a file."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from splitrail.bundle import server
from splitrail.bundle.cli import app
from splitrail.bundle.debs import empty_system
from splitrail.bundle.manifest import NAME, load
from splitrail.bundle.server import CannotServe
from splitrail.bundle.store import Store
from tests.bundle.conftest import LOCK, SUITE, World
from tests.bundle.test_create import git, repository, with_source

__all__ = ["repository"]  # a fixture


@pytest.fixture
def url(world: World, repository: Path, tmp_path: Path) -> Iterator[str]:
    """A bundle with something of each kind, served."""
    model = tmp_path / "models/tiny"
    model.mkdir(parents=True)
    (model / "model.safetensors").write_bytes(bytes(range(256)))
    world.models = (model,)
    with_source(world, repository.as_uri(), git(repository, "rev-parse", "HEAD"))
    world.create()
    listening = server.listen(server.Bundle(world.out, tmp_path), "127.0.0.1", 0)
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listening.server_port}"
    listening.shutdown()
    listening.server_close()


def get(url: str, **headers: str) -> httpx.Response:
    with httpx.Client(trust_env=False) as http:
        return http.get(url, headers=headers)


def test_apt_installs_from_it_and_only_with_the_right_key(url: str, world: World) -> None:
    def sources(key: Path) -> str:
        return f"Types: deb\nURIs: {url}/apt\nSuites: {SUITE}\nComponents: main\nSigned-By: {key}\n"

    with empty_system(SUITE, sources(world.key.public)) as apt:
        found = apt.closure({"tool"})
    assert {deb.package for deb in found} == {"tool", "library"}
    for deb in found:
        content = get(deb.url).content
        assert len(content) == deb.bytes
    with pytest.raises(Exception, match="NO_PUBKEY"), empty_system(SUITE, sources(world.archive_key.public)):
        pass


def test_pip_takes_the_whole_lock_from_it(url: str, tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("\n".join(LOCK), encoding="utf-8")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--disable-pip-version-check"),
            *("--index-url", f"{url}/simple", "--dest", tmp_path / "got", "--requirement", tmp_path / "lock"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "got").iterdir())) == len(LOCK)


def test_pip_refuses_a_wheel_that_was_changed_on_the_server(url: str, world: World, tmp_path: Path) -> None:
    wheel = next(one for one in load(world.out).of("wheel") if one.name == "ray")
    blob = Store(world.out).blob(wheel.sha256)
    blob.write_bytes(b"x" * wheel.bytes)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--no-cache-dir",
            "--index-url",
            f"{url}/simple",
            "--dest",
            tmp_path / "got",
            "ray",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "THESE PACKAGES DO NOT MATCH THE HASHES" in done.stderr


def test_git_fetches_the_commit_as_a_build_does(url: str, repository: Path, tmp_path: Path) -> None:
    commit = git(repository, "rev-parse", "HEAD")
    place = str(repository).lstrip("/")
    clone = tmp_path / "clone"
    clone.mkdir()
    git(clone, "init", "--quiet")
    git(clone, "fetch", "--quiet", "--depth", "1", f"{url}/git/{place}", commit)
    git(clone, "checkout", "--quiet", "FETCH_HEAD")
    assert git(clone, "rev-parse", "HEAD") == commit
    assert (clone / "configure").read_text(encoding="utf-8") == "one"
    # A clone of everything, for a release that names only the first digits.
    git(tmp_path, "clone", "--quiet", f"{url}/git/{place}", "whole")
    assert git(tmp_path / "whole", "rev-parse", f"{commit[:8]}^{{commit}}") == commit


def test_git_cannot_push_to_it(url: str, repository: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        git(repository, "push", f"{url}/git/{str(repository).lstrip('/')}", "HEAD:refs/heads/other")


def test_ranges(url: str) -> None:
    path = f"{url}/models/tiny/model.safetensors"
    whole = bytes(range(256))
    for asked, expected in (
        ("0-9", whole[:10]),
        ("250-", whole[250:]),
        ("-6", whole[-6:]),
        ("200-999", whole[200:]),
    ):
        answer = get(path, Range=f"bytes={asked}")
        assert (answer.status_code, answer.content) == (206, expected)
    assert get(path, Range="bytes=256-").status_code == 416
    assert get(path).content == whole
    # Of another content than the client began with: all of it.
    assert get(path, **{"Range": "bytes=1-2", "If-Range": '"other"'}).status_code == 200


@pytest.mark.parametrize(
    "path", ["models/tiny/%2e%2e/%2e%2e/manifest.json", "blobs", "simple/none", "git/x", "apt/pool"]
)
def test_nothing_else_is_served(url: str, path: str) -> None:
    assert get(f"{url}/{path}").status_code == 404


def test_nothing_can_be_changed(url: str) -> None:
    with httpx.Client(trust_env=False) as http:
        for method in ("PUT", "POST", "DELETE", "PATCH"):
            assert http.request(method, f"{url}/manifest.json", content=b"x").status_code == 405


def test_an_image_by_tag_and_digest_with_and_without_its_registry(world: World, tmp_path: Path) -> None:
    manifest = world.create().model_dump(mode="json")
    store = Store(world.out)
    content = json.dumps({"mediaType": "application/vnd.oci.image.manifest.v1+json", "layers": []}).encode()
    digest = store.put(content)
    place = "v2/docker.io/rocm/dev/manifests"
    manifest["artifacts"].append(
        {"kind": "image", "name": "r", "version": "", "path": f"{place}/sha256:{digest}", "sha256": digest}
        | {"bytes": len(content), "source": "r"}
    )
    (world.out / NAME).write_text(json.dumps(manifest), encoding="utf-8")
    listening = server.listen(server.Bundle(world.out, tmp_path), "127.0.0.1", 0)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    root = f"http://127.0.0.1:{listening.server_port}"
    assert get(f"{root}/v2/").status_code == 200
    for path in ("docker.io/rocm/dev", "rocm/dev"):
        for reference in (f"sha256:{digest}", "7.0-complete"):
            answer = get(f"{root}/v2/{path}/manifests/{reference}")
            assert answer.content == content
            assert answer.headers["Docker-Content-Digest"] == f"sha256:{digest}"
            assert answer.headers["Content-Type"] == "application/vnd.oci.image.manifest.v1+json"
    assert get(f"{root}/v2/rocm/other/manifests/7.0").json()["errors"][0]["code"] == "MANIFEST_UNKNOWN"
    listening.shutdown()


# Bad inputs


def test_a_port_that_is_taken(made: World, tmp_path: Path) -> None:
    bundle = server.Bundle(made.out, tmp_path)
    with server.listen(bundle, "127.0.0.1", 0) as first:
        port = first.server_port
        with pytest.raises(CannotServe, match=f"127.0.0.1:{port} is taken"):
            server.listen(bundle, "127.0.0.1", port)
        done = CliRunner().invoke(app, ["serve", str(made.out), "--port", str(port)])
    assert done.exit_code == 2
    assert "is taken by another program" in done.output


def test_an_address_of_another_machine(made: World, tmp_path: Path) -> None:
    with pytest.raises(CannotServe, match="is no address of this machine"):
        server.listen(server.Bundle(made.out, tmp_path), "192.0.2.1", 0)


def test_a_bundle_with_gaps_is_not_served_and_all_are_named(made: World, tmp_path: Path) -> None:
    one, other = load(made.out).of("wheel")[:2]
    Store(made.out).blob(one.sha256).unlink()
    Store(made.out).blob(other.sha256).write_bytes(b"half")
    with pytest.raises(CannotServe) as caught:
        server.Bundle(made.out, tmp_path)
    assert f"{one.path}: missing" in str(caught.value).replace("%2B", "+")
    assert "4 bytes of" in str(caught.value)


def test_a_folder_that_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(CannotServe, match=r"no manifest\.json"):
        server.Bundle(tmp_path, tmp_path)


def test_it_runs_alone_as_on_a_head_node(made: World) -> None:
    """The one file, with a Python that knows nothing of the suite."""
    program = Path(server.__file__)
    process = subprocess.Popen(
        ["/usr/bin/python3", "-I", program, made.out, "--port", "0"], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    line = process.stderr.readline()
    try:
        assert "serving" in line, line
        assert get(line.split()[-1] + "/key.asc").content == made.key.public.read_bytes()
    finally:
        process.terminate()
        assert process.wait(10) == 0
