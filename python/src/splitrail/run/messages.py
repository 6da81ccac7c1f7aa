"""What is said of a failed task: its message without secrets, and the cure where one is known."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "hidden: the task sets no_log"
_LONGEST = 4000  # characters; a message beyond it is a dump that nobody reads in a record

# The second line of defence. The first is no_log on the task: a secret that looks like a plain word passes.
_SECRETS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.S), "***"),
    (
        re.compile(
            r"(?i)\b(authorization\\?[\"']?\s*[:=]\s*\\?[\"']?\s*)(?:(?:basic|bearer|token)\s+)?[^\s\"'\\]+"
        ),
        r"\1***",
    ),
    (re.compile(r"(?i)\b(bearer\s+)[\w.~+/=-]{6,}"), r"\1***"),
    (
        re.compile(
            r"(?i)((?:password|passwd|passphrase|secret|token|api[_-]?key|access[_-]?key|private[_-]?key)"
            r"\\?[\"']?\s*[:=]\s*\\?[\"']?)[^\s\"',;&\\]+"
        ),
        r"\1***",
    ),
    (re.compile(r"(\w://[^\s/:@]*:)[^\s/@]+(?=@)"), r"\1***"),
    (re.compile(r"\b(?:hf_|gh[pousr]_|github_pat_|glpat-|sk-)[\w-]{12,}"), "***"),
    (re.compile(r"\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"), "***"),
)

# What SSH and Ansible themselves say. A check brings its own hint, and may quote a service in like words.
_CURES: tuple[tuple[re.Pattern[str], str], ...] = (
    (
        re.compile(r"Host key verification failed|REMOTE HOST IDENTIFICATION HAS CHANGED"),
        "Compare the host's key with the one at its console, then put it into known_hosts "
        "(ssh-keygen -R HOST removes an old one).",
    ),
    (
        re.compile(r"Permission denied \((?:publickey|password|keyboard|gssapi)"),
        "Put the controller's public key into the node user's authorized_keys, or set ansible_user and "
        "ansible_ssh_private_key_file in the inventory.",
    ),
    (
        re.compile(r"(?i)missing sudo password|a password is required|is not in the sudoers"),
        "Give the node user password-less sudo.",
    ),
    (
        re.compile(r"(?i)could not resolve hostname|name or service not known"),
        "Set ansible_host to the host's address in the inventory, or repair name resolution.",
    ),
    (
        re.compile(r"(?i)connect to host .*: connection refused"),
        "Start sshd on the host, or correct ansible_host and ansible_port in the inventory.",
    ),
    (
        re.compile(r"(?i)connect to host .*: (?:connection timed out|no route to host|operation timed out)"),
        "Power the host on and check its management network and firewall.",
    ),
    (
        re.compile(r"(?i)no space left on device"),
        "Free space on the file system that the message names, then resume.",
    ),
    (
        re.compile(r"(?i)python3?: (?:command )?not found|interpreter.*not found"),
        "Install python3 on the host.",
    ),
)


def scrub(text: str) -> str:
    """The text with everything that looks like a secret replaced by ``***``."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def failure_message(result: Mapping[str, Any], no_log: bool = False) -> str:
    """Why a task failed, from its result: messages and the end of stderr, never arguments, items or results.

    A result that Ansible censored, or any when ``no_log`` is set, gives only the fact that it is hidden.
    """
    if no_log or "censored" in result or result.get("_ansible_no_log"):
        return HIDDEN
    parts = [_one_message(result)]
    for item in result.get("results") or ():
        if isinstance(item, Mapping) and (item.get("failed") or item.get("unreachable")):
            parts.append(failure_message(item))
    # A loop over 500 items that all fail alike says so once.
    text = scrub("\n".join(dict.fromkeys(part for part in parts if part)))
    return text if len(text) <= _LONGEST else text[:_LONGEST] + " ... (cut)"


def cure(message: str) -> str | None:
    """One imperative sentence for a failure whose cause is known, or None."""
    return next((hint for pattern, hint in _CURES if pattern.search(message)), None)


def _one_message(result: Mapping[str, Any]) -> str:
    text = str(result.get("msg") or result.get("reason") or "").strip() or "failed without a message"
    stderr = str(result.get("stderr") or result.get("module_stderr") or "").strip()
    if stderr and stderr not in text:
        text += "\n" + "\n".join(stderr.splitlines()[-5:])
    return text
