"""How a request reaches its engines: one endpoint, or engines of a pool whose KV caches are handed on."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import httpx

# Called with a token's arrival; the first call is the first token.
OnToken = Callable[[], None]
Body = dict[str, Any]

# What a prefill engine is told (vLLM's NIXL connector): keep the KV cache, another engine will fetch it.
_REMOTE_DECODE = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}


class Refused(Exception):
    """The endpoint answered with an error, or not as it should; the message has its words."""


class Route(Protocol):
    """Sends one completion, streamed, and returns the number of its tokens."""

    async def ask(self, client: httpx.AsyncClient, body: Body, on_token: OnToken) -> int:
        """Raises Refused or httpx.HTTPError."""


@dataclass
class Server:
    """An OpenAI-compatible server and how many requests this client has there."""

    url: str
    outstanding: int = 0

    async def stream(self, client: httpx.AsyncClient, body: Body, on_token: OnToken) -> int:
        """Ask for a completion, token by token; returns how many the server says it made.

        The lines are searched, not parsed, but for the last: parsing thousands a second would make the client
        late.
        """
        asked = {**body, "stream": True, "stream_options": {"include_usage": True}}
        self.outstanding += 1
        count, done = 0, False
        try:
            async with client.stream("POST", f"{self.url}/v1/completions", json=asked) as answer:
                await _check(answer)
                rest = b""
                async for chunk in answer.aiter_bytes():
                    *lines, rest = (rest + chunk).split(b"\n")
                    for line in lines:
                        if b'"error"' in line and b'"choices"' not in line:
                            raise Refused(line.decode(errors="replace")[:500])
                        if b'"usage":{' in line or b'"usage": {' in line:
                            count = int(json.loads(line[6:])["usage"]["completion_tokens"])
                        elif line.startswith(b"data: {"):
                            on_token()
                        elif line.startswith(b"data: [DONE]"):
                            done = True
        finally:
            self.outstanding -= 1
        if not done:
            raise Refused("the stream was cut off")
        return count

    async def prefill(self, client: httpx.AsyncClient, body: Body) -> Body:
        """Have the prompt's KV cache made; returns what tells another engine where it lies."""
        asked = {
            **body,
            "max_tokens": 1,
            "stream": False,
            "kv_transfer_params": _REMOTE_DECODE,
        }
        self.outstanding += 1
        try:
            answer = await client.post(f"{self.url}/v1/completions", json=asked)
            await _check(answer)
            place = answer.json().get("kv_transfer_params")
        finally:
            self.outstanding -= 1
        if not isinstance(place, dict):
            raise Refused(f"{self.url} hands on no KV cache: it runs without a kv_transfer_config")
        return place


class Endpoint:
    """Aggregated: each request goes to the server with the fewest."""

    def __init__(self, urls: Sequence[str]) -> None:
        self.servers = [Server(url.rstrip("/").removesuffix("/v1")) for url in urls]
        self._turn = 0

    async def ask(self, client: httpx.AsyncClient, body: Body, on_token: OnToken) -> int:
        """See Route."""
        return await self.least_busy().stream(client, body, on_token)

    def least_busy(self) -> Server:
        """The server with the fewest requests; of several, each in its turn."""
        self._turn += 1
        order = (
            self.servers[self._turn % len(self.servers) :] + self.servers[: self._turn % len(self.servers)]
        )
        return min(order, key=lambda server: server.outstanding)


class Split:
    """Prefill-decode: the prompt to a prefill engine, what that returns to a decode engine."""

    def __init__(self, prefill: Sequence[str], decode: Sequence[str]) -> None:
        self.prefill, self.decode = Endpoint(prefill), Endpoint(decode)

    async def ask(self, client: httpx.AsyncClient, body: Body, on_token: OnToken) -> int:
        """See Route."""
        place = await self.prefill.least_busy().prefill(client, body)
        return await self.decode.ask(client, {**body, "kv_transfer_params": place}, on_token)


async def _check(answer: httpx.Response) -> None:
    if answer.status_code != httpx.codes.OK:
        said = (await answer.aread()).decode(errors="replace")[:500]
        raise Refused(f"{answer.request.url} answered {answer.status_code}: {said}")
