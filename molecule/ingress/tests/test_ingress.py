"""The entrance asks for a key, chooses the slot, passes streams on as they come, and tells no secrets."""

from __future__ import annotations

import re
import threading
import time

import httpx
import pytest
from testinfra.host import Host

ADDRESS = "10.88.0.11"
KEYS = ["5ca1ab1e5ca1ab1e5ca1ab1e5ca1ab1e", "0ddba11c0ddba11c0ddba11c0ddba11c"]
OPEN = {"Authorization": f"Bearer {KEYS[0]}"}
PIECES, APART_S = 5, 0.2  # of the stand-in's stream
WAIT_S = 2.0


@pytest.fixture
def client() -> httpx.Client:
    """Who asks from outside."""
    return httpx.Client(base_url=f"http://{ADDRESS}:8000", timeout=20, trust_env=False)


@pytest.mark.broken
@pytest.mark.parametrize("given", [None, "Bearer 0000", f"Basic {KEYS[0]}", "Bearer"])
def test_without_a_key_it_says_what_clients_understand(client: httpx.Client, given: str | None) -> None:
    answer = client.get("/v1/models", headers={"Authorization": given} if given else {})
    assert answer.status_code == httpx.codes.UNAUTHORIZED
    assert answer.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize("key", KEYS)
def test_a_key_opens_slot_a_and_goes_no_further(client: httpx.Client, key: str) -> None:
    answer = client.get("/v1/models", headers={"Authorization": f"Bearer {key}"})
    assert answer.json() == {"path": "/a/v1/models", "authorization": None}


def test_anybody_may_ask_for_its_health(client: httpx.Client) -> None:
    assert client.get("/health").json()["path"] == "/-/healthz"


def test_a_stream_comes_in_pieces(client: httpx.Client) -> None:
    with client.stream("POST", "/v1/completions", json={}, headers=OPEN) as answer:
        times = [time.monotonic() for line in answer.iter_lines() if line]
    assert len(times) == PIECES
    assert times[-1] - times[0] > (PIECES - 2) * APART_S


def hold(host: Host, seconds: int) -> None:
    """Let requests wait, or let them in: the role's share.yml says the same through this socket."""
    until = int(time.time()) + seconds if seconds else 0
    command = f"set map /etc/haproxy/splitrail/share.map until {until}"
    host.check_output(
        "python3 -c 'import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]);"
        f" s.sendall((sys.argv[2] + chr(10)).encode()); s.recv(100)' /run/haproxy/admin.sock '{command}'"
    )


def test_requests_can_wait_and_are_answered_once_they_are_let_in(client: httpx.Client, host: Host) -> None:
    took: list[float] = []

    def ask() -> None:
        began = time.monotonic()
        with client.stream("POST", "/v1/completions", content=b"x" * 50_000, headers=OPEN) as answer:
            pieces = [line for line in answer.iter_lines() if line]
        if len(pieces) == PIECES:
            took.append(time.monotonic() - began)

    hold(host, 60)
    try:
        asking = threading.Thread(target=ask)
        asking.start()
        asking.join(WAIT_S)
        assert asking.is_alive()
        assert client.get("/health").status_code == httpx.codes.OK
    finally:
        hold(host, 0)
    asking.join(20)
    assert took
    assert took[0] > WAIT_S


@pytest.mark.broken
def test_who_has_no_key_does_not_wait(client: httpx.Client, host: Host) -> None:
    hold(host, 5)
    began = time.monotonic()
    assert client.post("/v1/completions").status_code == httpx.codes.UNAUTHORIZED
    assert time.monotonic() - began < WAIT_S
    hold(host, 0)


def test_no_request_waits_longer_than_was_said(client: httpx.Client, host: Host) -> None:
    hold(host, 3)
    began = time.monotonic()
    assert client.get("/v1/models", headers=OPEN).status_code == httpx.codes.OK
    assert 1 < time.monotonic() - began < 6  # noqa: PLR2004  s around the three


def test_it_listens_on_one_address(host: Host) -> None:
    listening = [line for line in host.socket.get_listening_sockets() if line.endswith(":8000")]
    assert listening == [f"tcp://{ADDRESS}:8000"]


def test_its_metrics_count_each_slot_on_the_loopback_alone(client: httpx.Client, host: Host) -> None:
    client.get("/v1/models", headers=OPEN)
    page = host.check_output("curl --silent --fail http://127.0.0.1:8405/metrics")
    found = re.search(
        r'^haproxy_backend_http_responses_total{proxy="slot_a",code="2xx"} (\d+)$', page, re.MULTILINE
    )
    assert found
    assert int(found[1]) > 0
    assert not [key for key in KEYS if key in page]
    listening = [line for line in host.socket.get_listening_sockets() if line.endswith(":8405")]
    assert listening == ["tcp://127.0.0.1:8405"]


def test_no_key_is_on_the_node(host: Host) -> None:
    files = host.check_output("cat /etc/haproxy/haproxy.cfg /etc/haproxy/splitrail/*")
    seen = files + host.check_output("ps axww -o args; journalctl --no-pager --output cat")
    assert not [key for key in KEYS if key in seen]


@pytest.mark.parametrize("name", ["share.map", "keys.sha256"])
def test_what_root_alone_needs_root_alone_may_read(host: Host, name: str) -> None:
    file = host.file(f"/etc/haproxy/splitrail/{name}")
    assert (file.user, file.mode) == ("root", 0o600)


def test_the_unit_is_confined_and_starts_at_boot(host: Host) -> None:
    assert host.service("haproxy").is_enabled
    shown = host.check_output(
        "systemctl show haproxy --property=ProtectSystem,NoNewPrivileges,PrivateDevices"
    )
    assert set(shown.split()) == {"ProtectSystem=strict", "NoNewPrivileges=yes", "PrivateDevices=yes"}


def test_who_speaks_to_clients_is_not_root(host: Host) -> None:
    users = host.check_output("ps -C haproxy -o user= | sort | uniq").split()
    assert users == ["haproxy", "root"]
