#!/usr/bin/python
"""Have every replica of what was deployed last answer real requests before it counts as ready."""

from __future__ import annotations

import json
import random
import re
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.splitrail_checks import check, unmade
from ansible.module_utils.splitrail_ray import Head, RayError
from ansible.module_utils.splitrail_serve import API, DEPLOYMENTS, engines, read, slot_of

DOCUMENTATION = r"""
module: splitrail_warm
short_description: Have every replica of what was deployed last answer real requests
description:
  - Looks at the application that C(last_good) names last, which is the canary where one runs, else the live
    one. Sends it completions of a few tokens, each prompt another, until every running replica has handled
    one. An engine's own count of finished requests says so, of other replicas Serve's.
  - Replicas that have are not asked again, so a second call sends nothing and reports no change. In check
    mode it sends nothing and tells whether it would.
options:
  url: {description: Ray's dashboard on the head., type: str, required: true}
  token_path: {description: File with Ray's token., type: path, required: true}
  last_good: {description: File that holds the config that runs., type: path, required: true}
  serve_url: {description: "Serve's own address, past which no traffic of others goes.", type: str,
              required: true}
  metrics_port: {description: Port on which every Ray node exports its metrics., type: int, required: true}
  prompt_words: {description: "Length of a prompt, in words.", type: int, default: 64}
  timeout_s: {description: "Longest time that all of it may take, in seconds.", type: float, default: 300}
author: The splitrail authors
"""

EXAMPLES = r"""
- splitrail_warm:
    url: http://10.0.0.11:8265
    token_path: /etc/ray/token
    last_good: /etc/splitrail/serve/current.yaml
    serve_url: http://127.0.0.1:8001
    metrics_port: 8080
"""

RETURN = r"""
checks: {description: "The findings, for M(splitrail_verdict).", type: list, elements: dict,
         returned: when not in check mode}
sent: {description: Requests that were sent., type: int, returned: always}
slowest_s: {description: "The longest of their answers, in seconds.", type: float, returned: always}
seconds: {description: How long all of it took., type: float, returned: always}
"""

Check = dict[str, Any]
Json = dict[str, Any]
# What Serve counts for each replica, and what each engine counts itself: health checks are requests to Serve.
SERVED = re.compile(
    r"^ray_(serve_deployment_request_counter|vllm_request_success)(?:_total)?\{(.*)\} (\S+)", re.MULTILINE
)
ENGINES = tuple(DEPLOYMENTS.values())
LABEL = re.compile(r'(\w+)="([^"]*)"')
# Ray's exporters tell what was counted up to 10 s later, so a further round before that could be for nothing.
ROUND_S = 12.0
PAUSE_S = 1.0
# Longest wait for one answer; a request that hangs must not keep the others from being tried again.
ANSWER_S = 120.0
AT_ONCE = 64
TOKENS = 8
NAME = "serve.warm"
REQUIRED = "every replica has answered"
HINT = (
    "Read the replica's log in Ray's dashboard, then deploy again or go back (`splitrail rollback`, "
    "`splitrail canary abort`); raise llm_serve_warm_s where first requests only need longer."
)


@dataclass(frozen=True)
class Replica:
    """One running replica: where it is, whose it is, and whether it is an engine."""

    deployment: str
    address: str
    engine: bool


def running(answer: Json, application: str) -> dict[str, Replica]:
    """The running replicas of an application by their ids. Raises RayError: the application is not there."""
    try:
        deployments = answer["applications"][application]["deployments"]
        return {
            str(one["replica_id"]): Replica(name, str(one["node_ip"]), name.startswith(ENGINES))
            for name, deployment in deployments.items()
            for one in deployment["replicas"]
            if one["state"] == "RUNNING"
        }
    except KeyError as error:
        raise RayError(f"Serve tells nothing of {application}: {error} is missing") from error


def served(text: str) -> set[tuple[bool, str]]:
    """Who has handled a request, by a node's metrics: whether an engine says so itself, and the replica."""
    found = set()
    for metric, labels, value in SERVED.findall(text):
        tags = dict(LABEL.findall(labels))
        engine = metric.startswith("vllm")
        if float(value) > 0:
            found.add((engine, tags.get("ReplicaId" if engine else "replica", "")))
    return found


def cold(replicas: Mapping[str, Replica], warm: set[tuple[bool, str]]) -> list[str]:
    """Ids of replicas that have handled nothing. A metric's id may be the last part of Serve's."""
    return sorted(
        name
        for name, one in replicas.items()
        if not {(one.engine, name), (one.engine, name.rpartition("#")[2])} & warm
    )


