#!/usr/bin/python
"""Prove that the public entrance lets in who has a key, and nobody else."""

from __future__ import annotations

import json
import ssl
import time
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.splitrail_checks import check, unmade

DOCUMENTATION = r"""
module: splitrail_ingress_check
short_description: Prove that the public entrance lets in who has a key, and nobody else
description:
  - Asks for the list of models without a key and with one, asks whether Serve is well, and looks on which
    addresses Serve's port listens. Changes nothing.
options:
  url: {description: "The entrance, C(http[s]://address:port).", type: str, required: true}
  api_key: {description: A key; empty where none is asked for., type: str, required: true}
  serve_address: {description: Where Serve's proxy should listen alone., type: str, required: true}
  serve_port: {description: Port of Serve's proxy., type: int, required: true}
  timeout_s: {description: How long to wait for an answer of the application., type: float, default: 60}
author: The splitrail authors
"""

EXAMPLES = r"""
- splitrail_ingress_check:
    url: http://10.0.0.11:8000
    api_key: "{{ key }}"
    serve_address: 127.0.0.1
    serve_port: 8001
"""

RETURN = r"""
checks: {description: "The findings, for M(splitrail_verdict).", type: list, elements: dict, returned: always}
seconds: {description: How long it took., type: float, returned: always}
"""

Check = dict[str, Any]
UNAUTHORIZED, GOOD = 401, 200
LISTENS = "0A"  # the state of a listening socket in /proc/net/tcp
HINT = "Read `journalctl -u haproxy`, and whether something runs: `splitrail status`."


class Entrance:
    """The entrance as a client sees it, but for the name in its certificate: this asks by address."""

    def __init__(self, url: str) -> None:
        self.url = url
        own = ssl.create_default_context()
        own.check_hostname, own.verify_mode = False, ssl.CERT_NONE
        self._opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=own)
        )

    def get(self, path: str, key: str = "") -> tuple[int, str]:
        """Status and body of an answer. Raises OSError when there is none."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        request = urllib.request.Request(self.url + path, headers=headers)  # noqa: S310  ours, http or https
        try:
            with self._opener.open(request, timeout=30) as answer:
                return answer.status, answer.read(100_000).decode(errors="replace")
        except urllib.error.HTTPError as error:
            return error.code, error.read(2000).decode(errors="replace")
        except HTTPException as error:
            raise OSError(str(error)) from error


def said(status: int, body: str) -> str:
    """An answer in a few words: its status, and what an error says."""
    try:
        return f"{status} {json.loads(body)['error']['message']}"
    except (KeyError, TypeError, ValueError):
        return str(status)


def key_checks(entrance: Entrance, key: str) -> list[Check]:
    """Whether a request without a key, and one with a wrong one, is refused as OpenAI's clients expect."""
    found = []
    wanted = f"{UNAUTHORIZED} with an error in JSON" if key else str(GOOD)
    for subject, given in (("no API key", ""), ("a wrong API key", "0" * 64)):
        status, body = entrance.get("/v1/models", given)
        good = status == UNAUTHORIZED and said(status, body) != str(status) if key else status == GOOD
        hint = "Set ingress_api_keys and run the serve playbook." if status == GOOD else HINT
        found.append(check("ingress.key", subject, good, said(status, body), wanted, hint=hint))
    return found


def answer_checks(entrance: Entrance, key: str, timeout_s: float) -> list[Check]:
    """Whether a request with a key gets an answer, and anybody is told that Serve is well."""
    deadline = time.monotonic() + timeout_s
    found = []
    for name, path, given in (("models", "/v1/models", key), ("health", "/health", "")):
        while True:
            status, body = entrance.get(path, given)
            if status == GOOD or time.monotonic() > deadline:
                break
            time.sleep(0.5)  # a proxy learns of a new application a moment after it runs
        found.append(check(f"ingress.{name}", path, status == GOOD, said(status, body), str(GOOD), hint=HINT))
    return found


def listening(port: int, proc: Path = Path("/proc/net")) -> list[str]:
    """Addresses on which a TCP port listens, as the kernel writes them: in hexadecimal, words reversed."""
    found = set()
    for name in ("tcp", "tcp6"):
        file = proc / name
        for line in file.read_text(encoding="ascii").splitlines()[1:] if file.exists() else []:
            words = line.split()
            address, _, number = words[1].partition(":")
            if words[3] == LISTENS and int(number, 16) == port:
                found.add(address)
    return sorted(found)


def loopback_check(port: int, proc: Path = Path("/proc/net")) -> Check:
    """Whether Serve, which knows no keys, listens on loopback alone."""
    loopback = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}
    found = listening(port, proc)
    words = {**dict.fromkeys(loopback, "loopback"), "0" * 8: "every address", "0" * 32: "every address"}
    finding: Check = check(
        "ingress.serve_is_private",
        f"Serve's port {port}",
        bool(found) and set(found) <= loopback,
        ", ".join(sorted({words.get(one, one) for one in found})) or "listens nowhere",
        "loopback",
        hint="Set llm_serve_host to 127.0.0.1, then `splitrail down` and bring it all up again.",
    )
    return finding


def main() -> None:
    """Entry point of the module."""
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "required": True},
            "api_key": {"type": "str", "required": True, "no_log": True},
            "serve_address": {"type": "str", "required": True},
            "serve_port": {"type": "int", "required": True},
            "timeout_s": {"type": "float", "default": 60},
        },
        supports_check_mode=True,
    )
    given, started = module.params, time.monotonic()
    entrance = Entrance(given["url"])
    try:
        checks = answer_checks(entrance, given["api_key"], given["timeout_s"])
        checks += key_checks(entrance, given["api_key"])
    except OSError as error:
        checks = [unmade("ingress.answers", given["url"], str(error), "an answer", hint=HINT)]
    if given["serve_address"].startswith("127."):
        checks.append(loopback_check(given["serve_port"]))
    module.exit_json(changed=False, checks=checks, seconds=round(time.monotonic() - started, 1))


if __name__ == "__main__":
    main()
