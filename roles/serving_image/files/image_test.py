"""Prove, inside a serving image, that it holds what its release says.

Reads the release as JSON from standard input and prints a verdict as JSON. Exits with 0 (ok), 1 (a check
failed) or 2 (could not run). Needs neither GPU nor NIC nor network: whoever builds an image may have none.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import logging.config
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

VERSION_HINT = "Make the release's python, wheels and image_test agree."
LOAD_HINT = "Add the missing library to base_image.packages, or the missing wheel to the lock."
CUDA_HINT = "Pin the ROCm build of it in wheels, and see that wheel_index carries that build for this Python."
PROVIDER_HINT = (
    "Install ibverbs-providers in the last stage: without its provider libibverbs sees no such NIC."
)
UCX_HINT = "Correct sources.ucx.configure and see that the library the module needs is in the last stage."
PLUGIN_HINT = "Hand UCX's and NIXL's plugin folders to the build of the wheel."
SOURCE_HINT = "Build again without the cache: the image was made from another commit than the release names."
LOG_HINT = "This Ray sets up its log in another way: look whether it needs the Containerfile's change still."
CONFIG_HINT = "Correct the topology or llm_serve's variables, or raise the release's Ray and vLLM."

SHARE = Path("/usr/share/splitrail")
PROVIDERS = Path("/etc/libibverbs.d")
PROVIDER_LIBRARIES = [Path("/usr/lib/x86_64-linux-gnu/libibverbs"), Path("/usr/lib64/libibverbs")]
# Distributions that are CUDA's by name, and versions that name it (+cu128). `nixl` alone is CUDA's too.
CUDA = re.compile(r"^(nvidia-(cublas|cuda|cudnn|nccl)|nixl(-cu\d+)?$|cupy-cuda)|\+cu\d", re.IGNORECASE)


def check(name: str, subject: str, measured: str, required: str, *, hint: str) -> dict[str, Any]:
    """One finding of the verdict; ok if the measured is the required."""
    return {
        "name": f"serving_image.{name}",
        "subject": subject,
        "ok": measured == required,
        "measured": measured,
        "required": required,
        "unit": "",
        "hint": hint,
    }


def version(distribution: str) -> str:
    """A distribution's installed version, or that there is none."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"


def outcome(load: Callable[[], object]) -> str:
    """``loads``, or what was raised; a library that is missing, or ends the process, shows here."""
    try:
        load()
    except (Exception, SystemExit) as error:
        return f"{type(error).__name__}: {error}"
    return "loads"


def nixl_agent(module: str, backends: list[str]) -> Any:
    """A NIXL agent with these backends, each with its plugin and the libraries behind that.

    ``module`` is its Python interface: nixl._api, and on ROCm rixl._api or nixl_rocm._api.
    """
    api = importlib.import_module(module)
    return api.nixl_agent("image-test", api.nixl_agent_config(backends=backends))


def nixl_plugin(module: str, plugin: str) -> object:
    """The kinds of memory that this plugin moves, which NIXL learns by loading it; no device is opened.

    Raises LookupError when NIXL found no such plugin, or could not load it, which it says in its log only.
    """
    agent = nixl_agent(module, [])
    found = agent.get_plugin_list()
    if plugin not in found:
        raise LookupError(f"no plugin {plugin} among {found}")
    kinds = agent.get_plugin_mem_types(plugin)
    if not kinds:
        raise LookupError(f"plugin {plugin} does not load: NIXL_LOG_LEVEL=DEBUG says why")
    return kinds


