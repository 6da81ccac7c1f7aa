"""Compare the firmware of a fleet's GPUs, on the controller, and name the odd ones out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

# Versions by GPU, as the module splitrail_gpu_health returns them.
Inventory = Mapping[str, Mapping[str, str]]

HINT = (
    "Bring the odd ones to the fleet's version with the server vendor's firmware bundle (or the release's "
    "driver), then power the node off and on."
)


def fleet_checks(inventories: Mapping[str, Inventory], host: str) -> list[dict[str, Any]]:
    """The checks of one host: for each component whether its GPUs have the version that most have.

    Without a majority every host is at fault, for nobody knows which version is meant.

    inventories: versions by component, GPU and host. A version that is missing is a version of its own.
    """
    checks = []
    for component in sorted({name for of in inventories.values() for gpu in of.values() for name in gpu}):
        versions = {
            name: {gpu: found.get(component) or "missing" for gpu, found in of.items()}
            for name, of in inventories.items()
        }
        counts = Counter(version for of in versions.values() for version in of.values())
        ranked = counts.most_common(2)
        tie = len(ranked) > 1 and ranked[0][1] == ranked[1][1]
        normal = ranked[0][0]
        mine = versions[host]
        odd = {gpu: version for gpu, version in mine.items() if version != normal}
        known = normal != "missing"
        checks.append(
            {
                "name": "gpu_health.firmware",
                "subject": component,
                "ok": known and not tie and not odd and bool(mine),
                "measured": _grouped(mine),
                "required": f"one version, and no majority: {_grouped_fleet(versions)}" if tie else normal,
                "unit": "",
                "hint": HINT,
            }
        )
    if not checks:
        checks.append(
            {
                "name": "gpu_health.firmware",
                "subject": "all components",
                "ok": False,
                "measured": "could not be checked: no versions were read",
                "required": "the fleet's",
                "unit": "",
                "hint": "Correct the other findings first: amd-smi tells the versions.",
            }
        )
    return checks


def _grouped(versions: Mapping[str, str]) -> str:
    """A host's version; where its GPUs differ, which has which."""
    if len(set(versions.values())) == 1:
        return next(iter(versions.values()))
    groups: dict[str, list[str]] = {}
    for gpu, version in versions.items():
        groups.setdefault(version, []).append(gpu)
    return (
        "; ".join(
            f"{version} on GPU {', '.join(sorted(gpus, key=lambda gpu: (len(gpu), gpu)))}"
            for version, gpus in sorted(groups.items(), key=lambda group: -len(group[1]))
        )
        or "none"
    )


def _grouped_fleet(versions: Mapping[str, Mapping[str, str]]) -> str:
    return "; ".join(f"{host} has {_grouped(of)}" for host, of in sorted(versions.items()))


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Any]:
        return {"splitrail_gpu_fleet": fleet_checks}
