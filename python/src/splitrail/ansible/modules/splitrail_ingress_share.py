#!/usr/bin/python
"""Choose which share of the requests each slot gets, or let them wait, and tell what each slot answered."""

from __future__ import annotations

import csv
import io
import math
import os
import re
import socket
import time
from pathlib import Path
from typing import Any, NamedTuple

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: splitrail_ingress_share
short_description: Choose the slots' shares of the requests, or let them wait
description:
  - Changes the share in HAProxy's memory through its socket, for the next request, and in the map that it
    reads when it starts. Nothing is reloaded, and requests under way stay where they are.
  - Requests that come while what serves is exchanged can be let wait at the entrance, up to a time, instead
    of failing.
  - Tells what each slot has answered, by the last requests that HAProxy remembers. Exact in check mode.
options:
  share_b: {description: Percentage of the requests for slot b; without it none changes., type: int}
  hold_s: {description: "Let requests that come wait at the entrance, this many seconds at most; 0 lets all
           in. Without it nothing changes.", type: int}
  drained: {description: Slots to wait for until they have no request left., type: list, elements: str,
            choices: [a, b], default: []}
  timeout_s: {description: Longest wait for that., type: float, default: 600}
  since: {description: "Only requests of this time or later count, in seconds since the epoch.", type: float,
          default: 0}
  socket: {description: HAProxy's socket., type: path, default: /run/haproxy/admin.sock}
  map: {description: The map that holds the share., type: path, required: true}
author: The splitrail authors
"""

EXAMPLES = r"""
- splitrail_ingress_share:
    share_b: 10
    map: /etc/haproxy/splitrail/share.map
"""

RETURN = r"""
share_b: {description: Percentage of the requests that go to slot b., type: int, returned: success}
held_until: {description: "Until when requests wait, in seconds since the epoch; 0: they do not.", type: int,
             returned: success}
slots:
  description: >-
    Of each slot C(in_flight), and of its requests since C(since) C(requests), C(errors), C(error_share), and
    the percentiles 50 and 90 of the time to the first byte and to the last, in ms (null without any).
  type: dict
  returned: success
"""

HINT = "is HAProxy running? Read `journalctl -u haproxy`."
SLOTS = ("a", "b")
WHOLE = 100
REFUSED, FAILED = 400, 500  # the first status of what the client did wrong, and of what the server did
LINE = re.compile(
    r"(?P<at>\d+) slot_(?P<slot>[ab]) POST (?P<status>\d+) (?P<first>-?\d+) (?P<last>-?\d+) (?P<end>\S\S)"
)
Json = dict[str, Any]


class IngressError(Exception):
    """HAProxy cannot be asked, or does not do what it was asked for."""


class Admin:
    """HAProxy's socket. Each call raises IngressError when nothing answers."""

    def __init__(self, path: str) -> None:
        self.path = path

    def ask(self, command: str) -> str:
        """Send one command and return the answer."""
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
                link.settimeout(10)
                link.connect(self.path)
                link.sendall(f"{command}\n".encode())
                pieces = iter(lambda: link.recv(65536), b"")
                return b"".join(pieces).decode(errors="replace")
        except OSError as error:
            raise IngressError(f"{self.path} does not answer ({error}): {HINT}") from error

    def in_flight(self) -> dict[str, int]:
        """Requests that each slot has now."""
        rows = csv.DictReader(io.StringIO(self.ask("show stat").lstrip("# ")))
        found = {row["pxname"]: int(row["scur"]) for row in rows if row["svname"] == "BACKEND"}
        try:
            return {slot: found[f"slot_{slot}"] for slot in SLOTS}
        except KeyError as error:
            raise IngressError(f"HAProxy has no backend {error}: run the serve playbook") from error

    def map(self, path: str) -> dict[str, int]:
        """The map that is in force: the share of slot b, and until when requests wait."""
        lines = [line.split() for line in self.ask(f"show map {path}").splitlines()]
        try:
            found = {words[1]: int(words[2]) for words in lines if words}
            return {"b": found["b"], "until": found.get("until", 0)}
        except (KeyError, IndexError, ValueError) as error:
            raise IngressError(f"HAProxy has no share of slot b in {path}: run the serve playbook") from error

    def send(self, path: str, key: str, value: int) -> None:
        """Put another value of the map in force."""
        known = f" {key} " in self.ask(f"show map {path}")
        said = self.ask(f"{'set' if known else 'add'} map {path} {key} {value}").strip()
        if said or self.map(path)[key] != value:
            raise IngressError(f"HAProxy did not take {value} for {key} in {path}: {said or HINT}")


class Request(NamedTuple):
    """A request that has ended, as HAProxy saw it."""

    status: int
    first_ms: float
    last_ms: float
    end: str

    @property
    def failed(self) -> bool:
        """Whether the server is to blame."""
        return self.status >= FAILED or self.end.startswith("S")


def percentile(values: list[float], part: int) -> float | None:
    """The smallest value that ``part`` % of the values do not exceed (nearest rank); None of no values."""
    if not values:
        return None
    return sorted(values)[math.ceil(len(values) * part / 100) - 1]


def answered(lines: str, since: float) -> dict[str, Json]:
    """What each slot answered after a time, by HAProxy's lines of its requests.

    A line: s since the epoch, backend, method, status, ms to the first byte of the answer and the last, and
    how it ended, in two letters. Only those that ask for tokens count (POST). An error is a status of 500 or
    more, or an answer that the server broke off (first letter S); one that the client broke off is none.
    """
    found: dict[str, list[Request]] = {slot: [] for slot in SLOTS}
    for line in lines.splitlines():
        match = LINE.fullmatch(line.strip())
        if match and int(match["at"]) >= since:
            times = float(match["first"]), float(match["last"])
            found[match["slot"]].append(Request(int(match["status"]), *times, match["end"]))
    return {slot: summary(requests) for slot, requests in found.items()}


def summary(requests: list[Request]) -> Json:
    """Counts and percentiles of some requests; the times are those of good answers."""
    errors = sum(one.failed for one in requests)
    good = [one for one in requests if one.status < REFUSED and not one.failed]
    times = {"first_byte": [one.first_ms for one in good], "e2e": [one.last_ms for one in good]}
    return {
        "requests": len(requests),
        "errors": errors,
        "error_share": round(errors / len(requests), 4) if requests else 0.0,
        **{
            f"{name}_p{part}_ms": percentile(values, part)
            for name, values in times.items()
            for part in (50, 90)
        },
    }


def text(values: dict[str, int]) -> str:
    """The map as HAProxy reads it."""
    return "".join(f"{key} {value}\n" for key, value in values.items())


def write(path: Path, values: dict[str, int]) -> None:
    """Write the map, whole or not at all."""
    fresh = path.with_name(f".{path.name}.new")
    handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text(values))
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def drain(admin: Admin, slot: str, timeout_s: float) -> None:
    """Wait until a slot has no request left. Raises IngressError when the time is over."""
    deadline = time.monotonic() + timeout_s
    while left := admin.in_flight()[slot]:
        if time.monotonic() > deadline:
            raise IngressError(
                f"slot {slot} still has {left} requests after {timeout_s:g} s, so it was left; run this "
                "again, or give it longer with ingress_drain_s"
            )
        time.sleep(0.2)  # between two looks


def settle(params: Json, admin: Admin, *, check_mode: bool) -> Json:
    """Do what the module was asked for, and return what it reports."""
    share, hold_s, path = params["share_b"], params["hold_s"], params["map"]
    if share is not None and not 0 <= share <= WHOLE:
        raise IngressError(f"share_b is {share}: write a percentage from 0 to 100")
    if hold_s is not None and hold_s < 0:
        raise IngressError(f"hold_s is {hold_s}: write seconds, or 0 to let all requests in")
    before = admin.map(path)
    after = dict(before)
    if share is not None:
        after["b"] = share
    if hold_s is not None:
        after["until"] = int(time.time()) + hold_s if hold_s else 0
    asked = share is not None or hold_s is not None
    changed = asked and (before != after or Path(path).read_text(encoding="utf-8") != text(after))
    if changed and not check_mode:
        # The file first: what is in force is then never lost. The time last: whoever waited finds the share.
        write(Path(path), after)
        for key, value in after.items():
            admin.send(path, key, value)
    for slot in [] if check_mode else params["drained"]:
        drain(admin, slot, params["timeout_s"])
    slots = answered(admin.ask("show events requests"), params["since"])
    for slot, count in admin.in_flight().items():
        slots[slot]["in_flight"] = count
    return {"changed": changed, "share_b": after["b"], "held_until": after["until"], "slots": slots}


def main() -> None:
    """Entry point of the module."""
    module = AnsibleModule(
        argument_spec={
            "share_b": {"type": "int"},
            "hold_s": {"type": "int"},
            "drained": {"type": "list", "elements": "str", "choices": list(SLOTS), "default": []},
            "timeout_s": {"type": "float", "default": 600},
            "since": {"type": "float", "default": 0},
            "socket": {"type": "path", "default": "/run/haproxy/admin.sock"},
            "map": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    try:
        done = settle(module.params, Admin(module.params["socket"]), check_mode=module.check_mode)
    except (IngressError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**done)


if __name__ == "__main__":
    main()