def ucx_settings() -> set[str]:
    """The names of all settings of UCX.

    A transport adds its own (UCX_RC_MLX5_...) when its module is loaded, with or without a device, so they
    say which transports are built and load; ``ucx_info -d`` would say which have a device here.
    """
    asked = ["ucx_info", "-c", "-a"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode:
        raise RuntimeError(f"{' '.join(asked)} ended with {done.returncode}: {done.stderr.strip()[-200:]}")
    return set(re.findall(r"^(UCX_\w+)=", done.stdout, re.MULTILINE))


def ucx_checks(transports: list[str]) -> list[dict[str, Any]]:
    """A finding a transport: whether UCX loads it."""
    try:
        settings = ucx_settings()
    except (OSError, RuntimeError, subprocess.TimeoutExpired) as error:
        failed = f"{type(error).__name__}: {error}"
        return [check("ucx_transport", name, failed, "loads", hint=UCX_HINT) for name in transports]
    return [
        check(
            "ucx_transport",
            name,
            "loads" if any(setting.startswith(f"UCX_{name.upper()}_") for setting in settings) else "absent",
            "loads",
            hint=UCX_HINT,
        )
        for name in transports
    ]


def provider(name: str) -> object:
    """libibverbs' driver of a kind of NIC, loaded as libibverbs loads it.

    Raises LookupError when it is not registered, OSError when its library does not load.
    """
    file = PROVIDERS / f"{name}.driver"
    if not file.is_file():
        raise LookupError(f"{file} is missing")
    stem = file.read_text(encoding="utf-8").split()[1]
    # libibverbs adds the version of its interface to the name; one of them is here.
    pattern = f"lib{Path(stem).name}-rdmav*.so"
    for folder in PROVIDER_LIBRARIES:
        for library in sorted(folder.glob(pattern)):
            return ctypes.CDLL(str(library))
    raise LookupError(f"{file} names {stem}, and {pattern} is nowhere")


def serve_log() -> None:
    """The log of a replica of Ray Serve, once a library has set up its own logging, as NIXL and vLLM do.

    Raises LookupError when it has no file then: such a replica loses its log, and does not outlive its head.
    """
    utils = importlib.import_module("ray.serve._private.logging_utils")
    settings = importlib.import_module("ray.serve.schema").LoggingConfig
    with tempfile.TemporaryDirectory() as folder:
        utils.configure_component_logger(
            component_name="image-test",
            component_id="0",
            logging_config=settings(logs_dir=folder),
            max_bytes=0,
            backup_count=0,
        )
        logging.config.dictConfig({"version": 1, "disable_existing_loggers": False})
        handlers = logging.getLogger("ray.serve").handlers
        if not any(getattr(handler, "target", None) for handler in handlers):
            raise LookupError("logging.config.dictConfig closes it")


def cuda_wheels() -> str:
    """Every distribution here that is a build for CUDA, or ``none``."""
    here = {(str(each.metadata["Name"]), each.version) for each in metadata.distributions()}
    return (
        ", ".join(sorted(f"{name}=={is_}" for name, is_ in here if CUDA.search(name) or CUDA.search(is_)))
        or "none"
    )


def hip_build() -> object:
    """What torch was built for. Raises LookupError when that is not ROCm's HIP."""
    torch = importlib.import_module("torch")
    if not getattr(torch.version, "hip", None):
        raise LookupError(f"torch {torch.__version__} is not built for ROCm (torch.version.hip is empty)")
    return torch


def source_checks(sources: dict[str, Any]) -> list[dict[str, Any]]:
    """A finding a source: whether what was built is the commit that the release names."""
    found = []
    for name, source in sources.items():
        wanted = source.get("commit") or f"sha256:{source['sha256']}"
        try:
            built = (SHARE / f"{name}.commit").read_text(encoding="utf-8").strip()
        except OSError as error:
            built = f"{type(error).__name__}: {error}"
        # A release may abbreviate a commit, and then says that it is not pinned.
        found.append(
            check("source", name, wanted if built.startswith(wanted) else built, wanted, hint=SOURCE_HINT)
        )
    return found


def config_checks(config: str, validator: str) -> list[dict[str, Any]]:
    """What the Ray and vLLM of this image say to the Serve config that is about to be deployed."""
    asked = [sys.executable, validator, "/dev/stdin"]
    done = subprocess.run(asked, input=config, capture_output=True, text=True, check=False)
    try:
        faults = json.loads(done.stdout)["faults"]
    except (ValueError, KeyError):
        faults = [f"{validator} ended with {done.returncode}: {done.stderr.strip()[-300:]}"]
    if not faults and done.returncode:
        faults = [f"{validator} ended with {done.returncode}"]
    wanted = "Ray and vLLM take it"
    measured = faults or [wanted]
    return [check("serve_config", "serve config", each, wanted, hint=CONFIG_HINT) for each in measured]


def examine(release: dict[str, Any]) -> list[dict[str, Any]]:
    """All findings about this image."""
    wanted = release["image_test"]
    versions = dict(line.split("==") for line in release["wheels"]) | wanted.get("versions", {})
    python = ".".join(map(str, sys.version_info[:2]))
    checks = [check("python", sys.executable, python, release["python"], hint=VERSION_HINT)]
    for name, required in versions.items():
        checks.append(check("version", name, version(name), required, hint=VERSION_HINT))
    for module in wanted.get("imports", []):
        found = outcome(partial(importlib.import_module, module))
        checks.append(check("import", module, found, "loads", hint=LOAD_HINT))
    if "ray.serve.llm" in wanted.get("imports", []):
        found = outcome(serve_log).replace("loads", "stays open")
        checks.append(check("serve_log", "Ray Serve's log", found, "stays open", hint=LOG_HINT))
    module = wanted.get("nixl_module") or "nixl._api"
    for backend in wanted.get("nixl_backends", []):
        found = outcome(partial(nixl_agent, module, [backend]))
        checks.append(check("nixl_backend", backend, found, "loads", hint=LOAD_HINT))
    for plugin in wanted.get("nixl_plugins", []):
        found = outcome(partial(nixl_plugin, module, plugin))
        checks.append(check("nixl_plugin", plugin, found, "loads", hint=PLUGIN_HINT))
    for name in wanted.get("verbs_providers", []):
        found = outcome(partial(provider, name))
        checks.append(check("verbs_provider", name, found, "loads", hint=PROVIDER_HINT))
    checks += ucx_checks(wanted.get("ucx_transports", []))
    checks += source_checks(release.get("sources", {}))
    if release.get("rocm"):
        checks.append(check("cuda_wheels", "wheels", cuda_wheels(), "none", hint=CUDA_HINT))
        checks.append(check("hip", "torch", outcome(hip_build), "loads", hint=CUDA_HINT))
    if config := release.get("serve_config"):
        checks += config_checks(config, release["serve_validator"])
    return checks


def main() -> None:
    """Examine this image against the release on standard input."""
    start = time.monotonic()
    # Libraries chatter on standard output while they load; it belongs to the verdict alone.
    with os.fdopen(os.dup(1), "w") as verdict:
        os.dup2(2, 1)
        try:
            checks = examine(json.load(sys.stdin))
        except (ValueError, KeyError, TypeError) as error:
            sys.stderr.write(f"the release on standard input cannot be read: {error!r}\n")
            raise SystemExit(2) from error
        ok = all(each["ok"] for each in checks)
        json.dump({"ok": ok, "checks": checks, "seconds": round(time.monotonic() - start, 3)}, verdict)
    # Threads and exit hooks of the imported libraries must not change the answer.
    os._exit(0 if ok else 1)


if __name__ == "__main__":
    main()
