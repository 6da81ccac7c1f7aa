#!/usr/bin/python3
"""Set what NICs and PCI bridges forget at each boot, and say whether it is so.

    roce_runtime.py apply [--json]    set what differs from the declared state, then check
    roce_runtime.py check [--json]    look only

The declared state is in /etc/splitrail/roce.json; what is not declared is left alone. Exit codes: 0 all is
as declared, 1 a check failed, 2 could not run. splitrail-roce.service runs this at boot, ahead of what uses
RDMA. Standard library only.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BDF = re.compile(r"^[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]$")
PRIORITIES = range(8)
ECN_SIDES = ("roce_np", "roce_rp")
RDMA_SETTINGS = {"traffic_class", "cma_tos"}
JOURNAL = (
    "Read `journalctl -u splitrail-roce`, and run `python3 /usr/local/lib/splitrail/roce_runtime.py apply`."
)
Check = dict[str, Any]


class Unsupported(Exception):
    """The NIC, its driver or the kernel has no such setting; the message says what is missing."""


class Trouble(Exception):
    """It should work and does not; the message says why."""


def run(*command: str) -> tuple[int, str]:
    """Exit code and output of a command. Raises Trouble when it cannot be run."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Trouble(str(error)) from error
    return done.returncode, done.stdout + done.stderr


def last_line(output: str) -> str:
    """Where a tool says what went wrong."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1] if lines else "no output"


def text(path: Path) -> str:
    """A file of sysfs. Raises Unsupported when it is not there, Trouble when it cannot be read."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except FileNotFoundError as error:
        raise Unsupported(f"no {path}") from error
    except OSError as error:
        raise Trouble(str(error)) from error


def write(path: Path, value: object) -> None:
    """Write a file of sysfs. Raises Trouble."""
    try:
        path.write_text(f"{value}\n", encoding="utf-8")
    except OSError as error:
        raise Trouble(str(error)) from error


@dataclass
class Nic:
    """A rail's NIC, and how its machine is reached; tests put answers and folders of their own in place."""

    name: str
    sysfs: Path = Path("/sys")
    run: Callable[..., tuple[int, str]] = run
    which: Callable[[str], Any] = shutil.which
    qos: tuple[str, list[int]] | None = field(default=None, repr=False)  # trust and PFC, once read

    @property
    def netdev(self) -> Path:
        """Its interface."""
        return self.sysfs / "class/net" / self.name

    @property
    def pci(self) -> str:
        """Its PCI address; a virtio NIC has a device of its own in between. Raises Unsupported."""
        device = self.netdev / "device"
        real = device.resolve()
        for path in (real, *real.parents) if device.exists() else ():
            if BDF.match(path.name):
                return path.name
        raise Unsupported("no PCI device")

    @property
    def rdma(self) -> Path:
        """Its RDMA device, found by the interface of its GIDs, never by name. Raises Unsupported."""
        for device in sorted((self.sysfs / "class/infiniband").glob("*")):
            for gid in (device / "ports/1/gid_attrs/ndevs").glob("*"):
                try:
                    if gid.read_text(encoding="utf-8").strip() == self.name:
                        return device
                except OSError:
                    continue  # an unused entry
        raise Unsupported("no RDMA device")


# Trust and PFC: by mlnx_qos where it is installed, else by dcb.


def read_qos(nic: Nic) -> tuple[str, list[int]]:
    """Trust, and the priorities with PFC. Raises Unsupported and Trouble."""
    if nic.qos is None:
        if nic.which("mlnx_qos"):
            nic.qos = parse_mlnx_qos(*nic.run("mlnx_qos", "-i", nic.name))
        elif nic.which("dcb"):
            pfc = parse_dcb(*nic.run("dcb", "pfc", "show", "dev", nic.name, "prio-pfc"))
            app = parse_dcb(*nic.run("dcb", "-N", "app", "show", "dev", nic.name, "dscp-prio"))
            nic.qos = ("dscp" if app else "pcp", [int(prio) for prio, state in pfc if state == "on"])
        else:
            raise Trouble("neither mlnx_qos (mlnx-tools) nor dcb (iproute2) is installed")
    return nic.qos


