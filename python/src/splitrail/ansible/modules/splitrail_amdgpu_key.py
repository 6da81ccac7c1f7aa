#!/usr/bin/python
"""Trust a repository's key once its fingerprint is the declared one, and not before."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.splitrail_checks import check, unmade
from ansible.module_utils.splitrail_openpgp import Key, Unreadable, dearmoured, keys
from ansible.module_utils.urls import open_url

DOCUMENTATION = r"""
module: splitrail_amdgpu_key
short_description: Trust a repository's key once its fingerprint is the declared one
description:
  - Fetches the key into memory, in check mode too, and compares fingerprint, checksum and expiry with what is
    declared. Only a key that passes is written. A keyring that already holds it in force
    is left alone, and nothing is fetched.
options:
  url: {description: Where the key lies; the proxy is that of the environment., type: str, required: true}
  fingerprint: {description: All 40 digits of its fingerprint., type: str, required: true}
  sha256: {description: Checksum of the file; empty asks for none., type: str, default: ""}
  keyring: {description: Where APT shall find it., type: path, required: true}
  state: {description: Whether to write it., type: str, choices: [applied, measured], default: applied}
  timeout_s: {description: Longest wait for the server in seconds., type: int, default: 30}
author: The splitrail authors
"""

EXAMPLES = r"""
- splitrail_amdgpu_key:
    url: https://repo.radeon.com/rocm/rocm.gpg.key
    fingerprint: CA8BB4727A47B4D09B4EE8969386B48A1A693C5C
    keyring: /etc/apt/keyrings/splitrail-amdgpu.gpg
"""

RETURN = r"""
checks: {description: The findings., type: list, elements: dict, returned: always}
"""

Check = Any

NAME = "amdgpu_driver.key"
LARGEST = 1024 * 1024  # a keyring is some kilobytes; whatever is larger is no key


def fetch(url: str, timeout_s: int) -> bytes:
    """The file behind a URL. Raises OSError or ValueError."""
    with open_url(url, timeout=timeout_s) as answer:
        data: bytes = answer.read(LARGEST + 1)
        said = answer.headers.get("Content-Length")
    if said and int(said) != len(data) and len(data) <= LARGEST:
        raise OSError(f"half a download: {len(data)} of {said} bytes came")
    return data


def judge(data: bytes, want: dict[str, Any], now: float) -> Check:
    """Whether a file is the declared key and nothing else."""
    url, wanted = str(want["url"]), str(want["fingerprint"])
    try:
        found = keys(data)
    except Unreadable as error:
        hint = "Find out what answers at this address; fetch the key again."
        return unmade(NAME, url, f"{len(data)} bytes that are no key: {error}", wanted, hint=hint)
    names = ", ".join(sorted(key.fingerprint for key in found))
    if names != wanted:
        hint = (
            "Do not trust it before its owner has confirmed it by another way; then correct the release's "
            "fingerprint."
            if len(found) == 1
            else "APT would trust all of them: put the one key into a file of its own."
        )
        return check(NAME, url, False, names, wanted, hint=hint)
    if problem := unusable(found[0], now):
        hint = "Fetch the key that its owner has prolonged, or name the new one in the release."
        return check(NAME, url, False, f"{wanted}, {problem}", f"{wanted}, in force", hint=hint)
    digest = hashlib.sha256(data).hexdigest()
    if want["sha256"] and digest != want["sha256"]:
        hint = (
            "The fingerprint is right, so its owner has probably prolonged the key: look at it with `gpg "
            "--show-keys`, then write this checksum into the release."
        )
        return check(NAME, url, False, f"SHA-256 {digest}", f"SHA-256 {want['sha256']}", hint=hint)
    return check(NAME, url, True, wanted, wanted)


def unusable(key: Key, now: float) -> str:
    """Why APT would refuse what the key signs; empty when it would not."""
    if key.revoked:
        return "revoked"
    if key.expires and key.expires <= now:
        return "expired on " + time.strftime("%Y-%m-%d", time.gmtime(key.expires))
    return ""


def kept(keyring: Path, want: dict[str, Any], now: float) -> bool:
    """Whether the keyring holds the declared key alone, and it is in force."""
    try:
        found = keys(keyring.read_bytes())
    except (OSError, Unreadable):
        return False
    return [key.fingerprint for key in found] == [want["fingerprint"]] and not unusable(found[0], now)


def main() -> None:
    """Entry point of the module."""
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "required": True},
            "fingerprint": {"type": "str", "required": True, "no_log": False},
            "sha256": {"type": "str", "default": ""},
            "keyring": {"type": "path", "required": True, "no_log": False},
            "state": {"type": "str", "choices": ["applied", "measured"], "default": "applied"},
            "timeout_s": {"type": "int", "default": 30},
        },
        supports_check_mode=True,
    )
    want = module.params
    keyring = Path(want["keyring"])
    now = time.time()
    if kept(keyring, want, now):
        found = check(NAME, str(keyring), True, want["fingerprint"], want["fingerprint"])
        module.exit_json(changed=False, checks=[found])
    try:
        data = fetch(want["url"], want["timeout_s"])
        found = judge(data, want, now)
    except (OSError, ValueError) as error:
        hint = "See that the node reaches this address, through its proxy if it has one."
        found = unmade(NAME, want["url"], str(error), want["fingerprint"], hint=hint)
    changed = want["state"] == "applied"
    if changed and not found["ok"]:
        module.fail_json(msg=f"the key is not trusted: {found['measured']}. {found['hint']}", checks=[found])
    if changed and not module.check_mode:
        temporary = keyring.with_name(f".{keyring.name}.new")
        temporary.write_bytes(dearmoured(data))
        # APT's unprivileged user reads it.
        temporary.chmod(0o644)
        temporary.replace(keyring)
    module.exit_json(changed=changed, checks=[found])


if __name__ == "__main__":
    main()
