#!/usr/bin/python
"""Ask a served bundle, by its signed manifest, for all that a node is going to install."""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
import time
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.splitrail_checks import check, unmade
from ansible.module_utils.splitrail_openpgp import Unreadable, dearmoured, keys

DOCUMENTATION = r"""
module: splitrail_bundle
short_description: Ask a served bundle for all that a node is going to install
description:
  - Reads the bundle's manifest, checks its signature, and names all that is missing at once.
  - Changes nothing.
options:
  url:
    description: Where the bundle is served.
    type: str
    required: true
  key:
    description: The public key that is trusted, armoured.
    type: str
    required: true
  needs:
    description: What the node needs, as C(playbooks/tasks/bundle_needs.yml) lists it.
    type: dict
    default: {}
author: The splitrail authors
"""

RETURN = r"""
reached:
  description: Whether a manifest was read.
  returned: always
  type: bool
suite:
  description: Code name of the system that the packages are of; empty unless the signature is good.
  returned: always
  type: str
sources:
  description: Whether the bundle has git sources.
  returned: always
  type: bool
checks:
  description: The findings, for M(splitrail_verdict).
  returned: always
  type: list
  elements: dict
"""

AGAIN = "Make the bundle again where there is a network (`splitrail bundle create`), and serve that one."

Check = dict[str, Any]


def read(url: str) -> bytes:
    """A small file of the bundle. Raises OSError."""
    # No proxy from the environment: the bundle is on this cluster's own network.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=30) as response:
            content: bytes = response.read()
    except HTTPException as error:
        raise OSError(str(error)) from error
    return content


def signature(manifest: bytes, signed: bytes, key: str) -> list[Check]:
    """Whether the manifest is signed by the key, and the key still good."""
    name, subject, required = "bundle.signature", "manifest.json", "signed by the declared key"
    hint = "Find out who changed the bundle, or declare the key that it was made with (bundle_key)."
    try:
        packets = dearmoured(key.encode())
        known = keys(packets)
    except Unreadable as error:
        return [
            unmade(
                name,
                subject,
                f"the declared key: {error}",
                required,
                hint="Declare the public key (bundle_key).",
            )
        ]
    for one in known:
        if one.expires and one.expires < time.time():
            day = time.strftime("%Y-%m-%d", time.gmtime(one.expires))
            return [check(name, subject, False, f"the declared key expired on {day}", required, hint=AGAIN)]
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / file for file in ("key.gpg", "manifest.json.sig", "manifest.json")]
        for path, content in zip(paths, (packets, signed, manifest), strict=True):
            path.write_bytes(content)
        try:
            done = subprocess.run(
                ["gpgv", "--status-fd", "1", "--keyring", *map(str, paths)],
                capture_output=True,
                text=True,
                timeout=30,
                check=False,
            )
        except (OSError, subprocess.SubprocessError) as error:
            return [unmade(name, subject, f"gpgv: {error}", required, hint="Install gpgv on this node.")]
    if done.returncode == 0 and "GOODSIG" in done.stdout and "EXPKEYSIG" not in done.stdout:
        return [check(name, subject, True, f"good, by {known[0].fingerprint}", required, hint=hint)]
    lines = [line.removeprefix("gpgv:").strip() for line in done.stderr.splitlines()]
    said = "; ".join(line for line in lines if not line.startswith(("Signature made", "using ")))
    return [check(name, subject, False, said or "not good", required, hint=hint)]


def normalized(name: str) -> str:
    """A Python project's name as indexes spell it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def compare(needs: dict[str, Any], manifest: dict[str, Any]) -> list[Check]:
    """A finding for each thing that the node needs and the bundle lacks, one for a kind that is complete."""
    have: dict[str, set[str]] = {}
    for one in manifest["artifacts"]:
        found = have.setdefault(one["kind"], set())
        found.add(one["name"])
        if one["kind"] == "wheel":
            found.add(f"{one['name']}=={one['version']}")
        if one["kind"] == "git":
            found.add(f"{one['name']}@{one['version']}")
    wheels = [wheel.partition("==") for wheel in needs.get("wheels", [])]
    sources = needs.get("sources", {}).values()
    wanted = {
        ("deb", "package"): [*needs.get("packages", []), *needs.get("base_packages", [])],
        ("wheel", "wheel"): [f"{normalized(name)}=={version}" for name, _, version in wheels],
        ("git", "source"): [f"{one['url']}@{one['commit']}" for one in sources if one.get("commit")],
        ("image", "image"): [needs["base_image"]] if needs.get("base_image") else [],
        ("model", "model"): [needs["model"].rpartition("/")[2]] if needs.get("model") else [],
    }
    checks = []
    for (kind, name), names in wanted.items():
        there = have.get(kind, set())
        missing = [one for one in sorted(set(names)) if not _there(one, there, short=kind == "git")]
        checks += [
            check(f"bundle.{name}", one, False, "missing", "in the bundle", hint=AGAIN) for one in missing
        ]
        if names and not missing:
            checks.append(check(f"bundle.{name}", f"all {len(set(names))}", True, "there", "there"))
    return checks


def _there(name: str, there: set[str], *, short: bool) -> bool:
    """A release may name a commit by its first digits; the bundle names all of them."""
    return name in there or (short and any(one.startswith(name) for one in there))


def examine(url: str, key: str, needs: dict[str, Any]) -> tuple[dict[str, Any], list[Check]]:
    """What RETURN says of the bundle, and the findings."""
    none = {"reached": False, "suite": "", "sources": False}
    hint = "See that it is served (`systemctl status splitrail-bundle` on the head) and correct bundle_url."
    try:
        raw, signed = read(f"{url}/manifest.json"), read(f"{url}/manifest.json.sig")
        manifest: dict[str, Any] = json.loads(raw)
        of, digest, suite = manifest["release"], manifest["release_sha256"], str(manifest["suite"])
    except OSError as error:
        return none, [unmade("bundle.served", url, str(error), "a manifest", hint=hint)]
    except (ValueError, KeyError, TypeError) as error:
        why = f"no manifest of a bundle: {error!r}"
        return {**none, "reached": True}, [unmade("bundle.served", url, why, "a manifest", hint=hint)]
    checks = [check("bundle.served", url, True, "served", "served"), *signature(raw, signed, key)]
    if not checks[-1]["ok"]:
        # What it says is not worth comparing.
        return {**none, "reached": True}, checks
    if needs:
        same = (of, digest) == (needs.get("release"), needs.get("release_sha256"))
        other = (
            f"another release of that name: the file was changed since ({digest[:12]})"
            if of == needs.get("release")
            else of
        )
        checks.append(
            check(
                "bundle.release",
                "manifest.json",
                same,
                of if same else other,
                needs.get("release"),
                hint=AGAIN,
            )
        )
        checks += compare(needs, manifest)
    sources = any(one["kind"] == "git" for one in manifest["artifacts"])
    return {"reached": True, "suite": suite, "sources": sources}, checks


def main() -> None:
    """Examine the bundle that Ansible named."""
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "required": True},
            "key": {"type": "str", "required": True, "no_log": False},
            "needs": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    about, checks = examine(module.params["url"].rstrip("/"), module.params["key"], module.params["needs"])
    module.exit_json(changed=False, checks=checks, **about)


if __name__ == "__main__":
    main()
