#!/usr/bin/python
"""Say whether the GPU driver that a node runs is the declared one, built for this kernel, and not an "
"older one."""

from __future__ import annotations

import grp
import json
import pwd
import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.splitrail_amdgpu import DRIVER, Node
from ansible.module_utils.splitrail_checks import check, unmade
from ansible.module_utils.splitrail_packages import builds, read

DOCUMENTATION = r"""
module: splitrail_amdgpu_driver
short_description: Say whether the GPU driver that a node runs is the declared one
description:
  - Compares packages, DKMS' build for the running kernel, the module on disk and the module in the kernel,
    and reads the groups that own the GPUs' devices. Changes nothing.
options:
  package: {description: Version of amdgpu-dkms without its last part., type: str, required: true}
  suffix: {description: That last part; empty is the system's version., type: str, default: ""}
  dkms: {description: The version that DKMS knows it by without its last part., type: str, required: true}
  tools: {description: Packages beside the driver., type: list, elements: str, default: []}
  users: {description: Users that must be in the groups., type: list, elements: str, default: []}
  groups: {description: Groups that own the devices., type: list, elements: str, default: [render, video]}
  state_file: {description: Where a request for a reboot is remembered., type: path, required: true}
author: The splitrail authors
"""

RETURN = r"""
checks: {description: The findings., type: list, elements: dict, returned: always}
loaded: {description: Srcversion of the module in the kernel; empty for none., type: str, returned: always}
on_disk: {description: Srcversion of the module that the next boot loads., type: str, returned: always}
reboot: {description: "C(none), C(needed), or C(vain): a reboot was asked for and did not bring the module.",
         type: str, returned: always}
boot_id: {description: The boot that runs., type: str, returned: always}
gids: {description: Groups that own the devices, for containers., type: list, elements: int, returned: always}
seconds: {description: How long it took., type: float, returned: always}
"""

Check = Any
Want = dict[str, Any]

MODULE = "amdgpu"
DEVICES = ("dev/kfd", "dev/dri/renderD*", "dev/dri/card*")
GROUP_USES = 0o060
REQUIRED_DEVICES = ("/dev/kfd", "/dev/dri/renderD")


