"""Container images from a registry, by digest: their manifest and blobs, copied by skopeo."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from splitrail.bundle.manifest import BundleError

_REF = re.compile(r"^(?P<name>[^@]+?)(?::(?P<tag>[^:@/]+))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?$")


@dataclass(frozen=True)
class Image:
    """An image that lies in a folder of blobs, and the digests of its manifest, configuration and layers."""

    ref: str
    name: str
    manifest: str
    blobs: list[str]


def place(name: str) -> str:
    """Where the server's registry shows an image: its name with the registry that it came from."""
    return f"v2/{name}"


def copy(ref: str, blobs: Path, work: Path) -> Image:
    """Copy an image into ``blobs`` (files named by their sha256; what is there is not fetched again).

    The platform is linux/amd64. Raises BundleError: no skopeo, no such image, or another one than its digest.
    """
    match = _REF.match(ref)
    if not match:
        raise BundleError(f"image {ref}: not a reference: write host/name@sha256:...", 1)
    if shutil.which("skopeo") is None:
        raise BundleError(f"image {ref}: skopeo is not here: install the package skopeo")
    layout = work / "oci"
    shutil.rmtree(layout, ignore_errors=True)
    blobs.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [
            *(
                "skopeo",
                "copy",
                "--quiet",
                "--override-os=linux",
                "--override-arch=amd64",
                "--preserve-digests",
            ),
            *("--retry-times=3", f"--dest-shared-blob-dir={blobs.parent}"),
            # skopeo takes a tag or a digest, not both; the digest says more.
            f"docker://{match['name']}"
            + (f"@{match['digest']}" if match["digest"] else f":{match['tag'] or 'latest'}"),
            f"oci:{layout}:image",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise BundleError(f"image {ref}: {' '.join(done.stderr.split())}", 1)
    index = json.loads((layout / "index.json").read_text(encoding="utf-8"))
    digest = str(index["manifests"][0]["digest"]).removeprefix("sha256:")
    content = json.loads((blobs / digest).read_text(encoding="utf-8"))
    parts = [content["config"], *content["layers"]]
    return Image(ref, match["name"], digest, [str(part["digest"]).removeprefix("sha256:") for part in parts])
