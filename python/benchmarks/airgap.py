#!/usr/bin/env python3
"""Bring the lab up with its way out cut off, from a bundle, and print what each step took.

    sudo .venv/bin/python python/benchmarks/airgap.py [--work DIR] [--inventory DIR]

The bundle and the nodes' bare root file system are made first, with the network; then every packet that a
node sends to anybody but a node is dropped (nft), also those to this machine, and `splitrail up` runs. A
probe of a node's own package archive must succeed before the cut and fail after it. The lab has a cache of
its own below DIR, so neither an image nor a wheel of an earlier run is at hand. Needs root and about 15 GiB
in DIR, by default /var/cache/splitrail-airgap; takes about 15 minutes. Prints one JSON document at the end;
exit code 0 when serving was proven and the probes were right.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TABLE = "splitrail-airgap"
PORT = 8090
# What a node would install from without a bundle; asked for its index.
PROBE = (
    "url=$(sed -n 's/^URIs: *//p' /etc/apt/sources.list.d/*.sources "
    "/etc/apt/splitrail-aside/*.sources 2>/dev/null | grep -v :8090 | head -1); "
    "suite=$(. /etc/os-release; echo $VERSION_CODENAME); "
    'exec curl --silent --fail --output /dev/null --max-time 10 "${url%% *}/dists/$suite/Release"'
)


class Bench:
    """The steps, with their times in seconds."""

    def __init__(self, inventory: Path, work: Path) -> None:
        self.inventory = inventory
        self.bundle = work / "bundle"  # where the lab's mount `bundle` looks
        self.environment = {**os.environ, "SPLITRAIL_CACHE": str(work), "PYTHONUNBUFFERED": "1"}
        self.seconds: dict[str, float] = {}
        self.head = self.lab = ""

    def splitrail(self, step: str, *arguments: str, ok: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command of the suite and note its time. Raises SystemExit when it fails and must not."""
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "splitrail", *arguments],
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        self.seconds[step] = round(time.monotonic() - began, 1)
        say(f"{step}: {self.seconds[step]} s")
        if ok and done.returncode:
            raise SystemExit(f"{step}: exit code {done.returncode}\n{done.stdout[-4000:]}")
        return done

    def nodes(self) -> dict[str, str]:
        """Address by node."""
        done = subprocess.run(
            ["ansible-inventory", "-i", str(self.inventory), "--list"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        listing: dict[str, Any] = json.loads(done.stdout)
        hosts: dict[str, dict[str, Any]] = listing["_meta"]["hostvars"]
        self.head = str(listing["head"]["hosts"][0])
        self.lab = str(hosts[self.head]["lab_name"])
        return {name: str(found["ansible_host"]) for name, found in hosts.items()}

    def probe(self, when: str, nodes: dict[str, str]) -> dict[str, bool]:
        """Whether each node reaches its own package archive."""
        found = {
            name: self.splitrail(
                f"probe of {name} {when}",
                "lab",
                "ssh",
                "-i",
                str(self.inventory),
                name,
                "--",
                PROBE,
                ok=False,
            ).returncode
            == 0
            for name in nodes
        }
        say(f"probe {when}: {found}")
        return found

    def dropped(self) -> int:
        """Packets of nodes that went nowhere since the cut."""
        done = subprocess.run(
            ["nft", "--json", "list", "table", "inet", TABLE], capture_output=True, text=True, check=True
        )
        rules = [item["rule"]["expr"] for item in json.loads(done.stdout)["nftables"] if "rule" in item]
        return sum(part["counter"]["packets"] for rule in rules for part in rule if "counter" in part)


def say(text: str) -> None:
    sys.stderr.write(f"airgap: {text}\n")
    sys.stderr.flush()


@contextmanager
def cut(bridge: str) -> Iterator[None]:
    """Drop all that comes from the nodes and is not for a node; what answers this machine passes."""
    rules = (
        f"add table inet {TABLE}\ndelete table inet {TABLE}\ntable inet {TABLE} {{\n"
        f"  chain out {{ type filter hook forward priority -10;\n"
        f'    iifname "{bridge}" oifname != "{bridge}" counter drop\n  }}\n'
        f"  chain here {{ type filter hook input priority -10;\n"
        f'    iifname "{bridge}" ct state new counter drop\n  }}\n}}\n'
    )
    subprocess.run(["nft", "--file", "-"], input=rules, text=True, check=True)
    try:
        yield
    finally:
        subprocess.run(["nft", "delete", "table", "inet", TABLE], check=False)


def indexes(bench: Bench) -> list[str]:
    """Where the image's build looked for wheels, by its own log."""
    command = "cat /var/lib/splitrail/serving_image/build-*.log | grep -o 'Looking in .*' | sort -u"
    done = bench.splitrail(
        "build log",
        "lab",
        "ssh",
        "-i",
        str(bench.inventory),
        bench.head,
        "--",
        f'sudo sh -c "{command}"',
        ok=False,
    )
    return done.stdout.splitlines()


def main() -> int:
    """Run all of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("/var/cache/splitrail-airgap"))
    parser.add_argument("--inventory", type=Path, default=ROOT / "inventories/lab")
    parser.add_argument("--as-it-is", action="store_true", help="take the bundle that lies in DIR/bundle")
    parser.add_argument("--keep", action="store_true", help="leave the lab as it is at the end")
    arguments = parser.parse_args()
    bench = Bench(arguments.inventory, arguments.work)
    nodes = bench.nodes()
    inventory = ["-i", str(bench.inventory)]
    bench.splitrail("lab down before", "lab", "down", *inventory)
    made = None
    if not arguments.as_it_is:
        create = ["bundle", "create", *inventory, "--out", str(bench.bundle), "--json"]
        made = json.loads(bench.splitrail("bundle create", *create).stdout)
        bench.splitrail("bundle create again", *create)
    bench.splitrail("bundle verify", "bundle", "verify", str(bench.bundle))
    bench.splitrail("lab up", "lab", "up", *inventory)
    before = bench.probe("with the network", nodes)
    with cut(f"sr-{bench.lab}"):
        after = bench.probe("cut off", nodes)
        up = bench.splitrail(
            "splitrail up",
            "up",
            *inventory,
            "-e",
            f"bundle_url=http://{nodes[bench.head]}:{PORT}",
            "--json",
            ok=False,
        )
        still = bench.probe("at the end", nodes)
        dropped = bench.dropped()
        looked = indexes(bench)
        smoke = bench.splitrail("smoke again", "smoke", *inventory, "--json", ok=False)
    ok = (
        all(before.values())
        and not any((*after.values(), *still.values()))
        and up.returncode == smoke.returncode == 0
    )
    if not arguments.keep:
        bench.splitrail("lab down", "lab", "down", *inventory)
    report = {
        "ok": ok,
        "bundle": made,
        "reached the network": {"before": before, "cut off": after, "at the end": still},
        "packets dropped": dropped,
        "wheels were looked for in": looked,
        "exit code of splitrail up": up.returncode,
        "exit code of smoke": smoke.returncode,
        "seconds": bench.seconds,
    }
    sys.stdout.write(json.dumps(report, indent=1) + "\n")
    if up.returncode:
        sys.stderr.write(up.stdout[-6000:])
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
