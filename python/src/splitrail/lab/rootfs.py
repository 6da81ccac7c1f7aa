"""The root file system that nodes stand on: built once a kind of node, found again by its content's key."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shlex
import shutil
import subprocess
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from splitrail.lab import apt
from splitrail.lab.files import remove_tree, write
from splitrail.lab.report import Reporter
from splitrail.lab.run import LabError, environment, run

# Raise this when what `_finish` does changes, so that cached root file systems are built anew.
BUILDER = 1

# A server as its installer leaves it: init, a way in, and Python for Ansible. Roles bring the rest.
PACKAGES = (
    "systemd",
    "systemd-sysv",
    "dbus",
    "openssh-server",
    "python3",
    "python3-apt",
    "iproute2",
    "sudo",
    "ca-certificates",
    "curl",
)
_CERTIFICATES = Path("/usr/local/share/ca-certificates")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what is in a root file system."""

    codename: str
    user: str
    apt: apt.AptConfig
    certificates: dict[str, bytes]
    environment: str
    extra: tuple[str, ...] = ()
    """Packages beside PACKAGES."""
    seed: dict[str, bytes] = field(default_factory=dict)
    """Files that are there before the packages are; what begins with #! is executable."""

    @property
    def key(self) -> str:
        """A name that is the same exactly when the content would be."""
        content = {
            "builder": BUILDER,
            "packages": (*PACKAGES, *self.extra),
            "codename": self.codename,
            "user": self.user,
            "sources": self.apt.sources,
            "options": self.apt.options,
            "environment": self.environment,
            "files": {
                name: hashlib.sha256(data).hexdigest()
                for name, data in (self.apt.files | self.certificates | self.seed).items()
            },
        }
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        return f"{self.codename}-{digest[:16]}"


def recipe(user: str, extra: tuple[str, ...] = (), seed: dict[str, bytes] | None = None) -> Recipe:
    """The recipe of this machine: its distribution, APT sources, certificates and proxies.

    `extra` and `seed` are what a kind of node adds to it.
    """
    release = dict(
        line.split("=", 1)
        for line in Path("/etc/os-release").read_text().splitlines()
        if line.count("=") == 1
    )
    codename = release.get("VERSION_CODENAME", "").strip('"')
    if not codename:
        raise LabError("/etc/os-release: no VERSION_CODENAME; the lab needs a released Debian or Ubuntu")
    names = ("http_proxy", "https_proxy", "no_proxy")
    return Recipe(
        codename=codename,
        user=user,
        apt=apt.from_machine(codename),
        certificates={str(path): path.read_bytes() for path in sorted(_CERTIFICATES.rglob("*.crt"))},
        environment="".join(f'{name}="{os.environ[name]}"\n' for name in names if os.environ.get(name)),
        extra=extra,
        seed=seed or {},
    )


def ensure(wanted: Recipe, cache: Path, reporter: Reporter) -> Path:
    """The folder of `wanted`, built now unless it is there. Raises LabError when the build fails."""
    store = cache / "rootfs"
    store.mkdir(parents=True, exist_ok=True)
    store.chmod(0o700)  # these trees hold set-uid programs that nobody updates
    done = store / wanted.key
    if done.is_dir():
        return done
    with locked(store / ".lock", reporter) as lock:
        if done.is_dir():
            return done
        building = store / f".building-{wanted.key}"
        remove_tree(building)
        building.mkdir()
        with reporter.step(f"Building the root file system ({wanted.codename}, once)"):
            _bootstrap(wanted, building, lock, reporter)
            _finish(wanted, building / "root")
            run(["sync", "--file-system", str(building)])
        (building / "root").rename(done)
        remove_tree(building)
    return done


@contextmanager
def locked(path: Path, reporter: Reporter) -> Iterator[int]:
    """Hold the build lock `path`; yields its handle."""
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with reporter.step("Waiting for another build of a root file system"):
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield handle.fileno()


def _bootstrap(wanted: Recipe, building: Path, lock: int, reporter: Reporter) -> None:
    skeleton = building / "skeleton"
    for name, data in (wanted.apt.files | wanted.certificates | wanted.seed).items():
        target = skeleton / name.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        target.chmod(0o600 if "/auth.conf" in name else 0o755 if data.startswith(b"#!") else 0o644)
    write(skeleton / "etc/apt/apt.conf.d/00-host", wanted.apt.options)
    options = building / "apt.conf"
    options.write_text(wanted.apt.options)
    argv = ["mmdebstrap", "--mode=root", "--variant=important", "--format=directory"]
    argv += [f"--include={','.join((*PACKAGES, *wanted.extra))}", f"--aptopt={options}"]
    argv += [
        f"--setup-hook=sync-in {shlex.quote(str(skeleton))} /",
        wanted.codename,
        str(building / "root"),
        "-",
    ]
    tail: deque[str] = deque(maxlen=20)
    with subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment({"LC_ALL": "C.UTF-8"}),
        # It shares the lock: when this process is killed, the next build waits until mmdebstrap ends.
        pass_fds=(lock,),
    ) as process:
        if process.stdin is None or process.stdout is None:
            raise AssertionError("both are pipes")
        process.stdin.write(wanted.apt.sources)
        process.stdin.close()
        for line in process.stdout:
            tail.append(line.rstrip())
            if line.startswith("I: "):
                reporter.say(f"  {line[3:].rstrip()}")
    if process.returncode != 0:
        said = "\n  ".join(tail)
        raise LabError(
            f"mmdebstrap exited with {process.returncode}; check that `apt-get update` works here, "
            f"then run this again. Its last lines:\n  {said}"
        )


def _finish(wanted: Recipe, root: Path) -> None:
    def inside(*argv: str) -> None:
        run(["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", "chroot", str(root), *argv])

    inside("update-ca-certificates")
    inside("useradd", "--create-home", "--shell", "/bin/bash", wanted.user)
    write(root / f"etc/sudoers.d/{wanted.user}", f"{wanted.user} ALL=(ALL:ALL) NOPASSWD:ALL\n", mode=0o440)
    if wanted.environment:
        with (root / "etc/environment").open("a") as handle:
            handle.write(wanted.environment)
    write(root / "etc/ssh/sshd_config.d/10-splitrail.conf", "PasswordAuthentication no\nUseDNS no\n")
    # Each node has its own; empty means "not set yet" to systemd.
    write(root / "etc/machine-id", "")
    for name in (root / "etc/ssh").glob("ssh_host_*"):
        name.unlink()
    inside("systemctl", "enable", "systemd-networkd.service", "ssh.service")
    # These would take dpkg's lock in the middle of a role's work.
    inside("systemctl", "mask", "apt-daily.timer", "apt-daily-upgrade.timer")
    shutil.rmtree(root / "var/cache/apt/archives", ignore_errors=True)