def parse_mlnx_qos(code: int, output: str) -> tuple[str, list[int]]:
    """Trust, and the priorities with PFC, of mlnx_qos's answer."""
    trust = re.search(r"^Priority trust state: (\w+)", output, re.MULTILINE)
    enabled = re.search(r"^\s*enabled((?:\s+[01]){8})\s*$", output, re.MULTILINE)
    if "not supported on your system" in output and enabled is None:
        raise Unsupported(f"mlnx_qos: {last_line(output)}")
    if code != 0 or trust is None or enabled is None:
        raise Trouble(f"mlnx_qos: {last_line(output)}")
    return trust[1], [prio for prio, on in enumerate(enabled[1].split()) if on == "1"]


def parse_dcb(code: int, output: str) -> list[tuple[str, str]]:
    """The pairs in dcb's answer."""
    if "not supported" in output:
        raise Unsupported(f"dcb: {last_line(output)}")
    if code != 0:
        raise Trouble(f"dcb: {last_line(output)}")
    return re.findall(r"(\d+):(\w+)", output)


def change_qos(nic: Nic, mlnx_qos: list[str], dcb: list[str]) -> None:
    """Set by the tool that is there. Raises Trouble."""
    nic.qos = None
    tool = "mlnx_qos" if nic.which("mlnx_qos") else "dcb"
    code, output = nic.run(tool, *(mlnx_qos if tool == "mlnx_qos" else dcb))
    if code != 0:
        raise Trouble(f"{tool}: {last_line(output)}")


def read_trust(nic: Nic, _: Any) -> Any:
    """`dscp` or `pcp`."""
    trust = read_qos(nic)[0]
    if trust == "none":
        raise Unsupported("mlnx_qos: no trust state")
    return trust


def set_trust(nic: Nic, trust: str) -> None:
    """With dcb, trust follows: a NIC with entries for DSCP trusts it. Each eight DSCPs are one priority."""
    entries = [f"{dscp}:{dscp // 8}" for dscp in range(64)]
    dcb = ["replace", "dev", nic.name, "dscp-prio", *entries]
    if trust != "dscp":
        dcb = ["flush", "dev", nic.name, "dscp-prio"]
    change_qos(nic, ["-i", nic.name, "--trust", trust], ["app", *dcb])


def read_pfc(nic: Nic, _: Any) -> Any:
    """The priorities with PFC."""
    return read_qos(nic)[1]


def set_pfc(nic: Nic, priorities: list[int]) -> None:
    """PFC on these priorities and on no other."""
    switches = ",".join(str(int(priority in priorities)) for priority in PRIORITIES)
    dcb = ["pfc", "set", "dev", nic.name, "prio-pfc", "all:off", *(f"{prio}:on" for prio in priorities)]
    change_qos(nic, ["-i", nic.name, "--pfc", switches], dcb)


# ECN, traffic class and ToS: files.


def read_ecn(nic: Nic, priorities: list[int]) -> Any:
    """Those of the declared priorities on which ECN works at both ends; of the others nothing is asked."""
    folders = [nic.netdev / "ecn" / side / "enable" for side in ECN_SIDES]
    return [prio for prio in priorities if [text(folder / str(prio)) for folder in folders] == ["1", "1"]]


def set_ecn(nic: Nic, priorities: list[int]) -> None:
    """Both as notification and as reaction point."""
    for side in ECN_SIDES:
        for priority in priorities:
            write(nic.netdev / "ecn" / side / "enable" / str(priority), 1)


def read_traffic_class(nic: Nic, _: Any) -> Any:
    """`Global tclass=106`; nothing where none is set."""
    match = re.match(r"^(?:Global tclass=)?(\d+)", text(nic.rdma / "tc/1/traffic_class"))
    return int(match[1]) if match else "none"


def set_traffic_class(nic: Nic, value: int) -> None:
    """Of all that the NIC sends by RDMA."""
    write(nic.rdma / "tc/1/traffic_class", value)


def with_cma(nic: Nic, value: int | None) -> int:
    """Read, and before that set, the ToS of connections made by RDMA CM. Raises Unsupported and Trouble."""
    device = nic.rdma.name
    folder = nic.sysfs / "kernel/config/rdma_cm"
    if not folder.exists() and nic.which("modprobe"):
        nic.run("modprobe", "--quiet", "rdma_cm")
    if folder.exists():
        return cma_by_file(folder / device, value)
    if not nic.which("cma_roce_tos"):
        raise Unsupported(f"no {folder}, and cma_roce_tos is not installed")
    code, output = nic.run("cma_roce_tos", "-d", device, *(["-t", str(value)] if value is not None else []))
    if code != 0 or not output.strip().isdigit():
        raise Trouble(f"cma_roce_tos: {last_line(output)}")
    return int(output)


