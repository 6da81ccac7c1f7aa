#!/usr/bin/python
"""Read, in one call, how far a host is from its declared tuning, and what its firmware is set to."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from ansible.module_utils import splitrail_cmdline as cmdline
from ansible.module_utils import splitrail_firmware as firmware
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.splitrail_checks import check, unmade

DOCUMENTATION = r"""
module: splitrail_host_tuning
short_description: Read how far a host is from its declared tuning
description:
  - Compares the running kernel, its boot loader and its services with what is declared, and reports settings
    of the firmware beside the recommended ones. Changes nothing.
  - What is not declared (null, or empty) is not looked at.
options:
  kernel_cmdline: {description: Kernel options by name., type: dict}
  boot_file: {description: The file of GRUB's that carries them., type: path, required: true}
  state_file: {description: Where a request for a reboot is remembered., type: path, required: true}
  reboot_later: {description: Whether a reboot that is still to come is no fault., type: bool, default: false}
  sysctl: {description: Kernel settings by name., type: dict, default: {}}
  idle_latency_us: {description: Idle states that take longer to leave are off., type: int}
  governor: {description: The frequency governor of all CPUs., type: str}
  hugepages: {description: Reserved huge pages by their size in KiB., type: dict, default: {}}
  transparent_hugepages: {description: The kernel's use of huge pages by itself., type: str}
  shm_gib: {description: Smallest size of /dev/shm., type: float}
  memlock: {description: Memory that services may lock in KiB or V(unlimited)., type: str}
  clock_offset_ms: {description: Largest offset of chrony's clock., type: float}
  hold: {description: Patterns of packages that no upgrade may touch., type: list, elements: str, default: []}
  held_file: {description: Where the packages held on this host are noted., type: path, required: true}
  firmware: {description: Recommended settings by name with their source., type: dict, default: {}}
  firmware_required: {description: Those whose absence is a fault., type: list, elements: str, default: []}
author: The splitrail authors
"""

RETURN = r"""
checks: {description: The findings., type: list, elements: dict, returned: always}
drift: {description: What differs from its declaration., type: list, elements: str, returned: always}
boot: {description: Kernel options and the state of a reboot for them., type: dict, returned: always}
hold: {description: Packages to hold and to release., type: dict, returned: always}
seconds: {description: How long it took., type: float, returned: always}
"""

GIB = 1024**3
SHM = "dev/shm"
GRUB_CFG = "boot/grub/grub.cfg"
CLEARED = "Run this playbook again, and look for what sets it back ({})."

Check = dict[str, Any]
Wanted = dict[str, Any]


def run(*command: str) -> str:
    """The output of a command. Raises OSError with its complaint."""
    try:
        # A fixed language: some of these translate their answers.
        environment = {**os.environ, "LC_ALL": "C"}
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=30, check=False, env=environment
        )
    except subprocess.TimeoutExpired as error:
        raise OSError(f"{command[0]} did not answer within {error.timeout:g} s") from error
    if done.returncode:
        complaint = done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}"
        raise OSError(f"{' '.join(command)}: {complaint}")
    return done.stdout


@dataclass(frozen=True)
class Host:
    """Where the readings come from; the tests put files and answers of their own in place."""

    root: Path = Path("/")
    run: Callable[..., str] = run
    shm_bytes: Callable[[Path], int] = lambda path: os.statvfs(path).f_blocks * os.statvfs(path).f_frsize

    def read(self, path: str) -> str:
        """The text of a file, stripped. Raises OSError."""
        text: str = firmware.read(self.root / path.lstrip("/"))
        return text

    def read_or(self, path: str, otherwise: str) -> str:
        """The text of a file that need not be there."""
        return self.read(path) if (self.root / path.lstrip("/")).exists() else otherwise

    def glob(self, pattern: str) -> list[Path]:
        """The files that match, in order."""
        return sorted(self.root.glob(pattern))


# Kernel command line and reboot


def declared_elsewhere(host: Host, boot_file: str) -> dict[str, list[str]]:
    """The words of kernel options in GRUB's other files, by file."""
    files = [host.root / "etc/default/grub", *host.glob("etc/default/grub.d/*.cfg")]
    found = {}
    for path in files:
        if path == host.root / boot_file.lstrip("/") or not path.exists():
            continue
        lines = re.findall(r"^\s*GRUB_CMDLINE_LINUX(?:_DEFAULT)?=(.*)$", firmware.read(path), re.MULTILINE)
        # One layer of quotes is the shell's.
        found[f"/{path.relative_to(host.root)}"] = [
            word for line in lines for word in cmdline.words_of(line.strip().strip("\"'"))
        ]
    return found


def boot_state(host: Host, want: Wanted, options: cmdline.Declared) -> dict[str, Any]:
    """What was declared, the boot that runs, and whether a reboot is needed, or was in vain.

    ``reboot`` is C(none), C(needed), or C(vain): the host has booted since the reboot was asked for these
    very options, and they are still not there, so another one would not bring them either.
    """
    rendered = " ".join(cmdline.render(options))
    boot_id = host.read("proc/sys/kernel/random/boot_id")
    words = cmdline.words_of(host.read("proc/cmdline"))
    reboot = "none"
    if not all(cmdline.has(name, value, words) for name, value in options.items()):
        try:
            asked = json.loads(host.read_or(want["state_file"], "{}"))
        except ValueError:
            asked = {}  # half written, when the power went: ask again
        again = asked.get("options") == rendered and asked.get("boot_id") != boot_id
        reboot = "vain" if again else "needed"
    grub = any((host.root / folder / "update-grub").exists() for folder in ("usr/sbin", "usr/local/sbin"))
    return {"options": rendered, "boot_id": boot_id, "reboot": reboot, "grub": grub}


def grub_entries(host: Host) -> list[list[str]]:
    """The words of each line by which GRUB would boot Linux (not a memory test). Raises OSError."""
    lines = re.findall(r"^\s*linux\S*\s+(\S*/vmlinu.*)$", host.read(GRUB_CFG), re.MULTILINE)
    return [cmdline.words_of(line) for line in lines]


def check_cmdline(host: Host, want: Wanted) -> list[Check]:
    """The kernel options: those that run, those that the next boot gets, and what contradicts them."""
    options = cmdline.declared(want["kernel_cmdline"])
    made = []
    elsewhere = declared_elsewhere(host, want["boot_file"])
    for name, value in options.items():
        for path, others in elsewhere.items():
            against = cmdline.contradicts(name, value, others)
            if against:
                made.append(
                    check(
                        "host_tuning.cmdline_conflict",
                        f"{name} in {path}",
                        False,
                        " ".join(against),
                        " ".join(cmdline.render({name: value})),
                        hint=f"Take it out of {path}, or declare it so in host_tuning_kernel_cmdline.",
                    )
                )
    menu = _check_grub(host, options)
    made.append(menu)
    words = cmdline.words_of(host.read("proc/cmdline"))
    state = boot_state(host, want, options)["reboot"]
    hints = {
        "needed": "Reboot the host; nothing reboots it unasked (host_tuning_reboot_ok).",
        "vain": (
            "A reboot did not bring it, so another is not asked for. Find out what boots this kernel: "
            "GRUB_DEFAULT, another boot loader, kexec, a network boot."
        ),
    }
    for name, value in options.items():
        there = cmdline.has(name, value, words)
        shown = cmdline.render({name: cmdline.values_of(name, words)})
        later = not there and state == "needed" and want["reboot_later"] and menu["ok"]
        required = " ".join(cmdline.render({name: value}))
        made.append(
            check(
                "host_tuning.kernel_cmdline",
                name,
                there or later,
                " ".join(shown) or "absent",
                f"{required} after the next boot" if later else required,
                hint=hints.get(state, ""),
            )
        )
    return made


def _check_grub(host: Host, options: cmdline.Declared) -> Check:
    """Whether every entry of GRUB's menu has the options: it is made by update-grub, not read at boot."""
    hint = (
        "Run `update-grub` and read its complaints; where the host does not boot by GRUB, set "
        "host_tuning_kernel_cmdline to null and give its boot loader the options."
    )
    required = " ".join(cmdline.render(options))
    subject = f"/{GRUB_CFG}"
    made: Check
    try:
        entries = grub_entries(host)
    except OSError as why:
        made = unmade("host_tuning.boot_menu", subject, str(why), required, hint=hint)
    else:
        without = sum(
            not all(cmdline.has(name, value, words) for name, value in options.items()) for words in entries
        )
        ok = bool(entries) and not without
        measured = required if ok else f"{without} of {len(entries)} entries lack some"
        made = check("host_tuning.boot_menu", subject, ok, measured, required, hint=hint)
    return made


# The running kernel


def check_sysctl(host: Host, want: Wanted) -> list[Check]:
    """The declared kernel settings, compared field by field: the kernel separates with tabs."""
    made = []
    for name, value in want["sysctl"].items():
        required = " ".join(str(value).split())
        # As sysctl(8) has it: a slash stands for a dot within a name (net.ipv4.conf.eth0/1).
        path = "proc/sys/" + "/".join(part.replace("/", ".") for part in name.split("."))
        measured = " ".join(host.read_or(path, "no such setting").split())
        hint = CLEARED.format(f"`grep -r {name} /etc/sysctl* /usr/lib/sysctl.d`")
        made.append(check("host_tuning.sysctl", name, measured == required, measured, required, hint=hint))
    return made


def check_idle(host: Host, want: Wanted) -> list[Check]:
    """Each idle state that exists: off where it takes longer to leave than allowed, on otherwise."""
    longest = want["idle_latency_us"]
    states: dict[tuple[int, str], Counter[str]] = {}
    for path in host.glob("sys/devices/system/cpu/cpu[0-9]*/cpuidle/state[0-9]*"):
        key = (int(firmware.read(path / "latency")), firmware.read(path / "name"))
        disabled = firmware.read(path / "disable") != "0"
        states.setdefault(key, Counter())["off" if disabled else "on"] += 1
    if not states:
        raise ValueError("the kernel has no idle states to choose from")
    made = []
    for (latency, name), counts in sorted(states.items()):
        required = "off" if latency > longest else "on"
        measured = ", ".join(f"{state} on {count} CPUs" for state, count in sorted(counts.items()))
        hint = CLEARED.format("`systemctl status splitrail-host-tuning`, tuned, power-profiles-daemon")
        subject = f"{name} ({latency} us)"
        made.append(
            check("host_tuning.idle_state", subject, set(counts) == {required}, measured, required, hint=hint)
        )
    return made


def check_governor(host: Host, want: Wanted) -> list[Check]:
    """The frequency governor, on all CPUs."""
    counts = Counter(
        firmware.read(path) for path in host.glob("sys/devices/system/cpu/cpufreq/policy*/scaling_governor")
    )
    if not counts:
        raise ValueError("the kernel sets no frequencies; let the firmware offer P-states (CPPC) to it")
    offered = host.read_or("sys/devices/system/cpu/cpufreq/policy0/scaling_available_governors", "").split()
    if offered and want["governor"] not in offered:
        raise ValueError(f"the kernel offers {', '.join(offered)}")
    measured = ", ".join(f"{name} on {count} policies" for name, count in sorted(counts.items()))
    hint = CLEARED.format("`systemctl status splitrail-host-tuning`, tuned, power-profiles-daemon")
    ok = set(counts) == {want["governor"]}
    return [check("host_tuning.governor", "cpufreq", ok, measured, want["governor"], hint=hint)]


def check_hugepages(host: Host, want: Wanted) -> list[Check]:
    """The reserved huge pages of each declared size."""
    made = []
    for size, count in want["hugepages"].items():
        path = f"sys/kernel/mm/hugepages/hugepages-{size}kB/nr_hugepages"
        hint = (
            "Memory may be too fragmented to reserve them now: they are reserved again at the next boot. "
            "Declare fewer where the host is short of memory."
        )
        text = host.read_or(path, "")
        if not text:
            raise ValueError(f"the kernel has no pages of {size} KiB")
        ok = text == str(count)
        made.append(
            check("host_tuning.hugepages", f"{size} KiB", ok, int(text), int(count), unit="pages", hint=hint)
        )
    return made


def check_transparent_hugepages(host: Host, want: Wanted) -> list[Check]:
    """What the kernel does with huge pages by itself."""
    text = host.read("sys/kernel/mm/transparent_hugepage/enabled")
    measured = text.partition("[")[2].partition("]")[0]
    required = want["transparent_hugepages"]
    hint = CLEARED.format("transparent_hugepage= on the kernel command line, tuned")
    return [
        check(
            "host_tuning.transparent_hugepages",
            "enabled",
            measured == required,
            measured,
            required,
            hint=hint,
        )
    ]


def check_shm(host: Host, want: Wanted) -> list[Check]:
    """The size of /dev/shm."""
    size = host.shm_bytes(host.root / SHM) / GIB
    hint = CLEARED.format("`grep shm /etc/fstab`, `findmnt /dev/shm`")
    ok = size >= want["shm_gib"]
    return [check("host_tuning.shm", f"/{SHM}", ok, round(size, 2), want["shm_gib"], unit="GiB", hint=hint)]


def check_memlock(host: Host, want: Wanted) -> list[Check]:
    """What a service may lock unless its unit says otherwise."""
    text = host.run("systemctl", "show", "--property=DefaultLimitMEMLOCK", "--value").strip()
    measured = "unlimited" if text == "infinity" else str(int(text) // 1024)
    required = str(want["memlock"])
    hint = CLEARED.format("`systemd-analyze cat-config systemd/system.conf`")
    ok = measured == required
    return [
        check("host_tuning.memlock", "DefaultLimitMEMLOCK", ok, measured, required, unit="KiB", hint=hint)
    ]


def check_clock(host: Host, want: Wanted) -> list[Check]:
    """Whether chrony follows a source, and how far the clock is off."""
    fields = host.run("chronyc", "-c", "-n", "tracking").strip().split(",")
    if len(fields) < 14:  # noqa: PLR2004  the fields of `chronyc -c tracking`
        raise ValueError(f"chronyc answered {','.join(fields)!r}")
    offset, leap = abs(float(fields[4])) * 1000, fields[13]
    hint = "Read `chronyc sources -v`; give host_tuning_chrony_servers a time source that this host reaches."
    if leap == "Not synchronised":
        measured: Any = "not synchronised"
    else:
        measured = round(offset, 3)
    ok = leap != "Not synchronised" and offset <= want["clock_offset_ms"]
    return [check("host_tuning.clock", "chrony", ok, measured, want["clock_offset_ms"], unit="ms", hint=hint)]


# Packages


def packages(host: Host) -> dict[str, str]:
    """The installed packages with what APT may do with them (``install``, ``hold``)."""
    text = host.run(
        "dpkg-query", "--show", "--showformat=${Package} ${db:Status-Want} ${db:Status-Status}\\n"
    )
    rows = [line.split() for line in text.splitlines()]
    return {row[0]: row[1] for row in rows if len(row) == 3 and row[2] == "installed"}  # noqa: PLR2004


def hold_state(host: Host, want: Wanted) -> dict[str, list[str]]:
    """The packages that are to be held, those of them that are not, and those once held that need not be."""
    known = packages(host)
    wanted = [name for name in sorted(known) if any(fnmatch(name, pattern) for pattern in want["hold"])]
    before = host.read_or(want["held_file"], "").split()
    return {
        "wanted": wanted,
        "missing": [name for name in wanted if known[name] != "hold"],
        "release": [name for name in before if name not in wanted and known.get(name) == "hold"],
    }


def check_hold(host: Host, want: Wanted) -> list[Check]:
    """Whether an unattended upgrade would leave these packages alone."""
    state = hold_state(host, want)
    patterns = ", ".join(want["hold"])
    hint = "Run this playbook again; correct host_tuning_hold if no package bears such a name."
    if not state["wanted"]:
        measured = "no such package is installed"
    elif state["missing"]:
        measured = f"not held: {', '.join(state['missing'])}"
    else:
        measured = ", ".join(state["wanted"])
    ok = bool(state["wanted"]) and not state["missing"]
    return [check("host_tuning.hold", "APT", ok, measured, f"held: {patterns}", hint=hint)]


# Firmware


def check_firmware(host: Host, want: Wanted) -> list[Check]:
    """Each setting that can be seen beside the recommended one, a fault only where it is required."""
    made = []
    unseen = []
    subject = f"firmware of {firmware.identity(host.root)}"
    for name, advice in want["firmware"].items():
        value, source = str(advice["value"]), advice["source"]
        required = name in want["firmware_required"]
        asked = value if required else f"any; {value} is recommended"
        hint = f"Set it to {value} in the firmware's setup ({advice['setting']}; {source})."
        reader = firmware.READERS.get(name)
        if reader is None:
            unseen.append(f"{advice['setting']}: {value}")
            continue
        try:
            measured = reader(host.root)
        except (OSError, ValueError) as why:
            measured = f"could not be read: {why}"
        ok = measured == value or not required
        made.append(check(f"host_tuning.firmware_{name}", advice["setting"], ok, measured, asked, hint=hint))
    if unseen:
        made.append(
            check("host_tuning.firmware_unseen", subject, True, "no file of the system shows these",
                  f"any; recommended are {'; '.join(unseen)}",
                  hint="Compare them in the firmware's setup or through the BMC.")
        )  # fmt: skip
    return made


CHECKS: tuple[tuple[str, str, Callable[[Host, Wanted], list[Check]]], ...] = (
    # What must be declared for it to be looked at, its name, and the look.
    ("kernel_cmdline", "kernel_cmdline", check_cmdline),
    ("sysctl", "sysctl", check_sysctl),
    ("idle_latency_us", "idle_state", check_idle),
    ("governor", "governor", check_governor),
    ("hugepages", "hugepages", check_hugepages),
    ("transparent_hugepages", "transparent_hugepages", check_transparent_hugepages),
    ("shm_gib", "shm", check_shm),
    ("memlock", "memlock", check_memlock),
    ("clock_offset_ms", "clock", check_clock),
    ("hold", "hold", check_hold),
    ("firmware", "firmware", check_firmware),
)


def is_declared(value: object) -> bool:
    """Whether a setting is declared: zero is a value, null and empty ones are none."""
    return value is not None and value not in ("", {}, [])


def examine(host: Host, want: Wanted) -> list[Check]:
    """All checks of what is declared; one that cannot be made is a finding, not an end."""
    made: list[Check] = []
    for setting, name, make in CHECKS:
        if not is_declared(want[setting]):
            continue
        try:
            made += make(host, want)
        except (OSError, ValueError) as why:
            hint = f"Correct this, or set host_tuning_{setting} to null where this host cannot have it."
            made.append(unmade(f"host_tuning.{name}", setting, str(why), want[setting], hint=hint))
    return made


def drift(made: list[Check]) -> list[str]:
    """The names of failed checks without their prefix, none twice."""
    return sorted({finding["name"].partition(".")[2] for finding in made if not finding["ok"]})


def main() -> None:
    """Examine this host with the arguments that Ansible passed."""
    texts: dict[str, Any] = {"type": "list", "elements": "str", "default": []}
    module = AnsibleModule(
        argument_spec={
            "kernel_cmdline": {"type": "dict"},
            "boot_file": {"type": "path", "required": True},
            "state_file": {"type": "path", "required": True},
            "reboot_later": {"type": "bool", "default": False},
            "sysctl": {"type": "dict", "default": {}},
            "idle_latency_us": {"type": "int"},
            "governor": {"type": "str"},
            "hugepages": {"type": "dict", "default": {}},
            "transparent_hugepages": {"type": "str"},
            "shm_gib": {"type": "float"},
            "memlock": {"type": "str"},
            "clock_offset_ms": {"type": "float"},
            "hold": texts,
            "held_file": {"type": "path", "required": True},
            "firmware": {"type": "dict", "default": {}},
            "firmware_required": texts,
        },
        supports_check_mode=True,
    )
    host, want = Host(), module.params
    started = time.monotonic()
    boot: dict[str, Any] = {"options": "", "boot_id": "", "reboot": "none", "grub": False}
    hold: dict[str, list[str]] = {"wanted": [], "missing": [], "release": []}
    try:
        if is_declared(want["kernel_cmdline"]):
            boot = boot_state(host, want, cmdline.declared(want["kernel_cmdline"]))
        if is_declared(want["hold"]) or host.read_or(want["held_file"], ""):
            hold = hold_state(host, want)
    except ValueError as error:
        module.fail_json(msg=f"host_tuning_kernel_cmdline: {error}")
    except OSError as error:
        module.fail_json(msg=f"this host cannot be read: {error}")
    unknown = sorted(set(want["firmware_required"]) - set(firmware.READERS))
    if unknown:
        module.fail_json(
            msg=f"host_tuning_firmware_required: {', '.join(unknown)} cannot be seen on a running system; "
            f"known are {', '.join(sorted(firmware.READERS))}"
        )
    checks = examine(host, want)
    seconds = round(time.monotonic() - started, 1)
    module.exit_json(changed=False, checks=checks, drift=drift(checks), boot=boot, hold=hold, seconds=seconds)


if __name__ == "__main__":
    main()
