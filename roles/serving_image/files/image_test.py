"""Prove, inside a serving image, that it holds what its release says.

Reads the release as JSON from standard input and prints a verdict as JSON. Exits with 0 (ok), 1 (a check
failed) or 2 (could not run).
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib import metadata
from typing import Any

VERSION_HINT = "Make the release's python, wheels and image_test agree."
LOAD_HINT = "Add the missing library to base_image.packages, or the missing wheel to the lock."


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


def nixl_agent(backend: str) -> object:
    """A NIXL agent with this backend, which loads its plugin and the libraries behind that."""
    api = importlib.import_module("nixl._api")
    return api.nixl_agent(f"image-test-{backend}", api.nixl_agent_config(backends=[backend]))


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
    for backend in wanted.get("nixl_backends", []):
        found = outcome(partial(nixl_agent, backend))
        checks.append(check("nixl_backend", backend, found, "loads", hint=LOAD_HINT))
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
