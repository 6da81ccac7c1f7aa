#!/usr/bin/python
"""Have every replica of an application answer real requests before others send theirs."""

from __future__ import annotations

import json
import random
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.splitrail_checks import check, unmade
from ansible.module_utils.splitrail_ray import Head, RayError

DOCUMENTATION = r"""
module: splitrail_warm
short_description: Have every replica of an application answer real requests
description:
  - Sends completions of a few tokens, each prompt another, until Serve's own counters say of every running
    replica that it has handled one. Replicas that have are not asked again, so a second call sends nothing.
  - Changes nothing on the node; in check mode it sends nothing and makes no finding.
options:
  url:
    description: Ray's dashboard on the head.
    type: str
    required: true
  token_path:
    description: File with Ray's token.
    type: path
    required: true
  application:
    description: Name of the Serve application.
    type: str
    required: true
  endpoint:
    description: The application's own address, past which no traffic of others goes.
    type: str
    required: true
  model:
    description: The model's name in requests.
    type: str
    required: true
  metrics_port:
    description: Port on which every Ray node exports its metrics.
    type: int
    required: true
  prompt_words:
    description: Length of a prompt, in words.
    type: int
    default: 64
  timeout_s:
    description: Longest time that all of it may take, in seconds.
    type: float
    default: 300
author: The splitrail authors
"""

RETURN = r"""
checks:
  description: The findings, for M(splitrail_verdict).
  returned: when not in check mode
  type: list
  elements: dict
requests:
  description: Requests that were sent, and the seconds of the slowest and the fastest.
  returned: when not in check mode
  type: dict
"""

Check = dict[str, Any]
COUNTER = re.compile(r"^ray_serve_deployment_request_counter(?:_total)?\{(.*)\} (\S+)", re.MULTILINE)
LABEL = re.compile(r'(\w+)="([^"]*)"')
# Ray's exporters tell what was counted some seconds later.
PAUSE_S = 3.0
TOKENS = 8
NAME = "serve.warm"
HINT = "Read the replica's log (`ray logs` in the container, or the dashboard), then deploy again."


def running(applications: dict[str, Any], application: str) -> dict[str, str]:
    """Node address of each running replica, by its id. Raises RayError: the application is not there."""
    try:
        deployments = applications["applications"][application]["deployments"].values()
        return {
            str(replica["replica_id"]): str(replica["node_ip"])
            for deployment in deployments
            for replica in deployment["replicas"]
            if replica["state"] == "RUNNING"
        }
    except KeyError as error:
        raise RayError(f"Serve tells nothing of {application}: {error} is missing") from error


def handled(text: str, application: str) -> set[str]:
    """Replicas of the application that have handled a request, by a node's metrics."""
    found = set()
    for labels, value in COUNTER.findall(text):
        tags = dict(LABEL.findall(labels))
        if tags.get("application") == application and float(value) > 0:
            found.add(tags.get("replica", ""))
    return found


def cold(replicas: Iterable[str], warm: set[str]) -> list[str]:
    """Replicas of which no counter tells. A metric's id may be the last part of Serve's."""
    return sorted(each for each in replicas if each not in warm and each.rpartition("#")[2] not in warm)


def get(url: str) -> str:
    """A page of metrics. Raises OSError."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=10) as answer:
        return str(answer.read().decode(errors="replace"))


def ask(endpoint: str, model: str, words: int) -> float:
    """One completion; its seconds. Raises OSError, HTTPException."""
    # Another prompt each time: one that a prefix cache knows would spare the engine what is to be warmed.
    prompt = " ".join(str(random.randrange(10**6)) for _ in range(words))  # noqa: S311  no secret
    body = {"model": model, "prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
    request = urllib.request.Request(  # noqa: S310  the role's own address, always http
        f"{endpoint}/v1/completions",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    began = time.monotonic()
    with opener.open(request, timeout=120) as answer:
        answer.read()
    return time.monotonic() - began


class Warmth:
    """Sends requests until all replicas are warm, or the time is over."""

    def __init__(self, head: Head, want: dict[str, Any]) -> None:
        self._head, self._want = head, want
        self.seconds: list[float] = []
        self.error = ""
        self.total = 0

    def cold(self) -> list[str]:
        """Replicas that have handled nothing yet. Raises RayError, OSError."""
        application = self._want["application"]
        replicas = running(self._head.request("GET", "/api/serve/applications/"), application)
        self.total = len(replicas)
        warm: set[str] = set()
        for address in sorted(set(replicas.values())):
            host = f"[{address}]" if ":" in address else address
            warm |= handled(get(f"http://{host}:{self._want['metrics_port']}/metrics"), application)
        return cold(replicas, warm)

    def send(self) -> None:
        """A round: enough at once that a router which evens out load has something for everybody."""

        def one(_: int) -> None:
            try:
                self.seconds.append(
                    ask(self._want["endpoint"], self._want["model"], self._want["prompt_words"])
                )
            except (OSError, HTTPException) as error:
                self.error = str(error)

        with ThreadPoolExecutor(2 * self.total) as pool:
            list(pool.map(one, range(2 * self.total)))

    def reach(self) -> list[str]:
        """What is still cold in the end. Raises RayError, OSError."""
        until = time.monotonic() + self._want["timeout_s"]
        left = self.cold()
        while left and time.monotonic() < until:
            self.send()
            time.sleep(PAUSE_S)
            left = self.cold()
        return left


def finding(application: str, left: list[str], total: int, error: str) -> Check:
    """What it comes to; an application without replicas was not looked at."""
    if not total:
        none: Check = unmade(NAME, application, "no replica runs", "every replica has answered", hint=HINT)
        return none
    measured = f"{total - len(left)} of {total} replicas have answered"
    if left:
        measured += f"; not {', '.join(left)}" + (f"; the last error: {error}" if error else "")
    made: Check = check(NAME, application, not left, measured, "every replica has answered", hint=HINT)
    return made


def main() -> None:
    """Warm what is cold."""
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "required": True},
            "token_path": {"type": "path", "required": True},
            "application": {"type": "str", "required": True},
            "endpoint": {"type": "str", "required": True},
            "model": {"type": "str", "required": True},
            "metrics_port": {"type": "int", "required": True},
            "prompt_words": {"type": "int", "default": 64},
            "timeout_s": {"type": "float", "default": 300},
        },
        supports_check_mode=True,
    )
    if module.check_mode:
        module.exit_json(changed=False, skipped=True)
    want = module.params
    warmth = Warmth(Head(want["url"], want["token_path"]), want)
    try:
        left = warmth.reach()
        checks = [finding(want["application"], left, warmth.total, warmth.error)]
    except (RayError, OSError) as error:
        checks = [
            unmade(NAME, want["application"], str(error), "every replica has answered", hint=HINT),
        ]
    said = {
        "sent": len(warmth.seconds),
        "slowest_s": round(max(warmth.seconds, default=0.0), 2),
        "fastest_s": round(min(warmth.seconds, default=0.0), 2),
    }
    module.exit_json(changed=False, checks=checks, requests=said)


if __name__ == "__main__":
    main()
