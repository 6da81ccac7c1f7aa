"""Nodes that are systemd-nspawn machines: a full systemd on this host's kernel, own address, own disk."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import ClassVar

from splitrail.lab import network, pip, process, rootfs, share
from splitrail.lab.files import remove_tree, write
from splitrail.lab.node import NodeKind, last_lines, machine, machine_id
from splitrail.lab.report import Reporter
from splitrail.lab.run import LabError, environment, run
from splitrail.lab.spec import Lab, Mount, Node
from splitrail.lab.state import State, cache, prune

# nspawn leaves with this status when its machine rebooted and wants to be started again.
_REBOOT = 133
_SUPERVISE = f'[ -z "$0" ] || echo $$ > "$0/cgroup.procs"; while "$@"; [ $? -eq {_REBOOT} ]; do :; done'
_STOP_SECONDS = 20.0
_SYSTEMD = Path("/run/systemd/system")
_NSPAWN = Path("/run/systemd/nspawn")


def nspawn_command(
    lab: Lab, node: Node, folder: Path, mounts: Iterable[tuple[Path, Path, bool]]
) -> list[str]:
    """The command line of a node; `mounts` are (source, target, writable)."""
    argv = [
        "systemd-nspawn",
        f"--machine={machine(lab.name, node.name)}",
        f"--directory={folder / 'root'}",
        f"--hostname={node.name}",
        "--boot",
        "--quiet",
        "--settings=no",
        "--register=no",
        "--keep-unit",
        "--link-journal=no",
        "--resolv-conf=off",
        "--timezone=off",
        "--console=read-only",
        "--capability=all",
        f"--network-bridge={lab.bridge}",
        f"--tmpfs=/dev/shm:mode=1777,size={int(lab.shm_gib * 1024)}m",
    ]
    for source, target, writable in mounts:
        argv.append(f"--bind{'' if writable else '-ro'}={_escaped(source)}:{_escaped(target)}")
    return argv


def mounts_of(
    node: Node, mounts: Iterable[Mount], folder: Path, base: Path, pip_paths: Iterable[Path]
) -> list[tuple[Path, Path, bool]]:
    """The (source, target, writable) of a node; a relative source lies in `base`, the cache."""
    # podman's overlay driver cannot live on an overlay, which is what the node's disk is.
    found = [(folder / "containers", Path("/var/lib/containers"), True)]
    for mount in mounts:
        if node.sees(mount):
            found.append((base / mount.source, mount.target, node.is_in(mount.writable_on)))
    found += [(path, path, False) for path in pip_paths]
    return found


def _escaped(path: Path) -> str:
    return str(path).replace("\\", "\\\\").replace(":", "\\:")


class Containers(NodeKind):
    """The nodes of one lab as containers."""

    tools: ClassVar[Mapping[str, str]] = {
        "systemd-nspawn": "systemd-container",
        "mmdebstrap": "mmdebstrap",
        "nft": "nftables",
        "ip": "iproute2",
        "ssh": "openssh-client",
        "ssh-keygen": "openssh-client",
        "nsenter": "util-linux",
    }

    # Of all processes, shared pages counted once: /proc/meminfo is the host's. A process that ends meanwhile
    # has no memory to count.
    memory: ClassVar[str] = (
        "sudo -n sh -c 'cat /proc/[0-9]*/smaps_rollup 2>/dev/null' | "
        "awk '/^Pss:/ { s += $2 } END { print s + 0 }'"
    )

    def __init__(self, lab: Lab, state: State, reporter: Reporter) -> None:
        self._lab = lab
        self._state = state
        self._reporter = reporter
        self._recipe: rootfs.Recipe | None = None
        self._pip: pip.PipConfig = pip.PipConfig("", ())

    # What all nodes share

    def prepare(self) -> None:
        """See NodeKind."""
        self._recipe = rootfs.recipe(self._lab.user)
        rootfs.ensure(self._recipe, cache(), self._reporter)
        config = pip.from_machine()
        for path in config.paths:
            if not path.exists():
                self._reporter.say(f"pip's configuration names {path}, which does not exist: left out")
        self._pip = pip.PipConfig(config.text, tuple(path for path in config.paths if path.exists()))
        share.make_sources(self._lab)

    # Disk

    def install(self, node: Node) -> str | None:
        """See NodeKind."""
        if self._recipe is None:
            raise AssertionError("prepare comes first")
        folder = self._state.node(node.name)
        installed = self._installed(node.name)
        note = None
        if installed is not None and not (cache() / "rootfs" / installed["base"]).is_dir():
            note = f"{node.name}: its root file system is gone from the cache, so it was installed anew"
            installed = None
        if installed is None:
            self.remove(node.name)
            for name in ("upper", "work", "root", "containers"):
                (folder / name).mkdir(parents=True, exist_ok=True)
            folder.chmod(0o700)
            base = self._recipe.key
            self._mount(node.name, base)
            self._identify(node, folder)
            # Last, and in one step: a folder without it is an install that was killed.
            installed = {"base": base, "settings": self._settings(node), "address": str(node.address)}
            write(folder / "installed.json", json.dumps(installed) + "\n")
        elif installed["address"] != str(node.address):
            raise LabError(
                f"{node.name}: ansible_host is {node.address}, but it was installed with "
                f"{installed['address']}; run `splitrail lab reset {node.name}`"
            )
        elif installed["settings"] != self._settings(node):
            note = f"{node.name}: settings changed since; `splitrail lab reset {node.name}` applies them"
        self._mount(node.name, installed["base"])
        self._refresh(folder / "root")
        return note

    def host_key(self, name: str) -> str | None:
        """See NodeKind."""
        path = self._state.node(name) / "root/etc/ssh/ssh_host_ed25519_key.pub"
        return path.read_text().strip() if self._installed(name) and path.exists() else None

    def remove(self, name: str) -> None:
        """See NodeKind."""
        self.power_off(name)
        folder = self._state.node(name)
        while self._is_mounted(folder / "root"):
            run(["umount", str(folder / "root")])
        remove_tree(folder)

    def _installed(self, name: str) -> dict[str, str] | None:
        try:
            data: dict[str, str] = json.loads((self._state.node(name) / "installed.json").read_text())
        except FileNotFoundError:
            return None
        return data

    def _settings(self, node: Node) -> str:
        """A digest of all that an installed node does not take up by itself."""
        command = nspawn_command(self._lab, node, self._state.node(node.name), self._mounts(node))
        return hashlib.sha256(json.dumps([command, self._pip.text]).encode()).hexdigest()

    def _mounts(self, node: Node) -> list[tuple[Path, Path, bool]]:
        return mounts_of(node, self._lab.mounts, self._state.node(node.name), cache(), self._pip.paths)

    @staticmethod
    def _is_mounted(path: Path) -> bool:
        # mountinfo writes a space as \040; the names here hold none.
        return any(
            line.split()[4] == str(path) for line in Path("/proc/self/mountinfo").read_text().splitlines()
        )

    def _mount(self, name: str, base: str) -> None:
        folder = self._state.node(name)
        if self._is_mounted(folder / "root"):
            return
        layers = f"lowerdir={cache() / 'rootfs' / base},upperdir={folder / 'upper'},workdir={folder / 'work'}"
        # Two overlays on the same folders corrupt them: a node whose mount was taken away has to go down.
        self.power_off(name)
        run(["mount", "-t", "overlay", _source(self._lab.name, name), "-o", layers, str(folder / "root")])

    def _identify(self, node: Node, folder: Path) -> None:
        """Write what tells one node from another."""
        root = folder / "root"
        write(root / "etc/hostname", f"{node.name}\n")
        write(root / "etc/machine-id", f"{machine_id(self._lab.name, node.name)}\n", mode=0o444)
        write(
            root / "etc/systemd/network/10-lab.network",
            f"[Match]\nName=host0\n\n[Network]\nAddress={node.address}/{self._lab.network.prefixlen}\n"
            f"Gateway={self._lab.gateway}\nLinkLocalAddressing=no\n",
        )
        if self._pip.text:
            write(root / "etc/pip.conf", self._pip.text)
        path = root / "etc/ssh/ssh_host_ed25519_key"
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"root@{node.name}", "-f", str(path)])

    def _refresh(self, root: Path) -> None:
        """Write what may change on this host or in the inventory while a node lives."""
        write(root / "etc/resolv.conf", network.resolv_conf())
        write(root / "etc/hosts", network.hosts(self._lab))
        home = root / "home" / self._lab.user
        owner = (home.stat().st_uid, home.stat().st_gid)
        keys = home / ".ssh"
        keys.mkdir(mode=0o700, exist_ok=True)
        os.chown(keys, *owner)
        write(
            keys / "authorized_keys", self._lab.key.with_suffix(".pub").read_text(), mode=0o600, owner=owner
        )

    # Power

    def _supervisors(self, name: str) -> list[process.Process]:
        """nspawn, and the shell that starts it again when the node rebooted."""
        root = self._state.node(name) / "root"
        return process.with_arguments(f"--machine={machine(self._lab.name, name)}", f"--directory={root}")

    def _init(self, name: str) -> process.Process | None:
        return process.container_init(_source(self._lab.name, name))

    def is_on(self, name: str) -> bool:
        """See NodeKind."""
        if self._supervisors(name):
            return True
        # Between two boots of a node that reboots, systemd has no process of it.
        return _SYSTEMD.is_dir() and _unit_state(self._unit(name)) in ("activating", "reloading")

    def power_on(self, node: Node) -> None:
        """See NodeKind."""
        if self.is_on(node.name):
            self._reattach(node.name)
            return
        self.power_off(node.name)  # what a killed nspawn left behind
        folder = self._state.node(node.name)
        argv = nspawn_command(self._lab, node, folder, self._mounts(node))
        console = folder / "console.log"
        console.write_bytes(b"")
        hierarchy = {"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"}
        if _SYSTEMD.is_dir():
            run(unit_command(self._unit(node.name), argv, console, hierarchy))
            return
        group = next(iter(_cgroups(machine(self._lab.name, node.name))), None)
        if group:
            group.mkdir(parents=True, exist_ok=True)
        with console.open("ab") as stream:
            subprocess.Popen(
                ["sh", "-c", _SUPERVISE, str(group or ""), *argv],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                env=environment(hierarchy),
                cwd="/",
                start_new_session=True,
            )

    def power_off(self, name: str) -> None:
        """See NodeKind."""
        deadline = time.monotonic() + _STOP_SECONDS
        while True:
            supervisors, init = self._supervisors(name), self._init(name)
            if not supervisors and not init:
                break
            # First whoever would start it again, then the machine; nspawn tidies up and leaves by itself.
            nspawns = [one for one in supervisors if Path(one.argv[0]).name == "systemd-nspawn"]
            for one in supervisors:
                if one not in nspawns:
                    process.kill(one, _STOP_SECONDS)
            if init:
                process.kill(init, _STOP_SECONDS)
            for one in nspawns:
                process.kill(one, _STOP_SECONDS)
            if time.monotonic() > deadline:
                raise LabError(f"{name}: its processes do not die; look at `dmesg`")
        self._sweep(name)

    def _sweep(self, name: str) -> None:
        """Remove what nspawn keeps outside the node's folder, in case it could not do so itself."""
        full = machine(self._lab.name, name)
        if _SYSTEMD.is_dir():
            # 5: no such unit, which is what is wanted
            run(["systemctl", "stop", self._unit(name)], ok=(0, 5))
        else:
            for group in _cgroups(full):
                _remove_cgroup(group)
        network.detach(full)
        remove_tree(_NSPAWN / "propagate" / full)
        root = self._state.node(name) / "root"
        if self._is_mounted(root):
            at = root.stat()
            (_NSPAWN / "locks" / f"inode-{at.st_dev}:{at.st_ino}").unlink(missing_ok=True)

    def console(self, name: str, lines: int) -> list[str]:
        """See NodeKind."""
        return last_lines(self._state.node(name) / "console.log", lines)

    # What only a machine with a kernel of its own has

    def link(
        self,
        node: Node,
        rail: int | None,  # noqa: ARG002
        action: str,
        value: float | None,  # noqa: ARG002
    ) -> dict[int, str]:
        """See NodeKind."""
        raise _only_vms(node, f"link {action}")

    def snapshots(self, node: Node) -> list[tuple[str, float]]:
        """See NodeKind."""
        raise _only_vms(node, "snapshot list")

    def save(self, node: Node, snapshot: str) -> None:
        """See NodeKind."""
        raise _only_vms(node, f"snapshot save {snapshot}")

    def restore(self, node: Node, snapshot: str) -> None:
        """See NodeKind."""
        raise _only_vms(node, f"snapshot restore {snapshot}")

    def _unit(self, name: str) -> str:
        return f"splitrail-lab-{machine(self._lab.name, name)}.service"

    def _reattach(self, name: str) -> None:
        """Put a running node's interface on the bridge again, in case the bridge was made anew."""
        init = self._init(name)
        if init is None:
            return  # between two boots: the next one attaches itself
        shown = run(["nsenter", f"--net=/proc/{init.pids[0]}/ns/net", "ip", "-json", "link", "show", "host0"])
        network.attach(json.loads(shown)[0]["link_index"], self._lab.bridge)


