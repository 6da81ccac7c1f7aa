"""Serve a request: hand it off or not, try again while nothing was sent, and keep watch over the engines."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Any

from splitrail_elastic.handoff import answer_limit, can_move, decode_leg, prefill_leg
from splitrail_elastic.pool import Engine, NoEngine, Pool, Ratio

Json = dict[str, Any]
logger = logging.getLogger(__name__)

# How often a request is tried, on other engines where there are any.
ATTEMPTS = 3
# Between two questions whether an engine is well, in seconds; and after how many without an answer it gets no
# new request. A dead replica says so at once, a busy one late.
PROBE_S = 1.0
SLOW_S = 5.0
# How long a request that failed waits to hear which of its engines are well, in seconds.
SETTLE_S = 1.0
# How long a request waits for the first engine to be up, in seconds.
PATIENCE_S = 30.0
WARM_PROMPT = "warm"


class Refused(Exception):
    """The request itself is at fault: ``body`` is OpenAI's error object, ``status`` its HTTP status."""

    def __init__(self, status: int, body: Json) -> None:
        super().__init__(str(body))
        self.status, self.body = status, body


class Broken(Exception):
    """Engines failed, and trying again could not help, or came too late: a part of the answer was sent."""


class EngineGone(Exception):
    """The engine that was waited for has died."""


@dataclass
class Trip:
    """One attempt to serve a request: who was asked, and whether a KV cache was handed over."""

    request_id: str
    engines: list[Engine] = field(default_factory=list)
    handed_off: bool = False

    @property
    def names(self) -> str:
        """The engines, for people."""
        return " and ".join(engine.name for engine in self.engines) or "no engine"


class Dispatcher:
    """Serves requests from a pool of engines.

    ``count`` is told what each request came to: ``handed_off``, ``whole``, ``retried``, ``failed``,
    ``refused``, ``cancelled``. ``dead_s``: after how many seconds without an answer an engine counts as dead.
    """

    def __init__(self, pool: Pool, model: str, count: Callable[[str], None], *, dead_s: float = 30.0) -> None:
        self.pool, self.model, self.count, self.dead_s = pool, model, count, dead_s
        self._watchers: list[asyncio.Task[None]] = []
        self._someone = asyncio.Event()

    def start(self) -> None:
        """Begin to watch the engines; each is asked for the first time now."""
        self._watchers = [asyncio.create_task(self._watch(engine)) for engine in self.pool.engines]

    async def stop(self) -> None:
        """Stop watching."""
        for watcher in self._watchers:
            watcher.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)

    def configure(self, config: Json) -> Ratio:
        """Take a ratio; it holds for the next request. Raises ValueError and keeps the old one."""
        self.pool.ratio = Ratio.read(config, len(self.pool.engines))
        return self.pool.ratio

    async def answer(self, method: str, body: Json, request_id: str) -> AsyncGenerator[str | Json, None]:
        """Answer ``chat`` or ``completions``: pieces of an event stream, or one whole answer.

        Raises Refused, NoEngine, and Broken.
        """
        limit = answer_limit(body)
        short = limit is not None and limit <= self.pool.ratio.aggregated_below_osl
        whole = short or not can_move(body)
        sent = False
        try:
            for attempt in range(ATTEMPTS):
                await self._someone_is_up()
                trip = Trip(f"{request_id}-{attempt}")
                try:
                    async with aclosing(self._attempt(method, body, trip, whole)) as pieces:
                        async for piece in pieces:
                            sent = True
                            yield piece
                    self.count("handed_off" if trip.handed_off else "whole")
                    return
                except Refused:
                    self.count("refused")
                    raise
                except NoEngine:
                    raise
                except Exception as error:
                    logger.warning("request %s failed on %s: %r", trip.request_id, trip.names, error)
                    if sent or attempt == ATTEMPTS - 1:
                        raise Broken(f"{trip.names}: {error}") from error
                    self.count("retried")
                    # Whoever is well is asked again within milliseconds.
                    await _within(asyncio.gather(*[one.settled.wait() for one in trip.engines]), SETTLE_S)
        except (asyncio.CancelledError, GeneratorExit):
            self.count("cancelled")
            raise
        except (NoEngine, Broken):
            self.count("failed")
            raise

    async def _someone_is_up(self) -> None:
        """Wait for the first engine to be up, for a while."""
        if not any(engine.up for engine in self.pool.engines):
            await _within(self._someone.wait(), PATIENCE_S)

    async def _attempt(
        self, method: str, body: Json, trip: Trip, whole: bool
    ) -> AsyncGenerator[str | Json, None]:
        """Serve a request once; doubts the engines that may be at fault when it fails."""
        try:
            place = None
            prompt = self.pool.for_prompt(whole)
            if prompt is not None:
                trip.engines.append(prompt)
                place = await _place(prompt, method, prefill_leg(body, f"{trip.request_id}p"))
            # Chosen only now: what decode engines have to do has changed meanwhile.
            engine = self.pool.for_answer(prompt is not None)
            if engine is prompt:
                place = None  # it has the KV cache itself
            else:
                trip.engines.append(engine)
            trip.handed_off = place is not None
            with engine.busy():
                asked = decode_leg(body, f"{trip.request_id}d", place)
                async with aclosing(engine.backend.ask(method, asked)) as pieces:
                    yield await _first(pieces, trip.engines)
                    async for piece in pieces:
                        yield piece
        except (Refused, NoEngine):
            raise
        except Exception:
            # Of two, the one whose KV cache could not be fetched may be the dead one.
            for engine in trip.engines:
                engine.doubt()
            raise

    async def _watch(self, engine: Engine) -> None:
        """Ask an engine again and again whether it is well, for ever."""
        while True:
            probe = asyncio.ensure_future(engine.backend.health())
            engine.doubted.clear()
            try:
                if not (await asyncio.wait({probe}, timeout=SLOW_S))[0]:
                    engine.suspect = True
                    if not (await asyncio.wait({probe}, timeout=max(0.0, self.dead_s - SLOW_S)))[0]:
                        self._left(engine, "does not answer")
                    # Asked of a replica that is only coming, it is answered when that is there.
                    await asyncio.wait({probe})
                probe.result()
            except Exception as error:
                self._left(engine, repr(error))
                await asyncio.sleep(PROBE_S)
                continue
            finally:
                probe.cancel()
            if not engine.up:
                await self._join(engine)
            await _within(engine.doubted.wait(), PROBE_S)

    def _left(self, engine: Engine, why: str) -> None:
        if not engine.gone.is_set():
            logger.warning("engine %s is left out: %s", engine.name, why)
        engine.gone.set()
        engine.settled.set()
        if not any(one.up for one in self.pool.engines):
            self._someone.clear()

    async def _join(self, engine: Engine) -> None:
        """Take an engine in; a new one is warmed by real requests, as first hand-offs make connections."""
        if engine.gone.is_set() or not engine.last:
            for other in [one for one in self.pool.engines if one.up]:
                for prompt, answer in ((engine, other), (other, engine)):
                    await self._warm(prompt, answer)
            if not engine.last:
                await self._warm(None, engine)
        logger.info("engine %s is in", engine.name)
        engine.gone.clear()
        engine.suspect = False
        engine.settled.set()
        self._someone.set()

    async def _warm(self, prompt: Engine | None, answer: Engine) -> None:
        body = {"model": self.model, "prompt": WARM_PROMPT, "max_tokens": 1, "temperature": 0}
        request_id = f"warm-{next(self.pool.clock)}-{answer.name}"
        # One that fails here is found out by its next health check, or by nobody and works.
        with suppress(Exception):
            place = None
            if prompt is not None:
                place = await _place(prompt, "completions", prefill_leg(body, f"{request_id}p"))
            await _whole(answer, "completions", decode_leg(body, f"{request_id}d", place))


