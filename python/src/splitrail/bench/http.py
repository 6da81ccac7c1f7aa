"""A load generator in this process: open-loop, httpx, for any OpenAI-compatible endpoint."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from math import nan

import httpx

from splitrail.bench.engines import Refused, Route
from splitrail.bench.measured import Measured, merge
from splitrail.bench.traffic import Planned, Traffic, tokens, warm_prefixes

# After the last request was sent; what is not through by then has failed.
DRAIN_S = 120.0
# Processes begin together, after the time to start and to write prompts, so many tokens a second.
TOGETHER_S, TOKENS_PER_S = 3.0, 5e5


@dataclass(frozen=True)
class Http:
    """Sends completions with prompts of token ids to a route. ``key`` is sent as a bearer token.

    With several ``processes`` each sends its part and knows only what it itself has outstanding.
    ``clock`` and ``run`` are those of the event loop; tests put in a virtual one, with its ``transport``.
    """

    route: Route
    model: str
    key: str | None = None
    processes: int = 1
    drain_s: float = DRAIN_S
    transport: httpx.AsyncBaseTransport | None = None
    clock: Callable[[], float] = time.monotonic
    run: Callable[[Coroutine[None, None, Measured]], Measured] = field(default=asyncio.run)

    def __call__(self, traffic: Traffic) -> Measured:
        """Send the traffic and wait for its end."""
        if self.processes == 1:
            return self.run(self.offer(traffic))
        prompts = sum(request.isl for request in traffic.requests)
        begin = self.clock() + TOGETHER_S + prompts / TOKENS_PER_S / self.processes
        shards = [traffic.shard(index, self.processes) for index in range(self.processes)]
        with ProcessPoolExecutor(self.processes) as pool:
            return merge(list(pool.map(self._shard, shards, [begin] * len(shards))))

    def _shard(self, traffic: Traffic, begin: float) -> Measured:
        return self.run(self.offer(traffic, begin))

    async def offer(self, traffic: Traffic, begin: float | None = None) -> Measured:
        """Send each request at its time, whatever became of those before it."""
        bodies = [self.body(traffic, request) for request in traffic.requests]
        shared = [self.body(traffic, request) for request in warm_prefixes(traffic)]
        # Of an HTTP client's own limits none may hold a request back.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        async with httpx.AsyncClient(
            transport=self.transport,
            timeout=httpx.Timeout(None),  # a request that takes long is what is measured
            limits=limits,
            headers=headers,
            trust_env=False,
        ) as client:
            for body in shared:
                await self.one(client, {**body, "max_tokens": 1}, 0.0, self.clock())
            started = self.clock() if begin is None else begin
            running = []
            for request, body in zip(traffic.requests, bodies, strict=True):
                await asyncio.sleep(max(0.0, started + request.at_s - self.clock()))
                running.append(asyncio.create_task(self.one(client, body, request.at_s, started)))
            if running:
                _, late = await asyncio.wait(running, timeout=self.drain_s)
                for task in late:
                    task.cancel()
                await asyncio.gather(*running, return_exceptions=True)
        rows, errors = [], []
        for request, task in zip(traffic.requests, running, strict=True):
            row, error = (
                (
                    (request.at_s, request.at_s, nan, nan, 0.0),
                    f"not through {self.drain_s:g} s after the last",
                )
                if task.cancelled()
                else task.result()
            )
            rows.append(row)
            errors += [error] if error else []
        return Measured.of(rows, errors)

    def body(self, traffic: Traffic, request: Planned) -> dict[str, object]:
        """The completion's body: an answer of exactly as many tokens as planned."""
        return {
            "model": self.model,
            "prompt": tokens(traffic, request),
            "max_tokens": request.osl,
            "ignore_eos": True,
            "temperature": 0,
        }

    async def one(
        self, client: httpx.AsyncClient, body: dict[str, object], planned: float, started: float
    ) -> tuple[tuple[float, float, float, float, float], str]:
        """One request: planned, sent, first and last token in seconds from the start, tokens; an error."""
        sent = self.clock() - started
        first = last = nan

        def on_token() -> None:
            nonlocal first, last
            last = self.clock() - started
            first = last if first != first else first  # noqa: PLR0124  # nan

        try:
            count = await self.route.ask(client, body, on_token)
        except (Refused, httpx.HTTPError, ValueError, KeyError) as error:
            return (planned, sent, nan, nan, 0.0), f"{type(error).__name__}: {error}"
        if count != body["max_tokens"]:
            return (planned, sent, nan, nan, 0.0), f"{count} tokens in place of {body['max_tokens']}"
        return (planned, sent, first, last, float(count)), ""
