#!/usr/bin/python
"""Check, in one call, whether the GPUs of a node are those that it should have, linked and free of errors."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible.module_utils import splitrail_firmware as firmware
from ansible.module_utils import splitrail_gpu_tools as tools
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.splitrail_checks import check, unmade

DOCUMENTATION = r"""
module: splitrail_gpu_health
short_description: Check the AMD GPUs of a node
description:
  - Reads sysfs, amd-smi (of the links rocm-smi, where amd-smi has no answer) and rocminfo, and compares
    number, model, memory, links and error counters with what is declared. Changes nothing.
  - A tool that is missing, hangs, fails or answers with something else is a finding. So is a value that
    amd-smi calls N/A, which is what it does of a GPU that is being reset.
options:
  count: {description: GPUs that the node must have., type: int, required: true}
  model: {description: What one GPU must be; C(model) of the role's data file., type: dict, required: true}
  prefix: {description: Command and arguments put before each tool., type: list, elements: str, default: []}
  timeout_s: {description: Longest time for one tool in seconds., type: float, default: 60}
author: The splitrail authors
"""

RETURN = r"""
checks: {description: The findings., type: list, elements: dict, returned: always}
inventory:
  description: Versions of firmware and driver by GPU, to be compared with other nodes'.
  type: dict
  returned: always
seconds: {description: How long it took., type: float, returned: always}
"""

PCI = "sys/bus/pci/devices"
QUESTIONS = ("list", "static", "metric", "firmware", "bad-pages", "topology")
RESET = "Read `dmesg | grep amdgpu`; if the GPU is lost, drain the node and power it off and on."

Check = dict[str, Any]
Entry = dict[str, Any]


@dataclass
class Node:
    """Where the readings come from; the tests put files and answers of their own in place."""

    root: Path = Path("/")
    prefix: tuple[str, ...] = ()
    timeout_s: float = 60.0
    run: Callable[[list[str], float], str] = tools.run
    answers: dict[str, list[Entry]] = field(default_factory=dict)
    silent: dict[str, str] = field(default_factory=dict)

    def ask(self) -> None:
        """Put all questions to amd-smi; one that has no answer is noted with the reason."""
        for question in QUESTIONS:
            try:
                self.answers[question] = tools.smi(self.tool("amd-smi", question, "--json"))
            except (tools.Failed, ValueError) as why:
                self.silent[question] = str(why)
        if "topology" in self.silent:
            self._ask_rocm_smi()

    def _ask_rocm_smi(self) -> None:
        """The older tool tells of the links too; where it has no answer either, both reasons are told."""
        try:
            self.answers["topology"] = tools.rocm_smi_topology(self.tool("rocm-smi", "--showtopo"))
            del self.silent["topology"]
        except (tools.Failed, ValueError) as why:
            self.silent["topology"] += f"; {why}"

    def tool(self, *argv: str) -> str:
        """What a tool prints. Raises Failed."""
        return self.run([*self.prefix, *argv], self.timeout_s)

    def read(self, device: str, name: str) -> str:
        """An attribute of a PCI device. Raises OSError."""
        text: str = firmware.read(self.root / PCI / device / name)
        return text

    def devices(self) -> dict[str, str]:
        """AMD's GPUs on the bus, ``vendor:device`` by address."""
        return {
            path.name: f"{firmware.read(path / 'vendor')[2:]}:{firmware.read(path / 'device')[2:]}"
            for path in firmware.gpus(self.root)
        }


def examine(node: Node, count: int, model: dict[str, Any]) -> tuple[list[Check], dict[str, Any]]:
    """All checks, and the versions that are to be compared with other nodes'."""
    node.ask()
    wanted = model["pci_id"]["value"]
    devices = node.devices()
    mine = [bdf for bdf, identity in devices.items() if identity == wanted]
    checks = [check_count(devices, count, wanted), check_driver(node, mine), check_seen(node, mine, count)]
    checks.append(check_gfx(node, count, model["gfx"]["value"]))
    for bdf in mine:
        checks += [check_link(node, bdf, model), check_partition(node, bdf, model["partition"]["value"])]
    checks += _of_each(node, "static", "memory", lambda entry: check_memory(entry, model))
    checks += _of_each(node, "metric", "ras", check_ras)
    checks += _of_each(node, "bad-pages", "bad_pages", check_bad_pages)
    checks.append(check_xgmi(node, count, model["xgmi_weight"]["value"]))
    inventory, findings = take_inventory(node)
    return checks + findings, inventory


def _of_each(node: Node, question: str, name: str, make: Callable[[Entry], Check]) -> list[Check]:
    """The check of each GPU that amd-smi tells of; one that cannot be made is a finding."""
    if question in node.silent:
        return [_silent(node, question, name)]
    made = []
    for entry in node.answers[question]:
        subject = f"GPU {entry['gpu']}"
        try:
            made.append({**make(entry), "subject": subject})
        except ValueError as why:
            made.append(unmade(f"gpu_health.{name}", subject, str(why), "a reading", hint=RESET))
    return made


def _silent(node: Node, question: str, name: str) -> Check:
    hint = (
        "Run it by hand as root. Install amd-smi-lib, load the driver (`modprobe amdgpu`), or set "
        "gpu_health_command_prefix where the tools are in a container."
    )
    made: Check = unmade(
        f"gpu_health.{name}", f"amd-smi {question}", node.silent[question], "an answer", hint=hint
    )
    return made


def check_count(devices: dict[str, str], count: int, wanted: str) -> Check:
    """How many GPUs of the model are on the bus, and what others."""
    mine = [bdf for bdf, identity in devices.items() if identity == wanted]
    others = sorted(set(devices.values()) - {wanted})
    measured = f"{len(mine)} x {wanted}"
    for other in others:
        measured += f", {sum(identity == other for identity in devices.values())} x {other}"
    if len(mine) != count and mine:
        measured += f" (at {', '.join(bdf.removeprefix('0000:') for bdf in mine)})"
    hint = (
        "Compare the slots with another node's `lspci -d 1002:`. A GPU that is not on the bus needs power "
        "off and on, then a look at its seat; check pci=realloc=off and Above 4G decoding."
    )
    ok = len(mine) == count and not others
    made: Check = check("gpu_health.count", "PCI bus", ok, measured, f"{count} x {wanted}", hint=hint)
    return made


def check_driver(node: Node, mine: list[str]) -> Check:
    """Whether amdgpu is loaded and has taken every GPU."""
    loaded = (node.root / "sys/module/amdgpu").is_dir()
    without = []
    for bdf in mine:
        driver = node.root / PCI / bdf / "driver"
        if not driver.exists() or driver.resolve().name != "amdgpu":
            without.append(bdf)
    kfd = (node.root / "dev/kfd").exists()
    if not loaded:
        measured = "not loaded"
    elif not mine:
        measured = "loaded, with no GPU"
    elif without:
        measured = f"loaded, without {', '.join(without)}"
    else:
        measured = "loaded" if kfd else "loaded, without /dev/kfd"
    hint = "Read `dmesg | grep amdgpu` and `dkms status`; load it with `modprobe amdgpu`."
    ok = measured == "loaded"
    made: Check = check("gpu_health.driver", "amdgpu", ok, measured, "loaded, for every GPU", hint=hint)
    return made


def check_seen(node: Node, mine: list[str], count: int) -> Check:
    """Whether amd-smi knows the GPUs that are on the bus, each as one."""
    if "list" in node.silent:
        return _silent(node, "list", "seen")
    seen = [str(entry.get("bdf")).lower() for entry in node.answers["list"]]
    lost = sorted(set(mine) - set(seen))
    measured = f"{len(seen)}" + (f", without {', '.join(lost)}" if lost else "")
    ok = len(seen) == count and not lost
    made: Check = check("gpu_health.seen", "amd-smi list", ok, measured, count, unit="GPUs", hint=RESET)
    return made


def check_gfx(node: Node, count: int, gfx: str) -> Check:
    """Whether the ROCm runtime can use as many GPUs, and of this architecture."""
    required = f"{count} x {gfx}"
    hint = (
        "Look at /dev/kfd and /dev/dri/render* and their groups, then at `dmesg | grep -i kfd`; a wrong "
        "architecture is a wrong card."
    )
    made: Check
    try:
        agents = tools.rocm_agents(node.tool("rocminfo"))
    except (tools.Failed, ValueError) as why:
        made = unmade("gpu_health.gfx", "rocminfo", str(why), required, hint=hint)
        return made
    measured = ", ".join(f"{number} x {name}" for name, number in sorted(agents.items())) or "no GPU"
    made = check("gpu_health.gfx", "rocminfo", measured == required, measured, required, hint=hint)
    return made


def check_link(node: Node, bdf: str, model: dict[str, Any]) -> Check:
    """Speed and width of a GPU's PCIe link, as the kernel reads them from it now."""
    required = f"{model['pcie_gts']['value']} GT/s x{model['pcie_width']['value']}"
    hint = (
        "Power the node off and on; if it stays, look at seat, riser and retimer, and at the slot's "
        "generation in the firmware. An idle link keeps its speed with pcie_aspm=off."
    )
    made: Check
    try:
        speed = node.read(bdf, "current_link_speed").split()[0]
        width = node.read(bdf, "current_link_width")
        measured = f"{float(speed):g} GT/s x{width}"
    except (OSError, ValueError, IndexError) as why:
        made = unmade("gpu_health.pcie", bdf, str(why), required, hint=RESET)
        return made
    made = check("gpu_health.pcie", bdf, measured == required, measured, required, hint=hint)
    return made


def check_partition(node: Node, bdf: str, required: str) -> Check:
    """Into how many a GPU and its memory are divided."""
    hint = "Set it with `amd-smi set --compute-partition` and `--memory-partition` once nothing uses the GPU."
    made: Check
    try:
        measured = " ".join(node.read(bdf, f"current_{what}_partition") for what in ("compute", "memory"))
    except OSError as why:
        made = unmade("gpu_health.partition", bdf, str(why), required, hint=RESET)
        return made
    made = check("gpu_health.partition", bdf, measured == required, measured, required, hint=hint)
    return made


def check_memory(entry: Entry, model: dict[str, Any]) -> Check:
    """The size of a GPU's memory."""
    size = tools.mib(entry, "vram", "size")
    if size is None:
        raise ValueError("amd-smi does not tell its memory")
    want, slack = model["memory_mib"]["value"], model["memory_mib"]["tolerance_percent"]
    ok = abs(size - want) <= want * slack / 100
    hint = f"A {model['name']} has {want // 1024} GB: look for another model, or for memory masked out."
    required = want / 1024
    made: Check = check("gpu_health.memory", "-", ok, round(size / 1024, 2), required, unit="GiB", hint=hint)
    return made


def check_ras(entry: Entry) -> Check:
    """Errors in memory and caches that could not be corrected, and which blocks had them."""
    counts = {}
    for kind in ("uncorrectable", "deferred"):
        number = tools.at(entry, "ecc", f"total_{kind}_count")
        if not isinstance(number, int):
            raise ValueError(f"amd-smi does not count {kind} errors")
        counts[kind] = number
    blocks = entry.get("ecc_blocks")
    blamed = [
        name
        for name, of in (blocks.items() if isinstance(blocks, dict) else ())
        if any(isinstance(of.get(f"{kind}_count"), int) and of[f"{kind}_count"] for kind in counts)
    ]
    measured = ", ".join(f"{number} {kind}" for kind, number in counts.items())
    measured += f" in {', '.join(blamed)}" if blamed else ""
    hint = "Drain the node, save `amd-smi ras --cper` and dmesg, and reboot; replace a GPU that counts again."
    ok = not any(counts.values())
    made: Check = check("gpu_health.ras", "-", ok, measured, "0 uncorrectable, 0 deferred", hint=hint)
    return made


def check_bad_pages(entry: Entry) -> Check:
    """Pages of memory that were taken out of use, or wait to be."""
    found = tools.bad_pages(entry)
    hint = "Reboot, so that pending pages are retired; ask the vendor for a replacement when they grow."
    measured = ", ".join(found) or "none"
    made: Check = check("gpu_health.bad_pages", "-", not found, measured, "none", hint=hint)
    return made


def check_xgmi(node: Node, count: int, weight: int) -> Check:
    """Whether every GPU has a link of its own to every other one."""
    if "topology" in node.silent:
        return _silent(node, "topology", "xgmi")
    bad = []
    direct = 0
    for entry in node.answers["topology"]:
        links = entry.get("links")
        for link in links if isinstance(links, list) else []:
            if link.get("gpu") == entry["gpu"]:
                continue
            up = link.get("link_status", "ENABLED") == "ENABLED"
            if link.get("link_type") == "XGMI" and up and link.get("weight") == weight:
                direct += 1
            else:
                state = "" if up else f" {link.get('link_status')}"
                kind = f"{link.get('link_type')} weight {link.get('weight')}{state}"
                bad.append(f"{entry['gpu']}-{link.get('gpu')} {kind}")
    wanted = count * (count - 1)
    measured = f"{direct} of {wanted} ways"
    if bad:
        more = f" and {len(bad) - 4} more" if len(bad) > 4 else ""  # noqa: PLR2004  enough to see which GPU it is
        measured += f"; {', '.join(bad[:4])}{more}"
    hint = "Power the node off and on; a link that stays away is a fault of the baseboard or of a GPU's seat."
    made: Check = check(
        "gpu_health.xgmi",
        "full mesh",
        direct == wanted and not bad,
        measured,
        f"{wanted} of {wanted} ways",
        hint=hint,
    )
    return made


def take_inventory(node: Node) -> tuple[dict[str, Any], list[Check]]:
    """Versions by GPU: VBIOS, driver, and each firmware; a question without answer is a finding."""
    made: list[Check] = []
    inventory: dict[str, dict[str, str]] = {}
    for question in ("static", "firmware"):
        if question in node.silent:
            made.append(_silent(node, question, "firmware"))
    for entry in node.answers.get("static", []):
        # The image that holds it is called IFWI on newer models.
        of = entry.get("ifwi") if isinstance(entry.get("ifwi"), dict) else entry.get("vbios")
        of = of if isinstance(of, dict) else {}
        versions = inventory.setdefault(str(entry["gpu"]), {})
        versions["VBIOS"] = " ".join(str(of[key]) for key in ("part_number", "version") if of.get(key))
        driver = entry.get("driver")
        versions["driver"] = str(driver.get("version")) if isinstance(driver, dict) else ""
    for entry in node.answers.get("firmware", []):
        versions = inventory.setdefault(str(entry["gpu"]), {})
        listed = entry.get("fw_list")
        for item in listed if isinstance(listed, list) else []:
            versions[str(item.get("fw_id"))] = str(item.get("fw_version"))
    return inventory, made


def main() -> None:
    """Examine this node with the arguments that Ansible passed."""
    module = AnsibleModule(
        argument_spec={
            "count": {"type": "int", "required": True},
            "model": {"type": "dict", "required": True},
            "prefix": {"type": "list", "elements": "str", "default": []},
            "timeout_s": {"type": "float", "default": 60},
        },
        supports_check_mode=True,
    )
    asked = module.params
    started = time.monotonic()
    node = Node(prefix=tuple(asked["prefix"]), timeout_s=asked["timeout_s"])
    try:
        checks, inventory = examine(node, asked["count"], asked["model"])
    except KeyError as missing:
        module.fail_json(msg=f"gpu_health_data: the model lacks {missing}")
    seconds = round(time.monotonic() - started, 1)
    module.exit_json(changed=False, checks=checks, inventory=inventory, seconds=seconds)


if __name__ == "__main__":
    main()
