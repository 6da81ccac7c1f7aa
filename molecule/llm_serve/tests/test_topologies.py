"""Every shipped topology, against the real classes of the Ray and vLLM in the serving image."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from splitrail.topology import Site, load, names, serving
from splitrail.topology.app import app_config

ROOT = Path(__file__).resolve().parents[3]
TOPOLOGIES = ROOT / "inventories/topologies"
TEMPLATE = ROOT / "templates/serve/app.yaml.j2"
CHECK = "/usr/local/lib/splitrail/validate_serve_config.py"
# One container for all of them: Ray and vLLM take ten seconds to import.
COMMAND = (
    "sudo podman run --rm --interactive --network=none --cgroups=disabled "
    f"--volume={CHECK}:/check.py:ro $(sudo podman inspect --format '{{{{.Image}}}}' ray) "
    "sh -c 'mkdir /tmp/c && cd /tmp/c && tar x && python /check.py *.yaml'"
)


def shipped() -> dict[str, str]:
    """The Serve config of every topology on every release of its platform, by file name."""
    releases = [yaml.safe_load(path.read_text()) for path in (ROOT / "inventories/releases").glob("*.yml")]
    found = {}
    for name in names(TOPOLOGIES):
        raw = load(name, TOPOLOGIES)
        for release in releases:
            if "vllm" in release and release["platform"] == raw.get("platform", "cpu"):
                site = Site(release=release)
                found[f"{name}@{release['name']}.yaml"] = app_config(TEMPLATE, serving(raw, site), site)
    return found


def check(request: pytest.FixtureRequest, configs: dict[str, str]) -> dict[str, Any]:
    """What the check in the serving image says of configs."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, text in configs.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))
    done = subprocess.run(
        ["ssh", "-F", request.config.option.ssh_config, "mol-head", COMMAND],
        input=packed.getvalue(),
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert done.stdout.strip(), done.stderr.decode()[-1500:]
    report: dict[str, Any] = json.loads(done.stdout.decode().strip().splitlines()[-1])
    return report


def test_ray_and_vllm_take_every_shipped_topology(request: pytest.FixtureRequest) -> None:
    configs = shipped()
    assert {name.partition("@")[2] for name in configs} >= {"cpu.yaml", "h200.yaml", "mi325x-rocm7.0.yaml"}
    good = next(iter(configs.values()))
    # Two that must be found, or nothing was looked at.
    wrong = good.replace("max_model_len", "max_model_length")
    roles = next(text for name, text in configs.items() if "1p1d" in name).replace("kv_both", "kv_none")
    report = check(request, {**configs, "wrong.yaml": wrong, "zroles.yaml": roles})
    assert [fault for fault in report["faults"] if not fault.startswith(("wrong.yaml", "zroles.yaml"))] == []
    said = [fault for fault in report["faults"] if fault.startswith("wrong.yaml")]
    assert "max_model_length: not an engine argument of this vLLM, do you mean 'max_model_len'?" in str(said)
    # Who names it, and in which words, is up to the versions of Ray and vLLM.
    assert any("kv_role" in fault for fault in report["faults"] if fault.startswith("zroles.yaml"))