def cma_by_file(folder: Path, value: int | None) -> int:
    """The same by configfs: the device's folder is made by whoever asks, and its values outlive it."""
    made = not folder.exists()
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise Unsupported(f"rdma_cm does not know the device: {error}") from error
    file = folder / "ports/1/default_roce_tos"
    try:
        if value is not None:
            write(file, value)
        return int(text(file))
    finally:
        if made:
            folder.rmdir()


def read_cma_tos(nic: Nic, _: Any) -> Any:
    """See with_cma."""
    return with_cma(nic, None)


def set_cma_tos(nic: Nic, value: int) -> None:
    """See with_cma."""
    with_cma(nic, value)


# PCI registers, by setpci.


def register(nic: Nic, device: str, name: str, change: str = "") -> int | None:
    """Read a register, or change it; None where the device has none. Raises Trouble."""
    if not nic.which("setpci"):
        raise Trouble("setpci (pciutils) is not installed")
    code, output = nic.run("setpci", "-s", device, f"{name}={change}" if change else name)
    if "not found" in output:
        return None
    if code != 0 or (not change and not re.fullmatch(r"[0-9a-f]+", output.strip())):
        raise Trouble(f"setpci: {last_line(output)}")
    return None if change else int(output, 16)


def read_max_read_request(nic: Nic, _: Any) -> Any:
    """Bytes that the NIC asks for at once: bits 12 to 14 of the PCIe device control register."""
    control = register(nic, nic.pci, "CAP_EXP+8.w")
    if control is None:
        raise Unsupported("no PCIe capability")
    return 128 << (control >> 12 & 7)


def set_max_read_request(nic: Nic, size: int) -> None:
    """Only those bits."""
    register(nic, nic.pci, "CAP_EXP+8.w", f"{(size // 128).bit_length() - 1:x}000:7000")


@dataclass(frozen=True)
class Setting:
    """One kind of state of a NIC: read by its required value, set to it."""

    read: Callable[[Nic, Any], Any]
    set: Callable[[Nic, Any], None]


SETTINGS = {
    "trust": Setting(read_trust, set_trust),
    "pfc": Setting(read_pfc, set_pfc),
    "ecn": Setting(read_ecn, set_ecn),
    "traffic_class": Setting(read_traffic_class, set_traffic_class),
    "cma_tos": Setting(read_cma_tos, set_cma_tos),
    "max_read_request": Setting(read_max_read_request, set_max_read_request),
}


def check(name: str, subject: str, measured: Any, required: Any, *, ok: bool, hint: str) -> Check:
    """One finding, as every verdict of the suite has them."""
    return {
        "name": f"roce_nic.{name}",
        "subject": subject,
        "ok": ok,
        "measured": measured,
        "required": required,
        "unit": "",
        "hint": hint,
    }


def look(nic: Nic, name: str, required: Any, trouble: str = "") -> Check:
    """The check of a setting; ``trouble`` is why it could not be set."""
    ok, hint = False, f"It could not be set: {trouble}. {JOURNAL}" if trouble else JOURNAL
    try:
        measured = SETTINGS[name].read(nic, required)
        ok = measured == required
    except Unsupported as why:
        measured = f"not supported by this NIC: {why}"
        hint = f"Set roce_nic_{name} to null for this NIC, or use a driver that has it (roce_nic_driver)."
    except Trouble as why:
        measured = f"could not be checked: {why}"
    return check(name, nic.name, measured, required, ok=ok, hint=hint)


def bridges_with_acs(machine: Nic) -> dict[str, int]:
    """The ACS control register of each PCI bridge that has one. Raises Trouble and Unsupported."""
    found = {}
    for device in sorted((machine.sysfs / "bus/pci/devices").glob("*")):
        if text(device / "class").startswith("0x0604"):
            control = register(machine, device.name, "ECAP_ACS+6.w")
            if control is not None:
                found[device.name] = control
    return found


def acs(machine: Nic, *, apply: bool) -> Check:
    """ACS sends what one PCI device writes to another by way of the root complex: slow, or not at all."""
    hint = f"{JOURNAL} A BIOS may lock it: disable ACS there."
    try:
        if apply:
            for device, control in bridges_with_acs(machine).items():
                if control:
                    register(machine, device, "ECAP_ACS+6.w", "0000")
        found = bridges_with_acs(machine)
    except (Trouble, Unsupported) as why:
        return check("acs", "PCI bridges", f"could not be checked: {why}", "off", ok=False, hint=hint)
    on = [device for device, control in found.items() if control]
    measured = f"off on {len(found)}" if found else "no bridge has it"
    if on:
        measured = f"on: {', '.join(on)}"
    return check("acs", "PCI bridges", measured, "off", ok=not on, hint=hint)


