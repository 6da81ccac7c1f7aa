#!/usr/bin/python
"""Check, before anything is installed, whether a GPU driver could be built and loaded on a node."""

from __future__ import annotations

import re
import tempfile
import time
from pathlib import Path
from shutil import disk_usage
from typing import Any
from urllib.parse import urlsplit

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.splitrail_amdgpu import DRIVER, KERNEL_PACKAGES, Node
from ansible.module_utils.splitrail_checks import check, unmade
from ansible.module_utils.splitrail_packages import read
from ansible.module_utils.urls import open_url

DOCUMENTATION = r"""
module: splitrail_amdgpu_preflight
short_description: Check whether a GPU driver could be built and loaded on a node
description:
  - Makes every check in one call, in check mode too, and changes nothing. An index of APT that does not know
    the kernel's headers is refreshed in a folder of its own, which is removed again.
  - What only an installation needs (disk space, repositories) is not asked of a node that has the driver.
options:
  driver: {description: The driver's version, for messages., type: str, required: true}
  package: {description: Version of amdgpu-dkms without its last part., type: str, required: true}
  suffix: {description: That last part; empty is the system's version., type: str, default: ""}
  suite: {description: Suite of the repositories; empty is the system's code name., type: str, default: ""}
  repositories: {description: The repositories (C(name), C(url))., type: list, elements: dict, required: true}
  sources: {description: The role's own sources file., type: path, required: true}
  kernels: {description: Kernel series by system (C(ubuntu-24.04))., type: dict, required: true}
  disk: {description: Free space wanted in GiB by path., type: dict, required: true}
  ofed: {description: Package that must be there before the driver; or empty., type: str, default: ""}
  timeout_s: {description: Longest wait for a repository in seconds., type: int, default: 30}
author: The splitrail authors
"""

RETURN = r"""
checks: {description: The findings., type: list, elements: dict, returned: always}
packages: {description: What the driver needs here (name or name=version)., type: list, elements: str,
           returned: always}
suite: {description: Suite of the repositories., type: str, returned: always}
seconds: {description: How long it took., type: float, returned: always}
"""

Check = Any
Want = dict[str, Any]

GIB = 1024**3
EFI_VARIABLES = "sys/firmware/efi/efivars"
SECURE_BOOT = "SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
# shim's own switch: 1 when it does not ask for signatures although the firmware does.
SHIM_VALIDATION = "MokSBStateRT-605dab50-e046-4300-abb6-3dd810dd8b23"
# Where DKMS keeps the key that it signs modules with: Ubuntu's place, and its own.
SIGNING_KEYS = ("var/lib/shim-signed/mok/MOK.der", "var/lib/dkms/mok.pub")


def platform_supported(node: Node, want: Want) -> Check:
    """The system and its kernel are in the release's table."""
    series = want["kernels"].get(node.name, [])
    known = "; ".join(f"{name}: {', '.join(list_)}" for name, list_ in sorted(want["kernels"].items()))
    ok = node.system in KERNEL_PACKAGES and any(
        re.match(rf"{re.escape(one)}(\D|$)", node.kernel) for one in series
    )
    return check(
        "amdgpu_driver.platform",
        "system and kernel",
        ok,
        f"{node.name}, kernel {node.kernel}",
        known,
        hint=f"Boot a kernel that driver {want['driver']} supports and hold it, or choose another release.",
    )


def kernel_packages(node: Node, present: bool) -> list[Check]:
    """Headers and modules of the running kernel are here, or APT has them."""
    name = "amdgpu_driver.kernel_packages"
    found = []
    installed = node.packages(*node.kernel_packages())
    offered = {p: node.offer(p).candidate for p in node.kernel_packages() if p not in installed}
    if not present and not all(offered.values()):
        offered = refreshed(node, list(offered))
    for package in node.kernel_packages():
        has = package in installed and installed[package].whole
        built = package in installed or bool(offered.get(package))
        state = "installed" if has else "offered by APT" if built else "neither installed nor offered by APT"
        hint = (
            "Boot the newest kernel whose headers your mirror has (it may have dropped those of "
            f"{node.kernel}), or add the mirror that has them."
        )
        found.append(
            check(name, package, has if present else built, state, "installed or offered", hint=hint)
        )
    return found


