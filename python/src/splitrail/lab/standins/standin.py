"""What the stand-ins share: where they look, what they remember, and when they forget.

``/etc/splitrail-standins.json`` may say:
  sysfs: where devices are looked for (default ``/sys``)
  state: where values are kept (default ``/var/lib/splitrail-standins``)
  boot_id: the file that tells one boot from another
  anyone: true, and users other than root may use them
  cards: by PCI address, or ``all``: ``ports`` (1), ``missing`` keys, ``stuck`` keys, which no boot brings
         into effect, and ``broken``: the text with which the tool dies in place of an answer
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CONFIG = Path(os.environ.get("SPLITRAIL_STANDINS", "/etc/splitrail-standins.json"))
BDF = re.compile(r"^[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]$")


def config() -> dict[str, Any]:
    """The settings, with defaults."""
    given = json.loads(CONFIG.read_text(encoding="utf-8")) if CONFIG.exists() else {}
    return {
        "sysfs": "/sys",
        "state": "/var/lib/splitrail-standins",
        "boot_id": "/proc/sys/kernel/random/boot_id",
        "anyone": False,
        "cards": {},
        **given,
    }


@contextmanager
def memory(tool: str) -> Iterator[tuple[dict[str, Any], bool]]:
    """A tool's state, written back at the end, and whether the machine booted since the last time."""
    settings = config()
    folder = Path(settings["state"])
    folder.mkdir(parents=True, exist_ok=True)
    boot = Path(settings["boot_id"]).read_text(encoding="utf-8").strip()
    with (folder / f"{tool}.json").open("a+", encoding="utf-8") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        stream.seek(0)
        kept = json.loads(stream.read() or "{}")
        state = kept.get("state", {})
        yield state, kept.get("boot_id") != boot
        stream.seek(0)
        stream.truncate()
        json.dump({"boot_id": boot, "state": state}, stream, indent=1)


def pci_of(netdev: Path) -> str:
    """The PCI address of an interface; empty when it has none."""
    device = netdev / "device"
    if not device.exists():
        return ""
    real = device.resolve()
    return next((path.name for path in (real, *real.parents) if BDF.match(path.name)), "")


def cards() -> list[str]:
    """The PCI addresses that bear an interface, but for management's: the one of the default route."""
    settings = config()
    managed = set()
    try:
        for line in Path("/proc/net/route").read_text(encoding="utf-8").splitlines()[1:]:
            interface, destination = line.split()[:2]
            managed |= {interface} if destination == "00000000" else set()
    except OSError:
        pass
    found = {
        pci_of(netdev)
        for netdev in (Path(settings["sysfs"]) / "class/net").glob("*")
        if netdev.name not in managed
    }
    return sorted(found - {""})


def permitted() -> bool:
    """Whether this user may touch the devices."""
    return os.geteuid() == 0 or bool(config()["anyone"])


def card(pci: str) -> dict[str, Any]:
    """How a card is built and misbehaves."""
    settings = config()["cards"]
    return {
        "ports": 1,
        "missing": [],
        "stuck": [],
        "broken": "",
        **settings.get("all", {}),
        **settings.get(pci, {}),
    }
