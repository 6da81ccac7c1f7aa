"""What the hosts of an inventory will be asked to install, as the roles themselves say it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from splitrail.bundle.manifest import BundleError
from splitrail.project import Project
from splitrail.release import Release, parse
from splitrail.run.playbook import Interrupts, Options, Step, run_step
from splitrail.run.record import load

PLAYBOOK = "playbooks/bundle_needs.yml"
STATS_KEY = "splitrail_bundle"


class Host(BaseModel):
    """What one host needs: see ``playbooks/tasks/bundle_needs.yml``."""

    model_config = ConfigDict(extra="forbid")

    release: str
    release_sha256: str
    packages: list[str]
    base_packages: list[str]
    base_image: str
    wheels: list[str]
    sources: dict[str, dict[str, Any]]
    model: str


class Needs(BaseModel):
    """What all hosts need together, and the release that says so."""

    cluster: str
    release: dict[str, Any]
    hosts: dict[str, Host]

    @property
    def parsed(self) -> Release:
        """The release, checked. Raises ReleaseError."""
        return parse(self.release, str(self.release.get("name", "")))

    @property
    def release_sha256(self) -> str:
        """A digest of the release's data, whatever the file's comments and order of keys."""
        return next(iter(self.hosts.values())).release_sha256

    @property
    def packages(self) -> set[str]:
        return {name for host in self.hosts.values() for name in host.packages}

    @property
    def base_packages(self) -> set[str]:
        return {name for host in self.hosts.values() for name in host.base_packages}

    @property
    def models(self) -> list[str]:
        return sorted({host.model for host in self.hosts.values() if host.model})

    @property
    def builds(self) -> bool:
        """Whether a host of the inventory builds the image."""
        return any(host.wheels for host in self.hosts.values())


def ask(project: Project, options: Options) -> Needs:
    """Ask the inventory. Contacts no host. Raises BundleError with what Ansible says."""
    with tempfile.TemporaryDirectory(prefix="splitrail-bundle-") as name:
        record = Path(name)
        interrupts = Interrupts(lambda: None)
        with interrupts.caught():
            outcome = run_step(
                project,
                Step((project.playbook(PLAYBOOK),)),
                options,
                record,
                on_event=lambda _event: None,
                interrupts=interrupts,
            )
        failures = load(record).failures if (record / "run.json").exists() else []
    if interrupts.count:
        raise KeyboardInterrupt
    if outcome.code or failures:
        raise BundleError(
            [f"{failure.host}: {failure.message}" for failure in failures]
            or outcome.errors
            or [f"{PLAYBOOK} ended with code {outcome.code}"]
        )
    stats = outcome.data.get(STATS_KEY)
    if not isinstance(stats, dict):
        raise BundleError(f"{options.inventory}: no hosts, or {PLAYBOOK} handed out no {STATS_KEY}")
    return Needs.model_validate(stats)
