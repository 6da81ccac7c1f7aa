"""Break the fabric of VM nodes in ten ways, one after the other, and see whether the suite names each.

usage: python python/benchmarks/fabric_faults.py [--healthy N] [--hosts fab-1,fab-2,fab-3] [FAULT ...]

Wants the lab of ``inventories/lab-fabric`` up with the image that ``inventories/lab-fabric-image`` built, and
the playbooks provision, fabric and image run on it once. Runs the verbs N times on the healthy fabric first
(default 5), where every finding would be a false alarm, then each fault: inject, run the one verb that should
find it, heal. A fault counts as caught when the verb ends with exit code 1 and a failed check names the
host, the rail and a cure. Prints a Markdown table, ``seconds`` being the verb's wall time; exit code 0 when
all were caught and nothing was raised in health. Nothing is left broken, also when interrupted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
INVENTORY = "inventories/lab-fabric"
# What a shaped link carries, as a share of the healthy mesh's median.
TENTH = 0.1
BOOT_S = 300


def splitrail(*argv: str, ok: Sequence[int] = (0,), timeout: float = 900) -> subprocess.CompletedProcess[str]:
    """Run a command of the suite's. Raises RuntimeError with what it said when it ends otherwise."""
    done = subprocess.run(
        [sys.executable, "-m", "splitrail", *argv],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if done.returncode not in ok:
        raise RuntimeError(f"splitrail {' '.join(argv)}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    return done


def on(host: str, command: str) -> str:
    """Run a shell command as root on a node; returns what it printed."""
    return splitrail("lab", "ssh", "-i", INVENTORY, host, "--", f"sudo sh -c '{command}'").stdout


def link(host: str, rail: int, *action: str) -> None:
    """Change the cable of a rail, from the lab's host."""
    splitrail("lab", "link", "-i", INVENTORY, host, str(rail), *action)


@dataclass
class Found:
    """How a verb ended: its exit code, its failed checks and its wall time in seconds."""

    code: int
    failed: list[dict[str, Any]]
    seconds: float
    record: Path


def verb(hosts: str, *argv: str, meanwhile: Callable[[], None] | None = None) -> Found:
    """Run a verb for these hosts; ``meanwhile`` is called while it runs."""
    began = time.monotonic()
    command = [sys.executable, "-m", "splitrail", *argv, "-i", INVENTORY, "--limit", hosts, "--json"]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as child:
        if meanwhile:
            meanwhile()
        out, _ = child.communicate(timeout=1800)
    document = json.loads(out)
    checks = (document.get("verdict") or {}).get("checks", [])
    failed = [check for check in checks if not check["ok"]]
    return Found(child.returncode, failed, time.monotonic() - began, Path(document.get("record", "")))


@dataclass
class Fault:
    """One way to break the fabric; one of the checks ``names`` has to say so, of ``host`` and ``rail``.

    ``rail`` is empty where no single one is at fault.
    """

    title: str
    host: str
    rail: str
    verb: tuple[str, ...]
    names: tuple[str, ...]
    inject: Callable[[], None]
    heal: Callable[[], None]
    meanwhile: Callable[[], None] | None = field(default=None)

    def named_by(self, found: Found) -> list[dict[str, Any]]:
        """The failed checks that name this fault, its host, its rail and a cure."""
        return [
            check
            for check in found.failed
            if check["name"] in self.names
            and self.host in (check["host"], *str(check["subject"]).replace(",", " ").split())
            and self.rail in json.dumps(check)
            and check["hint"]
        ]


PROVE = ("fabric", "prove")
DRIFT = ("fabric", "drift")
VALIDATE = ("validate",)
# What an option of the container does behind the back of the check at render time: UCX is told so, and obeys.
FORCED = {
    "kv_transport_container_options": [
        *("--device /dev/infiniband", "--cap-add IPC_LOCK", "--ulimit memlock=-1:-1"),
        "--env UCX_TLS=tcp,self",
    ]
}
# The lab's stand-in for the NIC's firmware; the real tool answers the same.
FIRMWARE = "mstconfig -d 01:00.0 -y set"


def wait_for_mesh() -> None:
    """Until the newest run record has a mesh under way."""
    before = time.time()
    while time.time() - before < BOOT_S:
        journals = [path for path in ROOT.glob("runs/*/mesh/journal.jsonl") if path.stat().st_mtime > before]
        if journals:
            return
        time.sleep(0.5)  # between two looks
    raise RuntimeError("no mesh began")


def cut_power_amid_the_mesh(host: str) -> None:
    """Switch a node off once the mesh is under way."""
    wait_for_mesh()
    splitrail("lab", "power", "-i", INVENTORY, "off", host)


def restart_without_runtime_state(host: str) -> None:
    """Reboot a node that does not bring back what a boot loses, as one would that the role never saw."""
    on(host, "systemctl disable splitrail-roce.service")
    splitrail("lab", "power", "-i", INVENTORY, "cycle", host)


def faults(host: str, tenth_mbit: float) -> list[Fault]:
    """The faults, all on one node."""
    return [
        Fault("MTU lowered on one node", host, "rail0", PROVE, ("roce_nic.mtu", "fabric.mtu"),
              lambda: void(on(host, "ip link set rail0 mtu 1500")),
              lambda: void(on(host, "ip link set rail0 mtu 9000"))),
        Fault("one rail down", host, "rail1", PROVE, ("roce_nic.link", "fabric.link"),
              lambda: link(host, 1, "down"), lambda: link(host, 1, "up")),
        Fault("two rails swapped", host, "rail0", PROVE, ("fabric.wiring",),
              lambda: link(host, 0, "swap", "1"), lambda: link(host, 0, "heal")),
        Fault("IPv4 GID missing", host, "rail0", PROVE, ("fabric.gid", "roce_nic.address"),
              lambda: void(on(host, "ip address flush dev rail0 scope global")),
              lambda: void(on(host, "networkctl reconfigure rail0"))),
        Fault("one link shaped to a tenth", host, "rail0", PROVE, ("fabric.bandwidth",),
              lambda: link(host, 0, "rate", f"{tenth_mbit:.1f}"), lambda: link(host, 0, "heal")),
        Fault("PFC lost by a reboot", host, "rail0", DRIFT, ("roce_nic.pfc",),
              lambda: restart_without_runtime_state(host),
              lambda: void(on(host, "systemctl enable --now splitrail-roce.service"))),
        Fault("firmware value pending", host, "rail0", DRIFT, ("roce_nic.firmware",),
              lambda: void(on(host, f"{FIRMWARE} ATS_ENABLED=1")),
              lambda: void(on(host, f"{FIRMWARE} ATS_ENABLED=0"))),
        # Of all rails alike, so none is to be named.
        Fault("UCX forced to TCP", host, "", (*VALIDATE, "-e", json.dumps(FORCED)),
              ("validate.ucx_tls",), lambda: None, lambda: None),
        Fault("a node stops answering amid the mesh", host, "rail", PROVE, ("fabric.node",),
              lambda: None, lambda: splitrail_up(host),
              meanwhile=lambda: cut_power_amid_the_mesh(host)),
        Fault("1 % of packets lost", host, "rail1", PROVE, ("fabric.loss",),
              lambda: link(host, 1, "loss", "1"), lambda: link(host, 1, "heal")),
    ]  # fmt: skip


def void(_: object) -> None:
    """Drop what a command printed."""


def splitrail_up(host: str) -> None:
    """Power a node and wait until it is up."""
    splitrail("lab", "up", "-i", INVENTORY, host)


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def median_mbit(record: Path) -> float:
    """The median bandwidth of a run's mesh, Mbit/s."""
    readings = json.loads((record / "mesh/mesh.json").read_text())["readings"]
    return 1000 * statistics.median(float(one["gbps"]) for one in readings if one.get("gbps"))


def healthy(hosts: str, times: int) -> tuple[int, float]:
    """Run the verbs in health; returns how many runs raised an alarm, and the mesh's median, Mbit/s."""
    alarms, median = 0, 0.0
    for number in range(1, times + 1):
        said = []
        for argv in (PROVE, DRIFT, VALIDATE):
            found = verb(hosts, *argv)
            said += [
                f"{' '.join(argv)}: {check['name']} {check['host']} {check['subject']}"
                for check in found.failed
            ]
            said += [f"{' '.join(argv)}: exit code {found.code}"] if found.code else []
            median = median_mbit(found.record) if argv == PROVE and not found.code else median
            sys.stderr.write(f"healthy {number}: {' '.join(argv)} {found.seconds:.0f} s\n")
        alarms += bool(said)
        say(f"| healthy run {number} | {'; '.join(said) or 'no alarm'} | | |")
    return alarms, median


def attempt(fault: Fault, hosts: str) -> bool:
    """Inject, look, heal; prints a row of the table and returns whether it was caught."""
    try:
        fault.inject()
        found = verb(hosts, *fault.verb, meanwhile=fault.meanwhile)
    finally:
        fault.heal()
    named = fault.named_by(found)
    caught = bool(named) and found.code == 1
    best = named[0] if named else None
    what = f"{best['name']} ({best['subject']}): {best['measured']}" if best else f"exit code {found.code}"
    say(f"| {fault.title} | {'yes' if caught else 'NO'} | {what} | {found.seconds:.0f} |")
    return caught


def main() -> int:
    """Run what the command line says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--healthy", type=int, default=5)
    parser.add_argument("--hosts", default="fab-1,fab-2,fab-3")
    parser.add_argument("faults", nargs="*", help="words of their titles; all by default")
    wanted = parser.parse_args()
    say("| fault | caught | by which check | seconds |\n|---|---|---|---|")
    alarms, median = healthy(wanted.hosts, max(1, wanted.healthy))
    every = faults(wanted.hosts.split(",")[1], TENTH * median)
    chosen = [one for one in every if not wanted.faults or any(word in one.title for word in wanted.faults)]
    caught = [attempt(fault, wanted.hosts) for fault in chosen]
    say(f"\n{sum(caught)} of {len(caught)} caught, {alarms} of {max(1, wanted.healthy)} healthy runs alarmed")
    return 0 if all(caught) and not alarms else 1


if __name__ == "__main__":
    sys.exit(main())
