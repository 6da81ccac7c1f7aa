"""A base image on its way through a bundle: out of a registry by skopeo, and out of its server again."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from splitrail.bundle import images, server
from splitrail.bundle.manifest import NAME, BundleError, load
from splitrail.bundle.server import Bundle
from splitrail.bundle.store import Store
from tests.bundle.conftest import World

needs_skopeo = pytest.mark.skipif(
    shutil.which("skopeo") is None, reason="skopeo, which copies images, is not on this machine"
)
TYPE = "application/vnd.oci.image"


def make_image() -> tuple[str, list[bytes]]:
    """The digest of an image's manifest, and its three blobs."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("hello"), io.BytesIO(b""))
    packed = gzip.compress(layer.getvalue(), mtime=0)
    diff = hashlib.sha256(layer.getvalue()).hexdigest()
    config = json.dumps(
        {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [f"sha256:{diff}"]}}
    ).encode()

    def described(kind: str, content: bytes) -> dict[str, object]:
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        return {"mediaType": f"{TYPE}.{kind}", "digest": digest, "size": len(content)}

    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": f"{TYPE}.manifest.v1+json",
            "config": described("config.v1+json", config),
            "layers": [described("layer.v1.tar+gzip", packed)],
        }
    ).encode()
    return hashlib.sha256(manifest).hexdigest(), [manifest, config, packed]


@contextmanager
def served(bundle: Bundle) -> Iterator[str]:
    listening = server.listen(bundle, "127.0.0.1", 0)
    threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield f"127.0.0.1:{listening.server_port}"
    finally:
        listening.shutdown()
        listening.server_close()


def configure(home: Path, text: str) -> None:
    """Write what a user of that home has said of registries."""
    path = home / ".config/containers/registries.conf"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


@pytest.fixture
def registry(made: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, str]]:
    """A registry without TLS with one image: its address, and the image's digest."""
    digest, blobs = make_image()
    store = Store(made.out)
    document = json.loads((made.out / NAME).read_text(encoding="utf-8"))
    for kind, content in zip(("manifests", "blobs", "blobs"), blobs, strict=True):
        sha256 = store.put(content)
        document["artifacts"].append(
            {
                "kind": "image",
                "name": "r",
                "version": "",
                "sha256": sha256,
                "bytes": len(content),
                "source": "r",
            }
            | {"path": f"v2/rocm/dev/{kind}/sha256:{sha256}"}
        )
    (made.out / NAME).write_text(json.dumps(document), encoding="utf-8")
    with served(Bundle(made.out, tmp_path / "source")) as address:
        configure(tmp_path, f'[[registry]]\nlocation = "{address}"\ninsecure = true\n')
        monkeypatch.setenv("HOME", str(tmp_path))
        yield address, digest


@needs_skopeo
def test_an_image_goes_through_a_bundle(registry: tuple[str, str], world: World, tmp_path: Path) -> None:
    address, digest = registry
    ref = f"{address}/rocm/dev@sha256:{digest}"
    world.out = tmp_path / "other"
    world.host = world.host.model_copy(update={"base_image": ref})
    made = world.create()
    assert len(made.of("image")) == 3
    assert load(world.out) == made
    # Out again, as a build on a node does: by the name that it has at home, from the mirror.
    with served(Bundle(world.out, tmp_path / "mirror")) as mirror:
        configure(
            tmp_path,
            f'[[registry]]\nlocation = "{address}"\n'
            f'[[registry.mirror]]\nlocation = "{mirror}"\ninsecure = true\n',
        )
        done = subprocess.run(
            ["skopeo", "copy", "--quiet", f"docker://{ref}", f"oci:{tmp_path}/node:image"],
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / f"node/blobs/sha256/{digest}").is_file()


@needs_skopeo
@pytest.mark.parametrize("ref", ["rocm/dev@sha256:" + "ab" * 32, "rocm/none:1"])
def test_an_image_that_is_not_there(registry: tuple[str, str], tmp_path: Path, ref: str) -> None:
    with pytest.raises(BundleError, match=ref.partition("@")[0]):
        images.copy(f"{registry[0]}/{ref}", tmp_path / "blobs/sha256", tmp_path)


def test_no_skopeo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BundleError, match="install the package skopeo"):
        images.copy("docker.io/x/y:1", tmp_path, tmp_path)
