"""splitrail_ingress_share and splitrail_ingress_check against a HAProxy that keeps state."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from splitrail.ansible.modules.splitrail_ingress_check import (
    Entrance,
    answer_checks,
    key_checks,
    loopback_check,
)
from splitrail.ansible.modules.splitrail_ingress_share import (
    Admin,
    IngressError,
    answered,
    percentile,
    settle,
)

Json = dict[str, Any]
# As HAProxy 2.6 wrote them: two that asked for no tokens; slot a, where one failed, one was broken off by the
# server and one by the client; slot b.
LINES = """\
1795291556 public GET 401 -1 0 LR
1795291556 slot_a GET 200 8 8 --
1795291556 slot_a POST 200 10 100 --
1795291561 slot_a POST 200 30 300 --
1795291562 slot_a POST 500 2 2 --
1795291562 slot_a POST 200 20 250 SD
1795291562 slot_a POST 200 20 250 CD
1795291563 slot_b POST 200 40 400 --

"""


class Haproxy:
    """HAProxy's socket: a map, the slots' sessions, the last requests."""

    def __init__(self, path: Path, name: str) -> None:
        self.map, self.left, self.deaf = {"b": 0, "until": 0}, [0, 0], False
        self.name = name
        self.server = socket.socket(socket.AF_UNIX)
        self.server.bind(str(path))
        self.server.listen()
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self) -> None:
        while True:
            try:
                link, _ = self.server.accept()
            except OSError:
                return
            with link:
                link.sendall(self.answer(link.recv(4096).decode().strip()).encode())

    def answer(self, command: str) -> str:
        if command == "show stat":
            count = self.left.pop(0) if len(self.left) > 1 else self.left[0]
            rows = [f"slot_{slot},BACKEND,0,0,{count if slot == 'a' else 0}" for slot in "ab"]
            return "\n".join(["# pxname,svname,qcur,qmax,scur", "slot_a,serve,0,0,9", *rows, "", ""])
        if command == f"show map {self.name}":
            return "".join(f"0x55d0 {key} {value}\n" for key, value in self.map.items()) + "\n"
        if match := re.fullmatch(rf"(set|add) map {re.escape(self.name)} (\w+) (\d+)", command):
            if self.deaf or (match[1] == "set") != (match[2] in self.map):
                return "entry not found.\n"
            self.map[match[2]] = int(match[3])
            return "\n"
        return LINES if command == "show events requests" else f"Unknown command: {command}\n"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The map."""
    path = tmp_path / "share.map"
    path.write_text("b 0\nuntil 0\n")
    return path


@pytest.fixture
def haproxy(tmp_path: Path, place: Path) -> Iterator[Haproxy]:
    """A HAProxy on a socket."""
    running = Haproxy(tmp_path / "admin.sock", str(place))
    yield running
    running.server.close()


def divide(place: Path, *, check_mode: bool = False, **given: Any) -> Json:
    """Apply the module."""
    params: Json = {
        "share_b": None,
        "hold_s": None,
        "drained": [],
        "timeout_s": 1,
        "since": 0,
        "map": str(place),
    }
    params |= given
    return settle(params, Admin(str(place.with_name("admin.sock"))), check_mode=check_mode)


def test_a_share_is_in_force_and_stays(haproxy: Haproxy, place: Path) -> None:
    assert divide(place, share_b=20, check_mode=True)["changed"] is True
    assert (haproxy.map["b"], place.read_text()) == (0, "b 0\nuntil 0\n")
    assert divide(place, share_b=20)["changed"] is True
    assert (haproxy.map["b"], place.read_text()) == (20, "b 20\nuntil 0\n")
    assert place.stat().st_mode & 0o777 == 0o600
    assert divide(place, share_b=20)["changed"] is False
    assert divide(place)["share_b"] == 20


def test_a_share_that_is_not_written_down_is(haproxy: Haproxy, place: Path) -> None:
    haproxy.map["b"] = 20
    assert divide(place, share_b=20)["changed"] is True
    assert place.read_text() == "b 20\nuntil 0\n"


def test_a_share_that_haproxy_does_not_take_is_an_error(haproxy: Haproxy, place: Path) -> None:
    haproxy.deaf = True
    with pytest.raises(IngressError, match=r"did not take 20 for b in .*: entry not found"):
        divide(place, share_b=20)


def test_requests_wait_until_a_time_and_are_let_in(haproxy: Haproxy, place: Path) -> None:
    began = int(time.time())
    assert divide(place, hold_s=60, check_mode=True)["changed"] is True
    assert haproxy.map["until"] == 0
    held = divide(place, hold_s=60, share_b=0)
    assert began + 60 <= held["held_until"] <= time.time() + 60
    assert haproxy.map == {"b": 0, "until": held["held_until"]}
    assert place.read_text() == f"b 0\nuntil {held['held_until']}\n"
    # A share that changes meanwhile lets nobody in.
    assert divide(place, share_b=20)["held_until"] == held["held_until"]
    assert divide(place, hold_s=0)["changed"] is True
    assert haproxy.map == {"b": 20, "until": 0}
    assert divide(place, hold_s=0)["changed"] is False


def test_a_map_from_before_requests_could_wait(haproxy: Haproxy, place: Path) -> None:
    del haproxy.map["until"]
    place.write_text("b 0\n")
    assert divide(place)["held_until"] == 0
    assert divide(place, hold_s=60)["held_until"] == haproxy.map["until"] > 0