def opener() -> urllib.request.OpenerDirector:
    """Without a proxy: all of it is in our own network, whatever the environment says."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({}))


def get(url: str) -> str:
    """A page of metrics. Raises OSError, HTTPException."""
    with opener().open(url, timeout=10) as answer:
        return str(answer.read().decode(errors="replace"))


def ask(endpoint: str, model: str, words: int, timeout_s: float) -> float:
    """One completion; its seconds. Raises OSError, HTTPException."""
    # Another prompt each time: one that a prefix cache knows would spare the engine what is to be warmed.
    prompt = " ".join(str(random.randrange(10**6)) for _ in range(words))  # noqa: S311  no secret
    body = {"model": model, "prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
    request = urllib.request.Request(  # noqa: S310  the role's own address, always http
        f"{endpoint}/v1/completions",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    began = time.monotonic()
    with opener().open(request, timeout=timeout_s) as answer:
        answer.read()
    return time.monotonic() - began


class Warmth:
    """Sends requests to an application until all its replicas are warm, or the time is over."""

    def __init__(self, head: Head, app: Json, want: Json) -> None:
        self._head, self._want = head, want
        self.application = str(app["name"])
        self._endpoint = f"{want['serve_url']}/{slot_of(app)}"
        self._model = str(engines(app)[0][1]["model_loading_config"]["model_id"])
        self.seconds: list[float] = []
        self.sent = 0
        self.error = ""
        self.replicas: dict[str, Replica] = {}

    def cold(self) -> list[str]:
        """Replicas that have handled nothing yet. Raises RayError, OSError, HTTPException."""
        self.replicas = running(self._head.request("GET", API), self.application)
        warm: set[tuple[bool, str]] = set()
        for address in sorted({one.address for one in self.replicas.values()}):
            host = f"[{address}]" if ":" in address else address
            warm |= served(get(f"http://{host}:{self._want['metrics_port']}/metrics"))
        return cold(self.replicas, warm)

    def send(self, until: float) -> None:
        """A round: enough at once that a router which evens out load has something for everybody."""

        def one(_: int) -> None:
            try:
                left = max(1.0, min(ANSWER_S, until - time.monotonic()))
                self.seconds.append(ask(self._endpoint, self._model, self._want["prompt_words"], left))
            except (OSError, HTTPException) as error:
                self.error = str(error)

        count = 2 * len(self.replicas)
        self.sent += count
        with ThreadPoolExecutor(min(count, AT_ONCE)) as pool:
            list(pool.map(one, range(count)))

    def reach(self) -> list[str] | None:
        """What is still cold in the end; None where that could not be found out, and ``error`` says why."""
        until = time.monotonic() + self._want["timeout_s"]
        again = 0.0
        while True:
            left: list[str] | None = None
            try:
                left = self.cold()
            except (RayError, OSError, HTTPException) as error:
                # A node's exporter may be behind its engines.
                self.error = str(error)
            now = time.monotonic()
            if (left == [] and self.replicas) or now >= until:
                return left
            if left and now >= again:
                self.send(until)
                again = time.monotonic() + ROUND_S
            time.sleep(PAUSE_S)

    def finding(self, left: list[str] | None) -> Check:
        """What it comes to; an application without replicas was not looked at."""
        if left is None or not self.replicas:
            why = self.error if left is None else "no replica runs"
            none: Check = unmade(NAME, self.application, why, REQUIRED, hint=HINT)
            return none
        total = len(self.replicas)
        measured = f"{total - len(left)} of {total} replicas have answered"
        if left:
            names = ", ".join(f"{self.replicas[one].deployment} {one}" for one in left)
            measured += f"; not {names}" + (f"; the last error: {self.error}" if self.error else "")
        made: Check = check(NAME, self.application, not left, measured, REQUIRED, hint=HINT)
        return made


def predicted(warmth: Warmth | None) -> bool:
    """In check mode: whether requests would be sent. What is not deployed yet cannot be asked."""
    try:
        return bool(warmth and warmth.cold())
    except (RayError, OSError, HTTPException):
        return False


def main() -> None:
    """Warm what is cold."""
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "required": True},
            "token_path": {"type": "path", "required": True, "no_log": False},
            "last_good": {"type": "path", "required": True},
            "serve_url": {"type": "str", "required": True},
            "metrics_port": {"type": "int", "required": True},
            "prompt_words": {"type": "int", "default": 64},
            "timeout_s": {"type": "float", "default": 300},
        },
        supports_check_mode=True,
    )
    want, began = module.params, time.monotonic()
    config = read(Path(want["last_good"]))
    apps = (config or {}).get("applications") or []
    warmth = Warmth(Head(want["url"], want["token_path"]), apps[-1], want) if apps else None
    if module.check_mode:
        module.exit_json(changed=predicted(warmth), sent=0, slowest_s=0.0, seconds=0.0)
    if warmth is None:
        module.fail_json(msg=f"{want['last_good']}: nothing is served yet; run `splitrail serve` first")
    else:
        checks = [warmth.finding(warmth.reach())]
        module.exit_json(
            changed=warmth.sent > 0,
            checks=checks,
            sent=warmth.sent,
            slowest_s=round(max(warmth.seconds, default=0.0), 2),
            seconds=round(time.monotonic() - began, 1),
        )


if __name__ == "__main__":
    main()
