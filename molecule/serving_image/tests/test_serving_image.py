"""Every node has the image that the registry holds, and it runs what the release says."""

from __future__ import annotations

import json
import re

import pytest
from testinfra.host import Host

NAME = "splitrail/serving"


def image(host: Host, field: str) -> str:
    """A field of the node's one image of that name, or nothing."""
    answer = host.run(f"podman images --no-trunc --format '{{{{ .{field} }}}}' localhost/{NAME}")
    return answer.stdout.strip().removeprefix("sha256:")


@pytest.mark.broken("mol-prefill")
def test_the_image_runs(host: Host) -> None:
    found = image(host, "ID")
    assert found
    run = host.run(f"podman run --rm --network none {found} python -c 'import idna; print(idna.__version__)'")
    assert (run.rc, run.stdout.strip()) == (0, "3.20"), run.stderr


@pytest.mark.broken("mol-prefill")
def test_the_image_says_what_is_in_it(host: Host) -> None:
    found = image(host, "ID")
    assert found
    labels = json.loads(host.run(f"podman image inspect --format '{{{{json .Labels}}}}' {found}").stdout)
    assert labels["org.opencontainers.image.version"] == labels["io.splitrail.release"] == "tiny"
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", labels["org.opencontainers.image.base.digest"])
    bill = host.run(f"podman run --rm --network none {found} cat /usr/share/splitrail/sbom.json").stdout
    names = {part["name"]: part["version"] for part in json.loads(bill)["components"] if "version" in part}
    assert names["idna"] == "3.20"
    assert {"packaging", "python3", "libc6", "cpython"} <= names.keys()


@pytest.mark.broken
def test_the_image_is_the_registrys(host: Host) -> None:
    conf = host.file("/etc/containers/registries.conf.d/50-splitrail.conf").content_string
    (registry,) = re.findall(r'location = "(.*)"', conf)
    url = f"http://{registry}/v2/{NAME}/manifests/{image(host, 'Tag')}"
    accept = "application/vnd.oci.image.manifest.v1+json"
    answer = host.run(f"curl --silent --show-error --fail --header 'Accept: {accept}' {url}")
    assert answer.rc == 0, answer.stderr
    assert json.loads(answer.stdout)["config"]["digest"] == f"sha256:{image(host, 'ID')}"