@pytest.mark.usefixtures("haproxy")
def test_a_time_to_wait_is_not_negative(place: Path) -> None:
    with pytest.raises(IngressError, match="write seconds, or 0"):
        divide(place, hold_s=-1)


@pytest.mark.usefixtures("haproxy")
@pytest.mark.parametrize("share", [-1, 101])
def test_a_share_is_a_percentage(place: Path, share: int) -> None:
    with pytest.raises(IngressError, match="write a percentage from 0 to 100"):
        divide(place, share_b=share)


@pytest.mark.usefixtures("haproxy")
def test_without_the_map_or_haproxy_the_cure_is_named(place: Path) -> None:
    with pytest.raises(IngressError, match="run the serve playbook"):
        divide(place.with_name("other.map"))
    place.with_name("admin.sock").unlink()
    with pytest.raises(IngressError, match="journalctl -u haproxy"):
        divide(place)


def test_it_waits_until_a_slot_has_no_request_left(haproxy: Haproxy, place: Path) -> None:
    haproxy.left = [2, 1, 0]
    assert divide(place, drained=["a"])["slots"]["a"]["in_flight"] == 0
    haproxy.left = [1]
    with pytest.raises(IngressError, match=r"slot a still has 1 requests after 0\.1 s"):
        divide(place, drained=["a"], timeout_s=0.1)
    assert divide(place, drained=["b"])["changed"] is False


def test_what_the_slots_answered() -> None:
    found = answered(LINES, 0)
    assert found["a"] == {
        "requests": 5,
        "errors": 2,
        "error_share": 0.4,
        "first_byte_p50_ms": 20,
        "first_byte_p90_ms": 30,
        "e2e_p50_ms": 250,
        "e2e_p90_ms": 300,
    }
    assert (found["b"]["requests"], found["b"]["e2e_p90_ms"]) == (1, 400)
    later = answered(LINES, 1795291563)
    assert (later["a"]["requests"], later["a"]["e2e_p50_ms"], later["b"]["requests"]) == (0, None, 1)


@pytest.mark.parametrize(("part", "value"), [(50, 2), (75, 3), (76, 4), (90, 4)])
def test_percentiles_are_values_that_were_measured(part: int, value: float) -> None:
    assert percentile([4, 1, 3, 2], part) == value


@contextmanager
def entrance(key: str, *, models: int = 200, error: Json | None = None) -> Iterator[Entrance]:
    """An entrance that wants this key, or none."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Keep quiet."""

        def do_GET(self) -> None:
            known = not key or self.headers.get("Authorization") == f"Bearer {key}" or self.path == "/health"
            body = json.dumps({} if known else {"error": {"message": "no key"}} if error is None else error)
            self.send_response((models if self.path == "/v1/models" else 200) if known else 401)
            self.end_headers()
            self.wfile.write(body.encode())

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield Entrance(f"http://127.0.0.1:{server.server_address[1]}")
        server.shutdown()
        thread.join()


def verdict(checks: list[Json]) -> dict[str, bool]:
    return {f"{one['name']} {one['subject']}": one["ok"] for one in checks}


@pytest.mark.parametrize("key", ["k" * 32, ""])
def test_a_good_entrance_passes(key: str) -> None:
    with entrance(key) as one:
        found = verdict(answer_checks(one, key, 0) + key_checks(one, key))
    assert len(found) == 4
    assert all(found.values())


def test_an_open_entrance_is_found() -> None:
    with entrance("") as one:
        checks = key_checks(one, "k" * 32)
    assert [one["ok"] for one in checks] == [False, False]
    assert checks[0]["hint"] == "Set ingress_api_keys and run the serve playbook."


def test_an_entrance_that_refuses_without_words_is_found() -> None:
    with entrance("k" * 32, error={}) as one:
        assert [one["ok"] for one in key_checks(one, "k" * 32)] == [False, False]


def test_an_application_that_does_not_answer_is_found() -> None:
    with entrance("k" * 32, models=503) as one:
        found = verdict(answer_checks(one, "k" * 32, 0))
    assert found == {"ingress.models /v1/models": False, "ingress.health /health": True}


@pytest.mark.parametrize(
    ("name", "addresses", "ok", "measured"),
    [
        ("tcp", ["0100007F"], True, "loopback"),
        ("tcp6", ["00000000000000000000000001000000"], True, "loopback"),
        ("tcp", ["00000000"], False, "every address"),
        ("tcp6", ["0" * 32], False, "every address"),
        ("tcp", ["0100007F", "0B00570A"], False, "0B00570A, loopback"),
        ("tcp", [], False, "listens nowhere"),
    ],
)
def test_serve_must_listen_on_loopback(
    tmp_path: Path, name: str, addresses: list[str], ok: bool, measured: str
) -> None:
    lines = [f"   {n}: {address}:1F41 00000000:0000 0A x" for n, address in enumerate(addresses)]
    # Another port, and a connection of this one.
    lines += ["  8: 00000000:1F40 00000000:0000 0A x", "  9: 0B00570A:1F41 0C00570A:9999 01 x"]
    (tmp_path / name).write_text("\n".join(["  sl  local_address rem_address st", *lines, ""]))
    found = loopback_check(8001, tmp_path)
    assert (found["ok"], found["measured"]) == (ok, measured)