class Driver:
    """The driver on one node."""

    def __init__(self, node: Node, want: Want) -> None:
        self.node, self.want = node, want
        self.loaded = read(node.root / "sys/module" / MODULE / "srcversion")
        self.in_kernel = (node.root / "sys/module" / MODULE).exists()
        self.on_disk = node.ask("modinfo", "--field", "srcversion", MODULE).out.strip()
        self.reboot = self._reboot()
        paths = [path for pattern in DEVICES for path in sorted(node.root.glob(pattern))]
        self.devices = {f"/{path.relative_to(node.root)}": path.stat() for path in paths}

    def _reboot(self) -> str:
        """Whether a boot is needed for the module on disk, and whether one has been in vain."""
        if not self.on_disk or not self.in_kernel or self.loaded == self.on_disk:
            return "none"
        try:
            asked = json.loads(read(Path(self.want["state_file"])) or "{}")
        except ValueError:
            asked = {}
        again = asked.get("srcversion") == self.on_disk and asked.get("boot_id") != self.node.boot_id
        return "vain" if again else "needed"

    @property
    def gids(self) -> list[int]:
        """The groups that own the devices."""
        return sorted({found.st_gid for found in self.devices.values()})

    def packages(self) -> list[Check]:
        """The packages are those of the release, and whole."""
        version = self.node.driver_version(self.want["package"], self.want["suffix"])
        wanted = {DRIVER: version, **dict.fromkeys([*self.node.kernel_packages(), *self.want["tools"]], "")}
        here = self.node.packages(*wanted)
        found = []
        for name, asked in wanted.items():
            package = here.get(name)
            state = f"{package.version}, {package.status}" if package else "not installed"
            ok = package is not None and package.whole and asked in {"", package.version}
            required = f"{asked}, installed" if asked else "installed"
            hint = "Run the role; a package that is not whole needs `dpkg --configure -a` first."
            found.append(check("amdgpu_driver.package", name, ok, state, required, hint=hint))
        return found

    def build(self) -> Check:
        """DKMS built and installed the module for the kernel that runs."""
        name, kernel = "amdgpu_driver.dkms", self.node.kernel
        done = self.node.ask("dkms", "status", MODULE)
        version = f"{self.want['dkms']}.{self.want['suffix'] or self.node.release}"
        required = f"{version} installed for {kernel}"
        if done.code:
            return unmade(
                name, kernel, done.text or f"dkms ends with {done.code}", required, hint="Install dkms."
            )
        known = builds(done.out, MODULE)
        here = [build for build in known if build.kernel == kernel and build.version == version]
        # "Original modules exist" is no fault: the kernel's own module is kept aside.
        ok = any(build.state == "installed" and "WARNING" not in build.warning for build in here)
        shown = "; ".join(
            " ".join(
                part
                for part in (b.version, b.state, f"for {b.kernel}" if b.kernel else "", b.warning)
                if part
            )
            for b in here or known
        )
        hint = (
            f"See /var/lib/dkms/{MODULE}/{version}/build/make.log, then `dkms install --force "
            f"{MODULE}/{version} -k {kernel}`."
        )
        return check(name, kernel, ok, shown or "no build", required, hint=hint)

    def module(self) -> Check:
        """The module in the kernel is the one on disk."""
        name, required = "amdgpu_driver.module", f"srcversion {self.on_disk} loaded"
        if not self.on_disk:
            hint = "See whether DKMS has built it for this kernel; `depmod`."
            return unmade(
                name, MODULE, f"no module for {self.node.kernel} on disk", "a module on disk", hint=hint
            )
        if not self.in_kernel:
            hint = "`modprobe amdgpu`; the reason stands in `dmesg`. Is it on a deny list (/etc/modprobe.d)?"
            return check(name, MODULE, False, "not loaded", required, hint=hint)
        hint = {
            "none": "",
            "needed": "Reboot the host; nothing reboots it unasked (amdgpu_driver_reboot_ok).",
            "vain": "A reboot did not bring it, so another is not asked for. Is an older module in the "
            "initramfs? `update-initramfs -u`, then see which file `modinfo -n amdgpu` names, and reboot "
            "by hand.",
        }[self.reboot]
        shown = f"srcversion {self.loaded or 'unknown'} loaded"
        return check(name, MODULE, self.reboot == "none", shown, required, hint=hint)

    def device_checks(self) -> list[Check]:
        """The devices are there, and a group other than root's may use them."""
        found = []
        for prefix in REQUIRED_DEVICES:
            of = {path: stat for path, stat in self.devices.items() if path.startswith(prefix)}
            shown = ", ".join(
                sorted({f"group {stat.st_gid}, mode {stat.st_mode & 0o777:o}" for stat in of.values()})
            )
            ok = bool(of) and all(
                stat.st_gid != 0 and stat.st_mode & GROUP_USES == GROUP_USES for stat in of.values()
            )
            hint = (
                "Containers get the devices by their group: see udev's rules (70-amdgpu.rules) and the "
                "group render."
                if of
                else "The driver made none: see `dmesg | grep amdgpu`; a reboot may be due."
            )
            subject = f"{prefix}*" if prefix.endswith("D") else prefix
            required = "there, read and written by a group that is not root's"
            found.append(
                check("amdgpu_driver.device", subject, ok, shown or "not there", required, hint=hint)
            )
        return found

    def users(self) -> list[Check]:
        """Users that start GPU programs outside of containers are in the groups."""
        found = []
        for user in self.want["users"]:
            name, required = "amdgpu_driver.user", f"in {', '.join(self.want['groups'])}"
            try:
                primary = pwd.getpwnam(user).pw_gid
            except KeyError:
                hint = "Make the user, or take it out of amdgpu_driver_users."
                found.append(check(name, user, False, "no such user", required, hint=hint))
                continue
            groups = {
                group.gr_name for group in grp.getgrall() if user in group.gr_mem or group.gr_gid == primary
            }
            lacks = [group for group in self.want["groups"] if group not in groups]
            shown = f"not in {', '.join(lacks)}" if lacks else required
            hint = "Run the role; a session that is open keeps its old groups."
            found.append(check(name, user, not lacks, shown, required, hint=hint))
        return found

    def checks(self) -> list[Check]:
        """All of them."""
        return [*self.packages(), self.build(), self.module(), *self.device_checks(), *self.users()]


def main() -> None:
    """Entry point of the module."""
    module = AnsibleModule(
        argument_spec={
            "package": {"type": "str", "required": True},
            "suffix": {"type": "str", "default": ""},
            "dkms": {"type": "str", "required": True},
            "tools": {"type": "list", "elements": "str", "default": []},
            "users": {"type": "list", "elements": "str", "default": []},
            "groups": {"type": "list", "elements": "str", "default": ["render", "video"]},
            "state_file": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    started = time.monotonic()
    driver = Driver(Node(), module.params)
    module.exit_json(
        changed=False,
        checks=driver.checks(),
        loaded=driver.loaded,
        in_kernel=driver.in_kernel,
        on_disk=driver.on_disk,
        reboot=driver.reboot,
        boot_id=driver.node.boot_id,
        gids=driver.gids,
        seconds=round(time.monotonic() - started, 1),
    )


if __name__ == "__main__":
    main()
