"""Engines that keep state as real ones do: they die, hang, come back, and know whose cache they fetch."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from splitrail_elastic.dispatch import Dispatcher, Refused
from splitrail_elastic.pool import Pool

Json = dict[str, Any]


class FakeEngine:
    """An engine that answers a prompt with words made of it; ``asked`` holds every request that it got."""

    def __init__(self, name: str, cluster: dict[str, FakeEngine]) -> None:
        self.name, self.cluster = name, cluster
        self.alive = asyncio.Event()
        self.alive.set()
        # What the replica's death looks like: an error, or (once Serve has noticed) no answer at all.
        self.noticed = False
        self.hold = asyncio.Event()
        self.hold.set()
        self.asked: list[Json] = []
        self.cancelled = 0
        self.caches: set[str] = set()
        self.dies_after: int | None = None
        self.refuses = False
        cluster[name] = self

    def die(self, noticed: bool = False) -> None:
        """Die now; ``noticed``: Serve has taken the replica out already, so callers wait."""
        self.noticed = noticed
        self.caches.clear()
        self.alive.clear()

    async def health(self) -> None:
        """Well, dead, or not there."""
        if not self.alive.is_set() and not self.noticed:
            raise RuntimeError(f"{self.name} died")
        await self.alive.wait()

    async def ask(self, method: str, body: Json) -> AsyncGenerator[str | Json, None]:
        """Answer as vLLM would."""
        self.asked.append({"method": method, **body})
        ended = False
        try:
            await self.health()
            await self.hold.wait()
            if self.refuses:
                raise Refused(400, {"error": {"message": "too long"}})
            params = body.get("kv_transfer_params") or {}
            if params.get("do_remote_decode"):
                self.caches.add(body["request_id"])
                place = {
                    "remote_engine_id": self.name,
                    "remote_request_id": body["request_id"],
                    "do_remote_prefill": True,
                }
                yield {"text": "w0", "kv_transfer_params": place}
            else:
                if params:
                    source = self.cluster[params["remote_engine_id"]]
                    if params["remote_request_id"] not in source.caches:
                        raise RuntimeError("KV cache is gone")
                    assert source is not self, "an engine cannot fetch from itself"
                async for piece in self._words(body):
                    yield piece
            ended = True
        finally:
            self.cancelled += not ended

    async def _words(self, body: Json) -> AsyncGenerator[str | Json, None]:
        count = body.get("max_tokens", 4)
        words = [f"{body['prompt']}{number}" for number in range(count)]
        if not body.get("stream"):
            await asyncio.sleep(0)
            await self.health()
            yield {"text": " ".join(words)}
            return
        for number, word in enumerate(words):
            if number == self.dies_after:
                self.die()
            await asyncio.sleep(0)
            await self.health()
            yield word


class World:
    """N fake engines behind a dispatcher."""

    def __init__(self, engines: int, config: Json | None = None, *, dead_s: float = 30.0) -> None:
        self.engines: dict[str, FakeEngine] = {}
        for number in range(engines):
            FakeEngine(f"e{number}", self.engines)
        self.pool = Pool(self.engines)
        self.counts: dict[str, int] = {}
        self.dispatcher = Dispatcher(self.pool, "m", self.count, dead_s=dead_s)
        self.dispatcher.configure(config or {})

    def count(self, outcome: str) -> None:
        """Count an outcome."""
        self.counts[outcome] = self.counts.get(outcome, 0) + 1

    async def __aenter__(self) -> World:
        """Start watching, and wait until every engine is in."""
        self.dispatcher.start()
        while not all(engine.up for engine in self.pool.engines):
            await asyncio.sleep(0)
        for engine in self.engines.values():
            engine.asked.clear()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop."""
        await self.dispatcher.stop()

    async def ask(self, prompt: str = "p", **more: Any) -> list[str | Json]:
        """Every piece of an answer."""
        body = {"model": "m", "prompt": prompt, "max_tokens": 4, "stream": True, **more}
        return [piece async for piece in self.dispatcher.answer("completions", body, "r")]

    def asked(self) -> dict[str, int]:
        """How many requests each engine got."""
        return {name: len(engine.asked) for name, engine in self.engines.items()}