def refreshed(node: Node, names: list[str]) -> dict[str, str]:
    """What APT would know after a refresh, which is made beside its own index."""
    with tempfile.TemporaryDirectory(prefix="splitrail-apt-") as folder:
        (Path(folder) / "partial").mkdir()
        options = (
            f"--option=Dir::State::lists={folder}",
            "--option=Dir::Cache::pkgcache=",
            "--option=Dir::Cache::srcpkgcache=",
            # Its unprivileged user may not write to this folder.
            "--option=APT::Sandbox::User=root",
        )
        node.ask("apt-get", *options, "--quiet", "update", timeout_s=300)
        return {name: node.offer(name, *options).candidate for name in names}


def secure_boot(node: Node) -> Check:
    """The firmware loads what DKMS builds: no Secure Boot, or a key that the machine's owner enrolled."""
    name, subject, required = "amdgpu_driver.secure_boot", "Secure Boot", "off, or DKMS' key enrolled"
    variables = node.root / EFI_VARIABLES
    # Four bytes of attributes, then the value.
    on = _variable(variables / SECURE_BOOT) == 1 and _variable(variables / SHIM_VALIDATION) != 1
    if not on:
        return check(name, subject, True, "off", required)
    enrol = (
        "`mokutil --import FILE`, reboot, confirm at the console; or switch Secure Boot off in the firmware."
    )
    files = [node.root / place for place in SIGNING_KEYS if (node.root / place).is_file()]
    if not files:
        hint = (
            "The kernel will load no module that is built here. Make a key (`update-secureboot-policy "
            f"--new-key`, or install dkms), enrol it: {enrol}"
        )
        return check(
            name, subject, False, "on, and this machine has no key that DKMS signs with", required, hint=hint
        )
    asked = {file: node.ask("mokutil", "--test-key", str(file)) for file in files}
    if any("already enrolled" in done.text for done in asked.values()):
        return check(name, subject, True, "on, DKMS' key is enrolled", required)
    if any(done.code == 127 for done in asked.values()):  # noqa: PLR2004  # the shell's code for no such command
        hint = "Install mokutil, so that it can be seen whether the key is enrolled."
        return unmade(name, subject, "Secure Boot is on and mokutil is not installed", required, hint=hint)
    return check(
        name, subject, False, f"on, and {files[0]} is not enrolled", required, hint=f"Enrol it: {enrol}"
    )


def _variable(path: Path) -> int:
    try:
        data = path.read_bytes()
    except OSError:
        return -1
    return data[4] if len(data) > 4 else -1  # noqa: PLR2004


def ofed_before(node: Node, package: str) -> list[Check]:
    """OFED is there first: the driver is built against its interface for peer memory, and not again later."""
    if not package:
        return []
    found = node.packages(package).get(package)
    state = found.status if found else "not installed"
    hint = f"Run the role that installs {package} before this one; amdgpu-dkms is built against it once."
    whole = found is not None and found.whole
    return [check("amdgpu_driver.ofed", package, whole, state, "installed", hint=hint)]


def disk_space(node: Node, wanted: dict[str, Any]) -> list[Check]:
    """Where packages, sources and modules go there is room; of a path that is not there its parent is "
    "measured."""
    found = []
    for path, gib in sorted(wanted.items()):
        place = node.root / path.lstrip("/")
        while not place.exists():
            place = place.parent
        free = round(disk_usage(place).free / GIB, 2)
        hint = "Free space there (`apt-get clean`, old kernels with `apt-get autoremove`), or make it larger."
        found.append(
            check("amdgpu_driver.disk", path, free >= float(gib), free, float(gib), unit="GiB", hint=hint)
        )
    return found


def dpkg_whole(node: Node) -> Check:
    """dpkg has no half-installed package, which would make APT refuse all others."""
    unfinished = node.unfinished()
    return check(
        "amdgpu_driver.dpkg",
        "dpkg",
        not unfinished,
        unfinished or "nothing unfinished",
        "nothing unfinished",
        hint="Finish it: `dpkg --configure -a`, then `apt-get --fix-broken install`.",
    )


