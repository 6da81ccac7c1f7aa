"""An OpenAI-compatible endpoint with known service times, and a clock that jumps: for checks of the method.

``Mock`` answers like vLLM as far as a load generator asks. Over ``Transport`` it is reached inside the
process on the virtual clock of ``run_virtually``: an hour of traffic takes seconds, and nothing else on the
machine changes a figure. ``listen`` serves it over real HTTP.
"""

from __future__ import annotations

import asyncio
import json
import random
import selectors
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx

from splitrail.bench.measured import Measured

T = TypeVar("T")


class _Jumping(selectors.BaseSelector):
    """Waits for nothing: sets the clock on by as long as it was to wait."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._real, self._loop = selectors.DefaultSelector(), loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = self._real.select(0)
        if timeout and not ready:
            self._loop.now += timeout
        return ready

    def register(self, *given: Any, **named: Any) -> selectors.SelectorKey:
        return self._real.register(*given, **named)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._real.unregister(fileobj)

    def get_map(self) -> Any:
        return self._real.get_map()

    def close(self) -> None:
        self._real.close()


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose seconds pass as fast as nothing is to be done in them."""

    def __init__(self) -> None:
        self.now = 0.0
        super().__init__(_Jumping(self))

    def time(self) -> float:
        return self.now


def run_virtually(main: Coroutine[None, None, T]) -> T:
    """``asyncio.run`` on a virtual clock that begins at 0."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


def virtual_clock() -> float:
    """The clock of the loop that runs."""
    return asyncio.get_running_loop().time()


@dataclass
class Mock:
    """An engine for ``slots`` requests at a time: a prompt takes ``prompt_s``, a further token ``token_s``.

    ``exponential`` draws prompts' times with that mean. A request that says do_remote_decode is answered with
    one token and a place; one that brings a place skips the prompt. ``seen`` counts by kind.
    """

    slots: int = 1
    prompt_s: float = 0.1
    token_s: float = 0.0
    exponential: bool = False
    seed: int = 0
    fails: bool = False
    seen: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)  # noqa: S311  # no secret
        self._free = asyncio.Semaphore(self.slots)
        self._loop: asyncio.AbstractEventLoop | None = None

    async def answer(self, body: dict[str, Any]) -> AsyncIterator[bytes]:
        """The body of an answer, piece by piece."""
        place = body.get("kv_transfer_params") or {}
        kind = "prefill" if place.get("do_remote_decode") else "decode" if place else "whole"
        self.seen[kind] = self.seen.get(kind, 0) + 1
        if self._loop is not asyncio.get_running_loop():
            # Each run has a loop of its own; what waits on one cannot be used on another.
            self._loop, self._free = asyncio.get_running_loop(), asyncio.Semaphore(self.slots)
        count = int(body["max_tokens"])
        async with self._free:
            if kind != "decode":
                await asyncio.sleep(
                    self._rng.expovariate(1 / self.prompt_s) if self.exponential else self.prompt_s
                )
            if kind == "prefill":
                yield json.dumps({"kv_transfer_params": {"remote_engine_id": "mock"}}).encode()
                return
            for index in range(count):
                if index:
                    await asyncio.sleep(self.token_s)
                yield b'data: {"choices":[{"text":"a"}],"usage":null}\n\n'
        usage = json.dumps({"choices": [], "usage": {"completion_tokens": count}}, separators=(",", ":"))
        yield f"data: {usage}\n\ndata: [DONE]\n\n".encode()


class _Body(httpx.AsyncByteStream):
    def __init__(self, pieces: AsyncIterator[bytes]) -> None:
        self.pieces = pieces

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for piece in self.pieces:
            yield piece


@dataclass(frozen=True)
class Transport(httpx.AsyncBaseTransport):
    """Takes a client's requests to mocks by host name, without a network."""

    mocks: dict[str, Mock]

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        mock = self.mocks[request.url.host]
        if mock.fails:
            return httpx.Response(500, text="told to fail")
        return httpx.Response(200, stream=_Body(mock.answer(json.loads(request.content))))


@asynccontextmanager
async def listen(mock: Mock) -> AsyncIterator[str]:
    """Serve over HTTP on a free port of the loopback address; yields the URL."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                length = next(
                    int(line[15:]) for line in head.split("\r\n") if line.startswith("content-length:")
                )
                body = json.loads(await reader.readexactly(length))
                writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                async for piece in mock.answer(body):
                    writer.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
                    await writer.drain()
                writer.write(b"0\r\n\r\n")
                await writer.drain()
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            return  # the client, or the test, is through
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def virtually(offered: Coroutine[None, None, Measured]) -> Measured:
    """For ``Http.run``."""
    return run_virtually(offered)
