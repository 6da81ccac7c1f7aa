"""splitrail_tcp_mesh over real sockets on this machine."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from splitrail.ansible.modules import splitrail_tcp_mesh as mesh
from splitrail.ansible.modules.splitrail_tcp_mesh import MeshError, Peer

TOKEN = "secret-of-this-run"  # noqa: S105  # made up here
LINK = "transport: tcp (declared), a -> b"


@contextmanager
def server(deadline_s: float = 30) -> Iterator[Peer]:
    """A mesh server in a thread, stopped in the end; its end is proven by joining."""
    listening = mesh.listen("127.0.0.1", 0)
    peer = Peer("127.0.0.1", listening.getsockname()[1], TOKEN)
    thread = threading.Thread(target=mesh.serve, args=(listening, TOKEN, deadline_s))
    thread.start()
    yield peer
    peer.stop()
    thread.join(timeout=10)
    assert not thread.is_alive()


@contextmanager
def stranger(answer: bytes) -> Iterator[Peer]:
    """Something else that listens: takes a line, answers the same to everybody and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def run() -> None:
            try:
                while True:
                    link, _ = listening.accept()
                    with link:
                        link.recv(256)
                        link.sendall(answer)
            except OSError:
                return

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        yield Peer("127.0.0.1", listening.getsockname()[1], TOKEN)
        listening.shutdown(socket.SHUT_RDWR)
        thread.join(timeout=10)


def nobody() -> Peer:
    """An address where nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return Peer("127.0.0.1", listening.getsockname()[1], TOKEN)


def measured(peer: Peer, *, rtt_ms: float = 1000, gbps: float = 0.001) -> dict[str, tuple[bool, Any]]:
    made = mesh.measure(LINK, peer, seconds=0.1, rtt_ms=rtt_ms, gbps=gbps)
    assert [check["subject"] for check in made] == [LINK] * 3
    return {check["name"]: (check["ok"], check["measured"]) for check in made}


def test_a_peer_that_answers() -> None:
    with server() as peer:
        found = measured(peer)
    assert all(ok for ok, _ in found.values())
    assert found["fabric.tcp_rtt"][1] > 0
    assert found["fabric.tcp_throughput"][1] > 0


def test_throughput_is_what_arrived_over_the_time_it_took() -> None:
    with server() as peer, peer.ask("sink") as link, link.makefile("rb") as stream:
        link.sendall(b"x" * 1000)
        time.sleep(0.5)  # the elapsed time is what is measured here
        link.sendall(b"x" * 500)
        link.shutdown(socket.SHUT_WR)
        count, seconds = stream.readline().split()
    assert int(count) == 1500
    assert float(seconds) > 0.1  # not all of it: the server began a little later


def test_too_slow_and_too_far() -> None:
    with server() as peer:
        found = measured(peer, rtt_ms=0, gbps=1e6)
    assert {name: ok for name, (ok, _) in found.items()} == {
        "fabric.tcp_reachable": True,
        "fabric.tcp_rtt": False,
        "fabric.tcp_throughput": False,
    }


def test_a_peer_that_does_not_listen_passes_nothing() -> None:
    found = measured(nobody())
    assert not any(ok for ok, _ in found.values())
    assert "refused" in found["fabric.tcp_reachable"][1]
    assert found["fabric.tcp_throughput"][1].startswith("could not be checked: ")


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.0 400 Bad Request\r\n\r\n"])
def test_something_else_on_the_port_passes_nothing(answer: bytes) -> None:
    with stranger(answer) as peer:
        assert not any(ok for ok, _ in measured(peer).values())


def test_a_peer_that_fails_after_the_round_trip_has_no_throughput(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(_peer: Peer, _seconds: float) -> float:
        raise MeshError("the peer did not say how much arrived")

    monkeypatch.setattr(Peer, "gbps", lost)
    with server() as peer:
        found = measured(peer)
    assert found["fabric.tcp_rtt"][0]
    assert found["fabric.tcp_throughput"] == (
        False,
        "could not be checked: the peer did not say how much arrived",
    )


def test_a_wrong_token_gets_nothing_and_stops_nothing() -> None:
    with server() as peer:
        wrong = Peer(peer.address, peer.port, "guess")
        assert not any(ok for ok, _ in measured(wrong).values())
        wrong.stop()
        assert measured(peer)["fabric.tcp_reachable"][0]


def test_the_server_ends_at_its_deadline() -> None:
    listening = mesh.listen("127.0.0.1", 0)
    started = time.monotonic()
    mesh.serve(listening, TOKEN, 0.3)
    assert 0.3 <= time.monotonic() - started < 5
    assert listening.fileno() == -1


def test_the_background_process_outlives_the_call_and_ends_when_stopped() -> None:
    listening = mesh.listen("127.0.0.1", 0)
    peer = Peer("127.0.0.1", listening.getsockname()[1], TOKEN)
    mesh.background(lambda: mesh.serve(listening, TOKEN, 30))
    listening.close()  # the child has its own; here it must not keep the port
    assert peer.rtt_ms() > 0
    peer.stop()
    pid, status = os.wait()
    assert pid > 0
    assert os.waitstatus_to_exitcode(status) == 0
    assert not any(ok for ok, _ in measured(peer).values())


def test_listening_twice_or_on_a_foreign_address_fails() -> None:
    with server() as peer, pytest.raises(OSError, match="in use"):
        mesh.listen("127.0.0.1", peer.port)
    with pytest.raises(OSError, match="assign"):
        mesh.listen("192.0.2.1", 0)  # TEST-NET-1: nobody has it


def test_nodes_do_not_all_begin_with_the_same_peer() -> None:
    nodes = dict.fromkeys("abcd", "10.0.0.1")
    assert [mesh.peers_of(node, nodes) for node in "abcd"] == [
        ["b", "c", "d"],
        ["c", "d", "a"],
        ["d", "a", "b"],
        ["a", "b", "c"],
    ]


@pytest.mark.parametrize(
    ("nodes", "why"),
    [
        ({}, "a is not a node of the fabric"),
        ({"a": "10.0.0.1"}, "no peer to measure"),
        ({"b": "10.0.0.2"}, "a is not a node of the fabric"),
    ],
)
def test_nothing_measured_is_no_pass(nodes: dict[str, str], why: str) -> None:
    def never(_peer: str) -> list[dict[str, Any]]:
        raise AssertionError("there is nothing to measure")

    [made] = mesh.mesh("a", nodes, never)
    assert (made["ok"], made["measured"]) == (False, f"could not be checked: {why}")
    assert "tcp (declared)" in made["subject"]
