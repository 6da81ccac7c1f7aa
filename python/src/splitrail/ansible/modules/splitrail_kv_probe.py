#!/usr/bin/python
"""Send prompts that no engine has seen, so that their KV caches move from prefill to decode."""

from __future__ import annotations

import json
import random
import time
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.splitrail_ray import Head, RayError

DOCUMENTATION = r"""
module: splitrail_kv_probe
short_description: Make KV caches move
description:
  - Sends prompts of random tokens to every Serve application that runs, past the public entrance, one after
    another, and asks for two tokens each. Changes nothing but the engines' counters.
options:
  dashboard_url: {description: Ray's dashboard on the head., type: str, required: true}
  token_path: {description: File with Ray's token., type: path, default: /etc/ray/token}
  url: {description: Where Serve listens., type: str, required: true}
  model: {description: The model's name at the endpoint., type: str, required: true}
  tokens: {description: Length of a prompt., type: int, required: true}
  count: {description: Prompts for each application., type: int, default: 3}
  timeout_s: {description: Longest wait for an answer in seconds., type: float, default: 120}
author: The splitrail authors
"""

EXAMPLES = r"""
- splitrail_kv_probe:
    dashboard_url: http://10.0.0.11:8265
    url: http://127.0.0.1:8001
    model: qwen3
    tokens: 16000
"""

RETURN = r"""
sent: {description: Prompts that were answered., type: int, returned: success}
seconds: {description: Time that each took., type: list, elements: float, returned: success}
"""

# Byte tokens and their neighbours, which every vocabulary has.
TOKENS = (10, 250)


class ProbeError(Exception):
    """A prompt was not answered; the message says by whom and why."""


def routes(applications: dict[str, Any]) -> list[str]:
    """The route of each application that runs, without a slash at its end."""
    return sorted(
        str(one["route_prefix"]).rstrip("/")
        for one in applications.values()
        if one["status"] == "RUNNING" and one.get("route_prefix") is not None
    )


def send(url: str, model: str, tokens: int, timeout_s: float) -> float:
    """Send one prompt and return the seconds until its answer. Raises ProbeError."""
    draw = random.SystemRandom()
    body = {
        "model": model,
        "prompt": [draw.randint(*TOKENS) for _ in range(tokens)],
        # Two: a single token may be made by the prefill engine.
        "max_tokens": 2,
        "temperature": 0,
        "ignore_eos": True,
    }
    request = urllib.request.Request(  # noqa: S310  the URL is the playbook's, always http
        f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    began = time.monotonic()
    try:
        with opener.open(request, timeout=timeout_s) as answer:
            answer.read()
    except urllib.error.HTTPError as error:
        said = error.read().decode(errors="replace")[-500:]
        raise ProbeError(f"{url} answered {error.code} to a prompt of {tokens} tokens: {said}") from error
    except (OSError, HTTPException) as error:
        raise ProbeError(f"{url} did not answer a prompt of {tokens} tokens: {error}") from error
    return time.monotonic() - began


def main() -> None:
    """Entry point of the module."""
    module = AnsibleModule(
        argument_spec={
            "dashboard_url": {"type": "str", "required": True},
            "token_path": {"type": "path", "default": "/etc/ray/token", "no_log": False},
            "url": {"type": "str", "required": True},
            "model": {"type": "str", "required": True},
            "tokens": {"type": "int", "required": True, "no_log": False},
            "count": {"type": "int", "default": 3},
            "timeout_s": {"type": "float", "default": 120.0},
        },
        supports_check_mode=True,
    )
    asked = module.params
    if module.check_mode:
        module.exit_json(changed=False, sent=0, seconds=[])
    try:
        head = Head(asked["dashboard_url"], asked["token_path"])
        found = routes(head.request("GET", "/api/serve/applications/")["applications"])
        seconds = [
            round(send(asked["url"] + route, asked["model"], asked["tokens"], asked["timeout_s"]), 3)
            for route in found
            for _ in range(asked["count"])
        ]
    except (RayError, ProbeError) as error:
        module.fail_json(msg=f"{error}. Run the smoke playbook: it says what is wrong with the answers.")
    module.exit_json(changed=False, sent=len(seconds), seconds=seconds)


if __name__ == "__main__":
    main()
