"""Write what is in this image as a CycloneDX 1.6 bill of materials, `sbom.json` beside this program.

Runs as the last step of an image's build, by the image's own Python. Lists the Python distributions, the
Debian packages, what was built from source with the commit that was checked out, the interpreter and the base
image. `provenance.json` beside this program says what the release asked for. Two builds of the same parts
write the same bytes: no time, no serial number.

Format: https://cyclonedx.org/docs/1.6/json/; package URLs: https://github.com/package-url/purl-spec
"""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import quote

SHARE = Path(__file__).parent
Component = dict[str, Any]


def component(kind: str, name: str, version: str, purl: str) -> Component:
    """One part, named by its package URL."""
    return {"type": kind, "bom-ref": purl, "name": name, "version": version, "purl": purl}


def wheels() -> list[Component]:
    """The Python distributions, by their normalised names (PEP 503)."""
    found = {}
    for each in metadata.distributions():
        name = re.sub(r"[-_.]+", "-", str(each.metadata["Name"])).lower()
        purl = f"pkg:pypi/{name}@{quote(each.version, safe='.+-!')}"
        found[purl] = component("library", name, each.version, purl)
    return list(found.values())


def debs() -> list[Component]:
    """The Debian packages that are installed. Raises CalledProcessError when dpkg cannot say."""
    release = platform.freedesktop_os_release()
    system = f"{release['ID']}-{release.get('VERSION_ID', 'unstable')}"
    asked = [
        "dpkg-query",
        "--show",
        "--showformat=${db:Status-Status}\\t${Package}\\t${Version}\\t${Architecture}\\n",
    ]
    lines = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.splitlines()
    found = []
    for line in lines:
        status, name, version, architecture = line.split("\t")
        if status == "installed":
            package = f"pkg:deb/{release['ID']}/{name}@{quote(version, safe='.+-~')}"
            purl = f"{package}?arch={architecture}&distro={system}"
            found.append(component("library", name, version, purl))
    return found


def sources(declared: dict[str, Any]) -> list[Component]:
    """What was built from source, by what the build checked out. Raises OSError when that is not recorded."""
    found = []
    for name, source in declared.items():
        built = (SHARE / f"{name}.commit").read_text(encoding="utf-8").strip()
        part = component("library", name, built, f"pkg:generic/{name}@{quote(built, safe=':')}")
        kind = "distribution" if built.startswith("sha256:") else "vcs"
        part["externalReferences"] = [{"type": kind, "url": source["url"]}]
        options = [*source.get("configure", []), *source.get("meson", [])]
        part["properties"] = [{"name": "io.splitrail.option", "value": option} for option in options]
        found.append(part)
    return found


def base(image: dict[str, Any]) -> Component:
    """The image, or the bootstrap, that this one stands on."""
    digest = image.get("ref", "").partition("@")[2]
    part: Component = {
        "type": "container",
        "bom-ref": "base-image",
        "name": image.get("ref") or "bootstrapped from APT",
    }
    if digest.startswith("sha256:"):
        part["hashes"] = [{"alg": "SHA-256", "content": digest.removeprefix("sha256:")}]
    return part


def document(provenance: dict[str, Any]) -> dict[str, Any]:
    """The whole bill; ``provenance`` has the release's name, base_image and sources."""
    version = platform.python_version()
    parts = [*wheels(), *debs(), *sources(provenance["sources"])]
    parts.append(component("platform", "cpython", version, f"pkg:generic/cpython@{version}"))
    parts.append(base(provenance["base_image"]))
    image = {
        "type": "container",
        "bom-ref": "image",
        "name": "splitrail/serving",
        "version": provenance["release"],
    }
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": image},
        "components": sorted(parts, key=lambda part: part["bom-ref"]),
    }


def main() -> None:
    """Write the bill beside this program."""
    provenance = json.loads((SHARE / "provenance.json").read_text(encoding="utf-8"))
    bill = document(provenance)
    (SHARE / "sbom.json").write_text(json.dumps(bill, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(f"{len(bill['components'])} components in {SHARE}/sbom.json\n")


if __name__ == "__main__":
    main()