def kibibytes(limit: str) -> str:
    """A limit of systemd, in bytes, as a login shell tells it."""
    return "unlimited" if limit == "infinity" else str(int(limit) // 1024) if limit.isdigit() else limit


def memlock(machine: Nic, required: str) -> list[Check]:
    """How much memory services and logins may lock: what RDMA registers is locked."""
    asked = {
        "services": ("systemctl", "show", "--property=DefaultLimitMEMLOCK", "--value"),
        # By way of PAM, as a login is.
        "logins": ("runuser", "root", "-s", "/bin/sh", "-c", "ulimit -H -l"),
    }
    checks = []
    for subject, command in asked.items():
        try:
            code, output = machine.run(*command)
            limit = output.strip()
            measured = kibibytes(limit) if subject == "services" else limit
            if code != 0:
                measured = f"could not be checked: {last_line(output)}"
        except Trouble as why:
            measured = f"could not be checked: {why}"
        hint = "Run this playbook again; what runs already keeps its limit until it is started anew."
        checks.append(check("memlock", subject, measured, required, ok=measured == required, hint=hint))
    return checks


def wait_for(nics: list[Nic], seconds: float, *, rdma: bool) -> None:
    """Until udev has named the interfaces and the driver made the RDMA devices, or the time is over."""

    def missing() -> bool:
        try:
            return not all(nic.netdev.exists() and (not rdma or nic.rdma) for nic in nics)
        except Unsupported:
            return True

    deadline = time.monotonic() + seconds
    while missing() and time.monotonic() < deadline:
        time.sleep(0.5)


def bring(nic: Nic, declared: dict[str, Any]) -> dict[str, str]:
    """Set what differs; why what could not be set could not."""
    trouble = {}
    for name, setting in SETTINGS.items():
        if name in declared and not look(nic, name, declared[name])["ok"]:
            try:
                setting.set(nic, declared[name])
            except (Trouble, Unsupported) as why:
                trouble[name] = str(why)
    nic.qos = None
    return trouble


def work(config: dict[str, Any], machine: Nic, *, apply: bool) -> list[Check]:
    """All checks, after setting what differs where asked to."""
    declared = {name: value for name, value in config["settings"].items() if value is not None}
    nics = [Nic(name, machine.sysfs, machine.run, machine.which) for name in config["rails"]]
    if apply:
        wait_for(nics, config.get("wait_s", 60), rdma=bool(RDMA_SETTINGS & set(declared)))
    checks = []
    for nic in nics:
        if not nic.netdev.exists():
            hint = (
                "Look for the NIC with `ip link` and `lspci -D`, and reboot the node so that udev names it."
            )
            checks.append(check("runtime", nic.name, "no such interface", "present", ok=False, hint=hint))
            continue
        trouble = bring(nic, declared) if apply else {}
        checks += [
            look(nic, name, declared[name], trouble.get(name, "")) for name in SETTINGS if name in declared
        ]
    if declared.get("acs_off"):
        checks.append(acs(machine, apply=apply))
    if declared.get("memlock"):
        checks += memlock(machine, str(declared["memlock"]))
    return checks


def main(arguments: list[str]) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("action", choices=["apply", "check"])
    parser.add_argument("--json", action="store_true", help="print the checks as JSON")
    parser.add_argument("--config", type=Path, default=Path("/etc/splitrail/roce.json"))
    given = parser.parse_args(arguments)
    try:
        config = json.loads(given.config.read_text(encoding="utf-8"))
        machine = Nic("", Path(config.get("sysfs", "/sys")))
        checks = work(config, machine, apply=given.action == "apply")
    except (OSError, ValueError, KeyError) as error:
        sys.stderr.write(f"{given.config}: {error!r}: write it anew with the role roce_nic\n")
        return 2
    failed = [made for made in checks if not made["ok"]]
    if given.json:
        sys.stdout.write(json.dumps({"ok": not failed, "checks": checks}) + "\n")
    for made in failed:
        line = "{name} ({subject}): measured {measured}, required {required}. {hint}\n"
        sys.stderr.write(line.format(**made))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