def _only_vms(node: Node, what: str) -> LabError:
    return LabError(
        f"{node.name} is a container, which has neither rails nor snapshots, so no `{what}`; "
        f"use an inventory whose lab_kind is `vm`, such as inventories/lab-fabric"
    )


def _source(lab: str, node: str) -> str:
    """The source of a node's root mount, by which its processes are told from others."""
    return f"splitrail-{machine(lab, node)}"


def _unit_state(unit: str) -> str:
    return run(["systemctl", "show", "--property=ActiveState", "--value", unit]).strip()


def unit_command(unit: str, argv: list[str], console: Path, env: dict[str, str]) -> list[str]:
    """How a node is started where systemd runs this host: a transient unit, with a cgroup of its own."""
    properties = {
        "Delegate": "yes",
        "KillMode": "mixed",
        "TasksMax": "infinity",
        "RestartForceExitStatus": str(_REBOOT),
        "SuccessExitStatus": str(_REBOOT),
        "StandardOutput": f"append:{console}",
        "StandardError": f"append:{console}",
    }
    return [
        *("systemd-run", f"--unit={unit}", "--collect", "--quiet", "--service-type=exec"),
        *(f"--property={key}={value}" for key, value in properties.items()),
        *(f"--setenv={key}={value}" for key, value in env.items()),
        *argv,
    ]


def _cgroups(name: str) -> list[Path]:
    """Where a node's control group lies on a host without systemd: cgroup v2 first, then v1's copy by nspawn.

    Without one of its own, every node's systemd would manage the same control groups as the next node's.
    """
    mounts = [line.split()[1:4] for line in Path("/proc/self/mounts").read_text().splitlines()]
    second = [target for target, kind, _ in mounts if kind == "cgroup2"]
    first = [
        target
        for target, kind, options in mounts
        if kind == "cgroup" and "name=systemd" in options.split(",")
    ]
    return [Path(target) / "splitrail" / name for target in (*second, *first)]


def _remove_cgroup(group: Path) -> None:
    deadline = time.monotonic() + _STOP_SECONDS
    while group.is_dir():
        try:
            for folder, _, _ in os.walk(group, topdown=False):
                Path(folder).rmdir()
        except OSError as error:
            # The kernel needs a moment after the last process to let go of it.
            if time.monotonic() > deadline:
                raise LabError(f"{group}: {error.strerror}; see who is in its cgroup.procs") from error
            time.sleep(0.05)
    prune(group.parent, group.parent)
