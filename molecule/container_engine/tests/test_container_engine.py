"""The engine runs containers, from its own images and beside a store that it may only read."""

from __future__ import annotations

import pytest
from testinfra.host import Host

# An image of one program, made of the node's own files: nothing is pulled.
MAKE = """
set -e
root=$(mktemp -d)
for file in /bin/sh $(ldd /bin/sh | grep -o '/[^ ]*'); do install -D $file $root$file; done
tar -C $root -c . | podman import - localhost/test:1
rm -rf $root
"""


@pytest.mark.broken("mol-prefill")
def test_a_container_runs_with_the_declared_limit(host: Host) -> None:
    made = host.run(MAKE)
    assert made.rc == 0, made.stderr
    run = host.run("podman run --rm --network host localhost/test:1 /bin/sh -c 'ulimit -n'")
    assert (run.rc, run.stdout.strip()) == (0, "20000"), run.stderr


def test_the_shared_store_is_read(host: Host) -> None:
    info = host.run("podman info --format '{{ .Store.GraphOptions }}'")
    assert info.rc == 0, info.stderr
    assert "/var/lib/splitrail-images" in info.stdout


def test_only_the_declared_registry_is_insecure(host: Host) -> None:
    text = host.file("/etc/containers/registries.conf.d/50-splitrail.conf").content_string
    assert 'location = "registry.test:5000"\ninsecure = true' in text
    assert text.count("insecure = true") == 1