async def _place(engine: Engine, method: str, body: Json) -> Json | None:
    """Have a prompt's KV cache computed; returns where it lies, None where there is nothing to fetch."""
    answer = await _whole(engine, method, body)
    place = answer.get("kv_transfer_params") if isinstance(answer, dict) else None
    return dict(place) if place else None


async def _whole(engine: Engine, method: str, body: Json) -> str | Json:
    """An answer of one piece."""
    with engine.busy():
        async with aclosing(engine.backend.ask(method, body)) as pieces:
            answer = await _first(pieces, [engine])
            async for _ in pieces:  # to its end, or it would be taken back
                pass
        return answer


async def _within(what: Awaitable[Any], seconds: float) -> None:
    """Wait, but no longer. Before Python 3.12 ``asyncio.wait_for`` may swallow a cancellation."""
    task = asyncio.ensure_future(what)
    try:
        await asyncio.wait({task}, timeout=seconds)
    finally:
        task.cancel()


async def _first(pieces: AsyncGenerator[str | Json, None], engines: list[Engine]) -> str | Json:
    """The first piece of an answer. Raises EngineGone when one of the engines dies before it comes.

    A request may wait for a replica, or for a KV cache, that will never be.
    """
    piece = asyncio.ensure_future(anext(pieces))
    deaths = {asyncio.ensure_future(engine.gone.wait()): engine for engine in engines}
    try:
        await asyncio.wait({piece, *deaths}, return_when=asyncio.FIRST_COMPLETED)
        if piece.done():
            try:
                return piece.result()
            except StopAsyncIteration:
                raise EngineGone(f"{engines[0].name} ended without an answer") from None
        dead = [engine.name for death, engine in deaths.items() if death.done()]
        raise EngineGone(f"{', '.join(dead)} died before the first token")
    finally:
        for task in (piece, *deaths):
            task.cancel()
        # Its generator can be closed only when it no longer runs.
        await asyncio.gather(piece, *deaths, return_exceptions=True)