def foreign_sources(node: Node, want: Want) -> Check:
    """No other file names these repositories or another driver's: APT would mix their versions."""
    own = Path(want["sources"]).name
    ours = "|".join(re.escape(one["url"].rstrip("/")) for one in want["repositories"])
    pattern = re.compile(rf"repo\.radeon\.com/(amdgpu|rocm)\b|({ours})(/|\s|$)", re.MULTILINE)
    etc = node.root / "etc/apt"
    files = [etc / "sources.list", *sorted((etc / "sources.list.d").glob("*"))]
    found = [
        f"/{file.relative_to(node.root)}"
        for file in files
        if file.suffix in {".list", ".sources"} and file.name != own and pattern.search(_active(read(file)))
    ]
    return check(
        "amdgpu_driver.sources",
        "/etc/apt",
        not found,
        ", ".join(found) or "no other",
        "no other file that names AMD's repositories",
        hint="Remove them (amdgpu-install writes such files); the role writes its own.",
    )


def _active(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))


def proxy(node: Node) -> list[Check]:
    """A proxy that is named is a URL: APT, pip and others take a bare host for different things."""
    found = []
    for name in ("http_proxy", "https_proxy"):
        if value := node.environment.get(name, ""):
            parts = urlsplit(value)
            # Never the whole value: it may hold a password.
            shown = f"{parts.scheme}://{parts.hostname}:{_port(parts)}" if parts.hostname else "no URL"
            ok = parts.scheme in {"http", "https"} and bool(parts.hostname) and _port(parts) > 0
            hint = f"Write {name} as http://HOST:PORT (amdgpu_driver_environment)."
            found.append(check("amdgpu_driver.proxy", name, ok, shown, "http://HOST:PORT", hint=hint))
    return found


def _port(parts: Any) -> int:
    try:
        return parts.port or 0
    except ValueError:
        return 0


def repositories(want: Want, suite: str) -> list[Check]:
    """Each repository answers, and has the suite of this system."""
    found = []
    for one in want["repositories"]:
        name, url = "amdgpu_driver.repository", f"{one['url'].rstrip('/')}/dists/{suite}/Release"
        hint = "See that the node reaches it (proxy, mirror, bundle) and that it has this system's suite."
        try:
            with open_url(url, timeout=want["timeout_s"]) as answer:
                text = answer.read(65536).decode("utf-8", "replace")
        except (OSError, ValueError) as error:
            found.append(unmade(name, one["name"], f"{url}: {error}", "a Release file", hint=hint))
            continue
        ok = bool(re.search(r"^(Suite|Codename|SHA256|Components):", text, re.MULTILINE))
        measured = "a Release file" if ok else f"something else answers at {url}: {text[:60]!r}"
        found.append(check(name, one["name"], ok, measured, "a Release file", hint=hint))
    return found


def measure(node: Node, want: Want) -> dict[str, Any]:
    """All checks, and what follows for the installation."""
    version = node.driver_version(want["package"], want["suffix"])
    suite = want["suite"] or node.codename
    here = node.packages(DRIVER).get(DRIVER)
    present = here is not None and here.whole and here.version == version
    checks = [platform_supported(node, want), *kernel_packages(node, present), secure_boot(node)]
    checks += [*ofed_before(node, want["ofed"]), dpkg_whole(node), foreign_sources(node, want), *proxy(node)]
    if not present:
        checks += [*disk_space(node, want["disk"]), *repositories(want, suite)]
    return {"checks": checks, "packages": [*node.kernel_packages(), f"{DRIVER}={version}"], "suite": suite}


def main() -> None:
    """Entry point of the module."""
    module = AnsibleModule(
        argument_spec={
            "driver": {"type": "str", "required": True},
            "package": {"type": "str", "required": True},
            "suffix": {"type": "str", "default": ""},
            "suite": {"type": "str", "default": ""},
            "repositories": {"type": "list", "elements": "dict", "required": True},
            "sources": {"type": "path", "required": True},
            "kernels": {"type": "dict", "required": True},
            "disk": {"type": "dict", "required": True},
            "ofed": {"type": "str", "default": ""},
            "timeout_s": {"type": "int", "default": 30},
        },
        supports_check_mode=True,
    )
    started = time.monotonic()
    found = measure(Node(), module.params)
    module.exit_json(changed=False, seconds=round(time.monotonic() - started, 1), **found)


if __name__ == "__main__":
    main()
