"""The lab's SSH key, its known hosts, and one way to call a node."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

from splitrail.lab.files import write
from splitrail.lab.invoker import invoker, own
from splitrail.lab.run import LabError, environment, run
from splitrail.lab.spec import Lab, Node
from splitrail.lab.state import prune


def ensure_key(lab: Lab) -> None:
    """Make the lab's key pair unless it is there."""
    folder = lab.key.parent
    for path in (folder.parent, folder):
        if not path.exists():
            path.mkdir(mode=0o700, parents=True)
            own(path)
    public = lab.key.with_suffix(".pub")
    if not lab.key.exists():
        public.unlink(missing_ok=True)
        run(
            [
                "ssh-keygen",
                "-q",
                "-t",
                "ed25519",
                "-N",
                "",
                "-C",
                f"splitrail lab {lab.name}",
                "-f",
                str(lab.key),
            ]
        )
    elif not public.exists():
        write(public, run(["ssh-keygen", "-y", "-f", str(lab.key)]))
    for path in (lab.key, public):
        own(path)


def write_known_hosts(lab: Lab, keys: Mapping[Node, str]) -> None:
    """Say which host key each node has, so that host key checking can stay on."""
    lines = "".join(f"{node.address},{node.name} {' '.join(key.split()[:2])}\n" for node, key in keys.items())
    write(lab.known_hosts, lines, mode=0o600, owner=invoker())


def remove(key: Path) -> None:
    """Remove the key pair and the known hosts, and the folders that they leave empty."""
    for path in (
        key,
        key.with_suffix(".pub"),
        key.with_name("known_hosts"),
        key.with_name("known_hosts.old"),
    ):
        path.unlink(missing_ok=True)
    prune(key.parent, key.parent.parent)


def command(lab: Lab, node: Node, *options: str) -> list[str]:
    """The ssh command line to `node`; a person's own SSH configuration takes no part in it."""
    return [
        *("ssh", "-F", "none", "-i", str(lab.key), "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes"),
        *("-o", f'UserKnownHostsFile="{lab.known_hosts}"', "-o", "StrictHostKeyChecking=yes"),
        *("-o", "LogLevel=ERROR", *options, f"{lab.user}@{node.address}"),
    ]


def call(lab: Lab, node: Node, script: str, *, seconds: float) -> subprocess.CompletedProcess[str]:
    """Run `script` on `node` and return what came of it; status 255 means that SSH itself failed.

    Raises LabError when it is not done after `seconds`.
    """
    argv = [*command(lab, node, "-o", f"ConnectTimeout={lab.connect_seconds}"), script]
    try:
        return subprocess.run(
            argv,
            capture_output=True,
            text=True,
            timeout=seconds,
            env=environment(),
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired as error:
        raise LabError(f"{node.name}: no answer over SSH in {seconds:.0f} s") from error
