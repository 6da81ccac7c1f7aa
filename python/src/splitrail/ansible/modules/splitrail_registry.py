#!/usr/bin/python
"""Prove that a container image registry takes an image and gives the same bytes back."""

from __future__ import annotations

import hashlib
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from http.client import HTTPException, HTTPResponse
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.splitrail_checks import check, unmade

DOCUMENTATION = r"""
module: splitrail_registry
short_description: Prove that an image registry takes an image and gives the same bytes back
description:
  - Pushes an image of a few bytes by the registry's HTTP API, pulls it by digest, and removes it.
  - The image is the same every time, so the registry does not grow.
options:
  url:
    description: The registry, with scheme and port.
    type: str
    required: true
  timeout_s:
    description: How long to wait for the registry's first answer, in seconds.
    type: float
    required: true
author: The splitrail authors
"""

RETURN = r"""
checks:
  description: The findings, for M(splitrail_verdict).
  returned: always
  type: list
  elements: dict
"""

NAME = "splitrail/probe"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
HINT = "Read `journalctl -u docker-registry` on this node; see that its folder is writable and its port free."

Check = dict[str, Any]


def digest_of(content: bytes) -> str:
    """An OCI digest."""
    return "sha256:" + hashlib.sha256(content).hexdigest()


class Registry:
    """The few calls of the registry API that a push and a pull need. Each raises OSError when it fails."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        # No proxy from the environment: the registry is on this cluster's own network.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def call(
        self, method: str, path: str, body: bytes | None = None, kind: str = "application/octet-stream"
    ) -> tuple[HTTPResponse, bytes]:
        """One request; path may be a whole URL. Raises OSError, with the server's words when it has some."""
        request = urllib.request.Request(  # noqa: S310  # the scheme is the administrator's choice
            urllib.parse.urljoin(self.url + "/", path),
            data=body,
            method=method,
            headers={"Content-Type": kind, "Accept": MANIFEST},
        )
        try:
            with self._opener.open(request, timeout=10) as response:
                return response, response.read()
        except urllib.error.HTTPError as error:
            words = error.read(300).decode("utf-8", "replace")
            raise OSError(f"{method} {request.full_url}: HTTP {error.code} {words}") from error
        except (OSError, HTTPException) as error:
            raise OSError(f"{method} {request.full_url}: {error}") from error

    def push_blob(self, content: bytes) -> None:
        """Upload a blob in one piece."""
        response, _ = self.call("POST", f"/v2/{NAME}/blobs/uploads/", b"")
        place = response.headers["Location"]
        joint = "&" if "?" in place else "?"
        self.call("PUT", f"{place}{joint}digest={urllib.parse.quote(digest_of(content))}", content)

    def push_manifest(self, content: bytes) -> None:
        """Store a manifest under its digest."""
        self.call("PUT", f"/v2/{NAME}/manifests/{digest_of(content)}", content, MANIFEST)

    def pull(self, kind: str, digest: str) -> bytes:
        """A manifest or a blob by digest; kind is ``manifests`` or ``blobs``."""
        return self.call("GET", f"/v2/{NAME}/{kind}/{digest}")[1]

    def remove(self, digest: str) -> None:
        """Remove a manifest."""
        self.call("DELETE", f"/v2/{NAME}/manifests/{digest}")


def wait(registry: Registry, timeout_s: float) -> list[Check]:
    """Ask until the registry answers, or the time is over."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            registry.call("GET", "/v2/")
        except OSError as why:
            if time.monotonic() >= deadline:
                return [unmade("image_registry.answers", registry.url, str(why), "an answer", hint=HINT)]
            time.sleep(0.2)  # between two looks
        else:
            return [check("image_registry.answers", registry.url, True, "answers", "an answer", hint=HINT)]


def round_trip(registry: Registry) -> list[Check]:
    """Push the probe, pull each of its parts by digest, remove it."""
    layer = bytes(1024)  # the shortest tar archive: two empty blocks
    config = json.dumps(
        {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [digest_of(layer)]}}
    ).encode()

    def describe(kind: str, content: bytes) -> dict[str, Any]:
        return {"mediaType": kind, "digest": digest_of(content), "size": len(content)}

    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": describe(CONFIG, config),
            "layers": [describe(LAYER, layer)],
        }
    ).encode()
    try:
        for blob in (config, layer):
            registry.push_blob(blob)
        registry.push_manifest(manifest)
    except OSError as why:
        return [unmade("image_registry.push", NAME, str(why), "pushed", hint=HINT)]
    checks = [check("image_registry.push", NAME, True, "pushed", "pushed", hint=HINT)]
    for kind, content in (("manifests", manifest), ("blobs", config), ("blobs", layer)):
        digest = digest_of(content)
        name, subject = "image_registry.pull", f"{kind} {digest}"
        try:
            measured = digest_of(registry.pull(kind, digest))
        except OSError as why:
            checks.append(unmade(name, subject, str(why), digest, hint=HINT))
        else:
            checks.append(check(name, subject, measured == digest, measured, digest, hint=HINT))
    try:
        registry.remove(digest_of(manifest))
    except OSError as why:
        checks.append(unmade("image_registry.remove", NAME, str(why), "removed", hint=HINT))
    return checks


def main() -> None:
    """Examine the registry that Ansible named."""
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "required": True},
            "timeout_s": {"type": "float", "required": True},
        },
        supports_check_mode=False,
    )
    registry = Registry(module.params["url"])
    checks = wait(registry, module.params["timeout_s"])
    if checks[0]["ok"]:
        checks += round_trip(registry)
    module.exit_json(changed=False, checks=checks)


if __name__ == "__main__":
    main()
