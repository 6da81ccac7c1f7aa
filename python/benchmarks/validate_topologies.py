"""Every shipped topology against the classes of the very Ray and vLLM that its release pins.

usage: validate_topologies.py --packages DIR [--cache DIR] [--python PYTHON]

DIR holds the installed packages of release cpu: /opt/venv/lib/python3.11/site-packages of the serving image.
Over them are laid, for each release, the wheel of its Ray and the Python part of its vLLM's wheel (engine
arguments are plain Python, and the same in the builds for CUDA and ROCm), from the configured package index;
so PYTHON is 3.11 as well. Prints a line a release; exit code 1 when a topology was refused, or one with a
fault was not.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

import yaml

from splitrail.topology import Site, load, names, serving
from splitrail.topology.app import app_config

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "roles/llm_serve/files/validate_serve_config.py"
# What older vLLM and Ray import and the packages of release cpu lack.
BESIDES = ["gguf", "boto3", "botocore", "s3transfer"]
Release = dict[str, Any]


def configs(release: Release) -> dict[str, str]:
    """The Serve config of each shipped topology of the release's platform, by the topology's name."""
    folder = ROOT / "inventories/topologies"
    site = Site(release=release)
    return {
        name: app_config(ROOT / "templates/serve/app.yaml.j2", serving(raw, site), site)
        for name in names(folder)
        if (raw := load(name, folder)).get("platform", "cpu") == release["platform"]
    }


def pip(python: str, *arguments: str) -> None:
    """Run pip of the Python that is served with."""
    subprocess.run([python, "-m", "pip", "--quiet", *arguments], check=True)


def overlay(release: Release, cache: Path, python: str) -> Path:
    """A folder with the release's own Ray and vLLM, made once."""
    ray, vllm = release["ray"], release["vllm"].partition("+")[0]
    folder = cache / f"ray-{ray}-vllm-{vllm}"
    if folder.exists():
        return folder
    half = folder.with_suffix(".half")
    half.mkdir(parents=True, exist_ok=True)
    pip(python, "install", "--upgrade", "--no-deps", "--target", str(half), f"ray=={ray}", *BESIDES)
    # The build for CUDA, whatever the machine: only its Python files are taken.
    pip(python, "download", "--no-deps", "--dest", str(cache), "--only-binary=:all:", f"vllm=={vllm}")
    with zipfile.ZipFile(next(cache.glob(f"vllm-{vllm}-*.whl"))) as wheel:
        wheel.extractall(half, [name for name in wheel.namelist() if not name.endswith((".so", ".a"))])
    half.rename(folder)
    return folder


def check(texts: dict[str, str], path: list[Path], python: str) -> dict[str, Any]:
    """What the check of the role says of configs, with packages from these folders."""
    # No model is looked for anywhere: an address at which nothing listens.
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path)), "HF_ENDPOINT": "http://127.0.0.1:9"}
    with tempfile.TemporaryDirectory() as scratch:
        for name, text in texts.items():
            (Path(scratch) / f"{name}.yaml").write_text(text, encoding="utf-8")
        files = sorted(str(file) for file in Path(scratch).glob("*.yaml"))
        done = subprocess.run(
            [python, str(PROGRAM), *files], env=env, capture_output=True, text=True, check=False
        )
    report: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return report


def main() -> int:
    """Check each release that serves."""
    parser = argparse.ArgumentParser(
        description="Shipped topologies against each release's own Ray and vLLM."
    )
    parser.add_argument("--packages", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=ROOT / "build/validate_topologies")
    parser.add_argument("--python", default="python3.11")
    given = parser.parse_args()
    given.cache.mkdir(parents=True, exist_ok=True)
    good = True
    for file in sorted((ROOT / "inventories/releases").glob("*.yml")):
        release = yaml.safe_load(file.read_text(encoding="utf-8"))
        if "vllm" not in release:
            continue
        own = [] if release["name"] == "cpu" else [overlay(release, given.cache, given.python)]
        texts = configs(release)
        # One that must be found, or nothing was looked at.
        wrong = next(iter(texts.values())).replace("max_model_len", "max_model_length")
        began = time.monotonic()
        # The image has the ingress for elastic engines among its packages; here it is beside them.
        path = [*own, given.packages, ROOT / "python/src"]
        faults = check({**texts, "wrong": wrong}, path, given.python)["faults"]
        found = [fault for fault in faults if "wrong.yaml" in fault]
        other = [fault for fault in faults if "wrong.yaml" not in fault]
        good = good and bool(found) and not other
        sys.stdout.write(
            f"{release['name']}: Ray {release['ray']}, vLLM {release['vllm']}: {len(texts)} topologies, "
            f"{len(other)} faults{' ' + str(other) if other else ''}; of the one with a fault: "
            f"{found[0].partition('engine_kwargs.')[2] if found else 'NOTHING'} "
            f"({time.monotonic() - began:.0f} s)\n"
        )
        sys.stdout.flush()
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
