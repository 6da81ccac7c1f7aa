"""The REST client, against a real little server that answers well and badly."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from splitrail.ansible.module_utils.splitrail_ray import Head, RayError, RayRefused, RayUnreachable

TOKEN = "5ec7e7" * 10


class Handler(BaseHTTPRequestHandler):
    """Answers every request with what the test prepared, and remembers it."""

    status: ClassVar[int]
    body: ClassVar[bytes]
    length: ClassVar[int | None]
    location: ClassVar[str]
    seen: ClassVar[list[tuple[str, str, str | None, bytes]]]

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""

    def answer(self) -> None:
        sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.seen.append((self.command, self.path, self.headers.get("Authorization"), sent))
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(self.body) if self.length is None else self.length))
        if self.location:
            self.send_header("Location", self.location)
        self.end_headers()
        self.wfile.write(self.body)

    do_GET = do_PUT = do_DELETE = answer  # names that http.server asks for


@pytest.fixture
def token(tmp_path: Path) -> Path:
    """A file with the cluster's token."""
    path = tmp_path / "token"
    path.write_text(TOKEN + "\n")
    return path


@contextmanager
def head(
    token: Path, status: int = 200, body: bytes = b"", *, length: int | None = None, location: str = ""
) -> Iterator[tuple[Head, list[tuple[str, str, str | None, bytes]]]]:
    """A head that answers so, and what it was asked."""
    seen: list[tuple[str, str, str | None, bytes]] = []
    members = {"status": status, "body": body, "length": length, "location": location, "seen": seen}
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Own", (Handler,), members)) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield Head(f"http://127.0.0.1:{server.server_address[1]}/", str(token), timeout_s=2), seen
        server.shutdown()
        thread.join()


def test_a_request_carries_token_and_body(token: Path) -> None:
    with head(token, body=b'{"a": 1}') as (good, seen):
        assert good.request("PUT", "/api/x", {"b": 2}) == {"a": 1}
    assert seen == [("PUT", "/api/x", f"Bearer {TOKEN}", b'{"b": 2}')]


@pytest.mark.parametrize("body", [b"", b" \n"])
def test_an_empty_answer_is_none(token: Path, body: bytes) -> None:
    with head(token, body=body) as (good, _):
        assert good.request("DELETE", "/api/x") is None


def test_no_proxy_is_asked(token: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with head(token, body=b"{}") as (good, _):
        assert good.request("GET", "/") == {}


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_token_is_told_from_a_head_that_is_down(token: Path, status: int) -> None:
    with head(token, status, b"who are you") as (wary, _), pytest.raises(RayRefused) as error:
        wary.request("GET", "/api/x")
    assert f"refuses the token in {token}" in str(error.value)
    assert "run the cluster playbook on all hosts" in str(error.value)
    assert TOKEN not in str(error.value)


def test_a_head_that_is_down_is_unreachable(token: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
    with pytest.raises(RayUnreachable, match=f"{address} does not answer: .*refused"):
        Head(address, str(token)).request("GET", "/")


def test_a_silent_head_is_waited_for_no_longer_than_said(token: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        waiting = Head(f"http://127.0.0.1:{silent.getsockname()[1]}", str(token), timeout_s=60)
        with pytest.raises(RayUnreachable, match="timed out"):
            waiting.request("GET", "/", timeout_s=0.2)


def test_an_answer_that_is_cut_off_is_no_answer(token: Path) -> None:
    with head(token, body=b'{"a": 1}', length=1000) as (cut, _), pytest.raises(RayUnreachable):
        cut.request("GET", "/")


def test_the_end_of_an_error_s_text_is_shown(token: Path) -> None:
    with head(token, 500, b"x" * 5000 + b" the reason") as (broken, _), pytest.raises(RayError) as error:
        broken.request("PUT", "/api/x", {})
    assert str(error.value).endswith("the reason")
    assert "/api/x answered 500: " in str(error.value)
    assert len(str(error.value)) < 2200


def test_an_error_whose_text_is_cut_off_is_still_that_error(token: Path) -> None:
    with head(token, 500, b"part", length=1000) as (broken, _), pytest.raises(RayError, match="answered 500"):
        broken.request("GET", "/")


@pytest.mark.parametrize("body", [b"<html>proxy</html>", b"\xff\xfe"])
def test_an_answer_that_is_no_json_is_shown(token: Path, body: bytes) -> None:
    with head(token, body=body) as (other, _), pytest.raises(RayError, match="answered no JSON: "):
        other.request("GET", "/")


def test_a_redirect_does_not_get_the_token(token: Path) -> None:
    with head(token, body=b"{}") as (elsewhere, seen):
        with head(token, 302, location=elsewhere.url) as (first, _), pytest.raises(RayError, match="302"):
            first.request("GET", "/")
        assert seen == []


@pytest.mark.parametrize(
    "content", [b"", b" \n", b"one\ntwo" + TOKEN.encode(), b"\xff\xfe", "schlüssel".encode()]
)
def test_a_token_that_cannot_be_one_is_never_quoted(token: Path, content: bytes) -> None:
    token.write_bytes(content)
    with head(token, body=b"{}") as (good, seen), pytest.raises(RayError) as error:
        good.request("GET", "/")
    assert str(error.value).startswith(f"{token} holds no token")
    assert TOKEN not in str(error.value)
    assert seen == []


def test_a_missing_token_is_named(tmp_path: Path) -> None:
    with pytest.raises(RayError, match=r"cannot read Ray's token at .*: No such file"):
        Head("http://127.0.0.1:1", str(tmp_path / "none")).request("GET", "/")


def test_nodes_are_those_alive(token: Path) -> None:
    nodes: list[dict[str, Any]] = [{"node_ip": "10.0.0.1"}]
    body = json.dumps({"data": {"result": {"result": nodes}}}).encode()
    with head(token, body=body) as (good, seen):
        assert good.nodes() == nodes
    assert "filter_keys=state&filter_predicates=%3D&filter_values=ALIVE" in seen[0][1]


@pytest.mark.parametrize("body", [b"{}", b"[]", b"", b'{"data": {"result": null}}'])
def test_an_answer_without_nodes_is_an_error(token: Path, body: bytes) -> None:
    with head(token, body=body) as (other, _), pytest.raises(RayError, match="without a list of nodes"):
        other.nodes()
