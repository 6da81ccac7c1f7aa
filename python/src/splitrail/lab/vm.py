"""Nodes that are QEMU machines: a kernel of their own, a NIC and a soft-RoCE device a rail, and snapshots."""

from __future__ import annotations

import hashlib
import json
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from splitrail.lab import cable, identity, image, network, pip, process, qemu, share
from splitrail.lab.files import remove_tree, write
from splitrail.lab.identity import File
from splitrail.lab.node import NodeKind, last_lines, machine, machine_id
from splitrail.lab.qmp import Monitor, monitor
from splitrail.lab.report import Reporter
from splitrail.lab.run import LabError, environment, run
from splitrail.lab.spec import Lab, Mount, Node
from splitrail.lab.state import State, cache

_STOP_SECONDS = 20.0
_START_SECONDS = 30.0
_SNAPSHOT_SECONDS = 300.0
_SYSTEMD = Path("/run/systemd/system")


class VirtualMachines(NodeKind):
    """The nodes of one lab as virtual machines."""

    tools: ClassVar[Mapping[str, str]] = {
        qemu.PROGRAM: "qemu-system-x86",
        "qemu-img": "qemu-utils",
        "mmdebstrap": "mmdebstrap",
        "mkfs.ext4": "e2fsprogs",
        "nft": "nftables",
        "ip": "iproute2",
        "tc": "iproute2",
        "ssh": "openssh-client",
        "ssh-keygen": "openssh-client",
    }

    memory: ClassVar[str] = "awk '/^MemTotal:/ { s = $2 } /^MemAvailable:/ { print s - $2 }' /proc/meminfo"

    def __init__(self, lab: Lab, state: State, reporter: Reporter) -> None:
        self._lab = lab
        self._state = state
        self._reporter = reporter
        self._image: image.Image | None = None
        self._kvm = False
        self._pip = ""

    # What all nodes share

    def prepare(self) -> None:
        """See NodeKind."""
        self._image = image.ensure(self._lab.user, cache(), self._reporter)
        self._kvm = qemu.usable_kvm(self._image.kernel, cache() / "vm/kvm.json")
        share.make_sources(self._lab)
        config = pip.from_machine()
        # A VM sees no folder of this host: a pip.conf that names one would make every install fail.
        self._pip = "" if config.paths else config.text

    # Disk

    def install(self, node: Node) -> str | None:
        """See NodeKind."""
        if self._image is None:
            raise AssertionError("prepare comes first")
        folder = self._state.node(node.name)
        installed = self._installed(node.name)
        note = None
        if installed is not None and not (cache() / "vm" / installed["image"]).is_dir():
            note = f"{node.name}: its disk's image is gone from the cache, so it was installed anew"
            installed = None
        if installed is None:
            self.remove(node.name)
            folder.mkdir(parents=True)
            folder.chmod(0o700)
            base = self._image
            backing = ["-b", str(base.disk), "-F", "raw"]
            run(["qemu-img", "create", "-q", "-f", "qcow2", *backing, str(qemu.disk(folder))])
            key = folder / "ssh_host_ed25519_key"
            run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"root@{node.name}", "-f", str(key)])
            # Last, and in one step: a folder without it is an install that was killed.
            installed = {
                "image": base.folder.name,
                "settings": self._settings(node),
                "address": str(node.address),
            }
            write(folder / "installed.json", json.dumps(installed) + "\n")
        elif installed["address"] != str(node.address):
            raise LabError(
                f"{node.name}: ansible_host is {node.address}, but it was installed with "
                f"{installed['address']}; run `splitrail lab reset {node.name}`"
            )
        elif installed["settings"] != self._settings(node):
            note = f"{node.name}: settings changed since; `splitrail lab reset {node.name}` applies them"
        elif installed["image"] != self._image.folder.name:
            note = (
                f"{node.name}: its disk's image is an older one; `splitrail lab reset {node.name}` renews it"
            )
        return note

    def host_key(self, name: str) -> str | None:
        """See NodeKind."""
        path = self._state.node(name) / "ssh_host_ed25519_key.pub"
        return path.read_text().strip() if self._installed(name) and path.exists() else None

    def remove(self, name: str) -> None:
        """See NodeKind."""
        self.power_off(name)
        cable.unplug(self._lab.name, name)
        remove_tree(self._state.node(name))

    def _installed(self, name: str) -> dict[str, str] | None:
        try:
            data: dict[str, str] = json.loads((self._state.node(name) / "installed.json").read_text())
        except FileNotFoundError:
            return None
        return data

    def _settings(self, node: Node) -> str:
        """A digest of all that an installed node does not take up by itself."""
        lab = self._lab
        return hashlib.sha256(
            json.dumps([node.name, lab.memory_mib, lab.cpus, lab.rails, self._pip]).encode()
        ).hexdigest()

    def _base(self, name: str) -> image.Image:
        """The image that the node stands on, which may be older than today's."""
        installed = self._installed(name)
        if installed is None:
            raise LabError(f"{name} is not installed; run `splitrail lab up {name}`")
        return image.Image(cache() / "vm" / installed["image"])

    def _identity(self, node: Node) -> bytes:
        """What the node finds when it boots; see `splitrail.lab.identity`."""
        lab, folder = self._lab, self._state.node(node.name)
        owner = self._base(node.name).owner
        home = f"home/{lab.user}/.ssh"
        management = cable.mac(lab.name, node.name, cable.MANAGEMENT)
        rails = "".join(f"{rail} {qemu.pci(rail)}\n" for rail in range(lab.rails))
        files = {
            "etc/hostname": File(f"{node.name}\n"),
            "etc/machine-id": File(f"{machine_id(lab.name, node.name)}\n", 0o444),
            "etc/hosts": File(network.hosts(lab)),
            "etc/resolv.conf": File(network.resolv_conf()),
            "etc/fstab": File(_fstab(self._mounts(node))),
            "etc/systemd/network/10-lab.network": File(
                f"[Match]\nMACAddress={management}\n\n[Network]\n"
                f"Address={node.address}/{lab.network.prefixlen}\nGateway={lab.gateway}\n"
                f"LinkLocalAddressing=no\nIPv6AcceptRA=no\n"
            ),
            "etc/splitrail-lab": File(None, 0o755),
            "etc/splitrail-lab/rails": File(rails),
            "etc/ssh/ssh_host_ed25519_key": File((folder / "ssh_host_ed25519_key").read_text(), 0o600),
            "etc/ssh/ssh_host_ed25519_key.pub": File((folder / "ssh_host_ed25519_key.pub").read_text()),
            home: File(None, 0o700, owner),
            f"{home}/authorized_keys": File(lab.key.with_suffix(".pub").read_text(), 0o600, owner),
        }
        for mount in self._mounts(node):
            files[str(mount.target).lstrip("/")] = File(None, 0o755)
        if self._pip:
            files["etc/pip.conf"] = File(self._pip)
        return identity.archive(files)

    # Power

    def _processes(self, name: str) -> list[process.Process]:
        """The node's QEMU, known by its name and its socket."""
        full = machine(self._lab.name, name)
        control = f"unix:{qemu.socket(self._state.node(name))},server=on,wait=off"
        return process.with_arguments("-name", full, "-qmp", control)

    def _monitor(self, name: str) -> Any:
        return monitor(name, qemu.socket(self._state.node(name)))

    def is_on(self, name: str) -> bool:
        """See NodeKind."""
        return bool(self._processes(name))

    def power_on(self, node: Node) -> None:
        """See NodeKind."""
        self._start(node, None)

    def _start(self, node: Node, snapshot: str | None) -> None:
        lab, folder = self._lab, self._state.node(node.name)
        faults = cable.faults(folder)
        if self.is_on(node.name):
            self._connect(node, faults)
            return
        self._sweep(node.name)
        cable.plug(lab, node.name, faults)
        base = self._base(node.name)
        shares = self._shares(node, snapshot)
        initrd = identity.padded(base.initrd.read_bytes()) + identity.appendix(self._identity(node))
        (folder / "initrd.img").touch(mode=0o600)
        (folder / "initrd.img").write_bytes(initrd)
        log = folder / "qemu.log"
        log.write_bytes(b"")
        (folder / "console.log").unlink(missing_ok=True)
        ids = [*((cable.nic(rail), qemu.RAIL_MTU) for rail in range(lab.rails)), (cable.MANAGEMENT, None)]
        nics = [
            qemu.Nic(nic, cable.tap(lab.name, node.name, nic), cable.mac(lab.name, node.name, nic), mtu)
            for nic, mtu in ids
        ]
        argv = qemu.arguments(
            qemu.Machine(
                name=machine(lab.name, node.name),
                folder=folder,
                kernel=base.kernel,
                memory_mib=lab.memory_mib,
                cpus=lab.cpus,
                nics=nics,
                shares=shares,
                kvm=self._kvm,
                snapshot=snapshot,
            )
        )
        if _SYSTEMD.is_dir():
            run(unit_command(self._unit(node.name), argv, log))
        else:
            with log.open("ab") as stream:
                subprocess.Popen(
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=stream,
                    env=environment(),
                    cwd="/",
                    start_new_session=True,
                )
        self._await(node.name)
        self._connect(node, faults)

    def _mounts(self, node: Node) -> list[Mount]:
        return [mount for mount in self._lab.mounts if node.sees(mount)]

    def _shares(self, node: Node, snapshot: str | None) -> list[Path]:
        """The disks of the node's mounts: of folders as they are, or those of the snapshot."""
        record = self._state.node(node.name) / "shares.json"
        if snapshot is None:
            store = cache() / "vm/mounts"
            disks = [
                share.disk(cache() / mount.source, store, self._reporter) for mount in self._mounts(node)
            ]
            write(record, json.dumps([str(path) for path in disks]) + "\n")
            return disks
        disks = [Path(path) for path in json.loads(record.read_text())] if record.exists() else []
        for path in disks:
            if not path.exists():
                raise LabError(
                    f"{node.name}: a folder that it sees has changed since the snapshot `{snapshot}`; "
                    "run `splitrail lab power on`, which boots it, and save it again"
                )
        return disks

    def _await(self, name: str) -> None:
        """Wait until the node's QEMU answers; reading a snapshot's memory comes before that."""
        deadline = time.monotonic() + _START_SECONDS
        error: LabError | None = None
        while self.is_on(name) and time.monotonic() < deadline:
            try:
                with self._monitor(name) as opened:
                    opened.execute("query-status")
                return
            except LabError as failed:
                error = failed
            time.sleep(0.1)
        said = last_lines(self._state.node(name) / "qemu.log", 5)
        raise LabError(f"{name}: QEMU did not start: {'; '.join(said) or 'it printed nothing'}") from error

    def power_off(self, name: str) -> None:
        """See NodeKind."""
        deadline = time.monotonic() + _STOP_SECONDS
        while found := self._processes(name):
            for one in found:
                process.kill(one, _STOP_SECONDS)
            if time.monotonic() > deadline:
                raise LabError(f"{name}: its processes do not die; look at `dmesg`")
        self._sweep(name)

    def _sweep(self, name: str) -> None:
        if _SYSTEMD.is_dir():
            # 5: no such unit, which is what is wanted
            run(["systemctl", "stop", self._unit(name)], ok=(0, 5))
        qemu.socket(self._state.node(name)).unlink(missing_ok=True)

    def console(self, name: str, lines: int) -> list[str]:
        """See NodeKind."""
        folder = self._state.node(name)
        return (last_lines(folder / "console.log", lines) + last_lines(folder / "qemu.log", lines))[-lines:]

    def _unit(self, name: str) -> str:
        return f"splitrail-lab-{machine(self._lab.name, name)}.service"

    # Cables

    def link(self, node: Node, rail: int | None, action: str, value: float | None) -> dict[int, str]:
        """See NodeKind."""
        folder = self._state.node(node.name)
        declared = cable.faults(folder)
        known = {each: declared.get(each, cable.Fault(each)) for each in range(self._lab.rails)}
        if rail is not None and rail not in known:
            raise LabError(
                f"{node.name}: no rail {rail}; lab_rails is {self._lab.rails}, so they are numbered from 0"
            )
        if action != "show":
            if self._installed(node.name) is None:
                raise LabError(f"{node.name} is not installed; run `splitrail lab up {node.name}`")
            wanted = known
            for each in known if rail is None else [rail]:
                wanted = cable.changed(wanted, each, action, value)
            cable.declare(folder, wanted)
            if self.is_on(node.name):  # else they come with its power
                self._connect(node, cable.faults(folder))
            known = wanted
        return {each: fault.words(each) for each, fault in known.items()}

    def _connect(self, node: Node, faults: dict[int, cable.Fault]) -> None:
        """Put the node's cables where they belong, with the faults that are declared."""
        cable.plug(self._lab, node.name, faults)
        cable.lose(self._lab, {name: self._state.node(name) for name in self._state.nodes()})
        with self._monitor(node.name) as opened:
            self._carry(opened, faults)

    def _carry(self, opened: Monitor, faults: dict[int, cable.Fault]) -> None:
        """Give each rail's NIC its carrier, or take it away."""
        for rail in range(self._lab.rails):
            opened.execute("set_link", name=cable.nic(rail), up=not (rail in faults and faults[rail].down))

    # Snapshots

    def snapshots(self, node: Node) -> list[tuple[str, float]]:
        """See NodeKind."""
        if self._installed(node.name) is None:
            return []
        path = qemu.disk(self._state.node(node.name))
        # --force-share: a running QEMU holds the disk's lock.
        shown = json.loads(run(["qemu-img", "info", "--force-share", "--output=json", str(path)]))
        return [(one["name"], float(one["date-sec"])) for one in shown.get("snapshots", [])]

    def save(self, node: Node, snapshot: str) -> None:
        """See NodeKind."""
        if not self.is_on(node.name):
            raise LabError(f"{node.name} is off, and a snapshot is of a running node; run `splitrail lab up`")
        old = snapshot in (name for name, _ in self.snapshots(node))
        with self._monitor(node.name) as opened:
            if old:
                opened.job("snapshot-delete", _SNAPSHOT_SECONDS, tag=snapshot, devices=["disk"])
            opened.job("snapshot-save", _SNAPSHOT_SECONDS, tag=snapshot, vmstate="disk", devices=["disk"])

    def restore(self, node: Node, snapshot: str) -> None:
        """See NodeKind."""
        have = [name for name, _ in self.snapshots(node)]
        if snapshot not in have:
            raise LabError(f"{node.name}: no snapshot `{snapshot}`; it has {', '.join(have) or 'none'}")
        if not self.is_on(node.name):
            self._start(node, snapshot)
            return
        with self._monitor(node.name) as opened:
            opened.job("snapshot-load", _SNAPSHOT_SECONDS, tag=snapshot, vmstate="disk", devices=["disk"])
            self._carry(opened, cable.faults(self._state.node(node.name)))
            opened.execute("cont")


def _fstab(mounts: Sequence[Mount]) -> str:
    """Disks are found by serial, in the order of `lab_mounts`; a node boots without a broken one."""
    return "".join(
        f"/dev/disk/by-id/virtio-{qemu.serial(position)} {mount.target} ext4 ro,nofail 0 0\n"
        for position, mount in enumerate(mounts)
    )


def unit_command(unit: str, argv: list[str], log: Path) -> list[str]:
    """How a node is started where systemd runs this host: a transient unit, with a cgroup of its own."""
    return [
        *("systemd-run", f"--unit={unit}", "--collect", "--quiet", "--service-type=exec"),
        *(f"--property=StandardOutput=append:{log}", f"--property=StandardError=append:{log}"),
        *argv,
    ]
