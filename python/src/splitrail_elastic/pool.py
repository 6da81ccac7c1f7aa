"""The engines, which of them are up, and who has which role."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

Json = dict[str, Any]


class NoEngine(Exception):
    """No engine is up."""


class Backend(Protocol):
    """How one engine is reached."""

    def ask(self, method: str, body: Json) -> AsyncGenerator[str | Json, None]:
        """Answer ``chat`` or ``completions``: pieces of an event stream, or one whole answer.

        Raises ``dispatch.Refused`` where the request is at fault, anything else where the engine is. Closing
        the generator takes the request back.
        """

    async def health(self) -> None:
        """Return when the engine is well. Raises when it is dead; may wait while it has no replica."""


@dataclass(frozen=True)
class Ratio:
    """How many engines do what; 0 prefill and 0 decode: every engine does both.

    ``spare``: engines, the last ones, that are up and get no request until another one is not.
    ``aggregated_below_osl``: answers of at most so many tokens are not handed off, 0 for none.
    """

    prefill: int = 0
    decode: int = 0
    aggregated_below_osl: int = 0
    spare: int = 0

    @classmethod
    def read(cls, config: Mapping[str, Any], engines: int) -> Ratio:
        """The ratio of a Serve ``user_config``. Raises ValueError naming the key and what would be right."""
        known = {"prefill", "decode", "aggregated_below_osl", "spare"}
        if strange := sorted(set(config) - known):
            raise ValueError(f"user_config.{strange[0]} is unknown: it has {', '.join(sorted(known))}")
        for key, value in config.items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise ValueError(f"user_config.{key} is {value!r}: write a whole number, 0 or more")
        ratio = cls(**config)
        if ratio.spare >= engines:
            raise ValueError(f"user_config.spare is {ratio.spare} of {engines} engines: one must serve")
        if (ratio.prefill, ratio.decode) == (0, 0):
            return ratio
        total = ratio.prefill + ratio.decode + ratio.spare
        if not ratio.prefill or not ratio.decode or total != engines:
            raise ValueError(
                f"user_config has {ratio.prefill} prefill, {ratio.decode} decode and {ratio.spare} spare: of "
                f"the first two each needs one at least, and together they must be the {engines} engines; "
                "prefill 0 and decode 0 makes all but the spare ones do both"
            )
        return ratio


class Engine:
    """One engine: how it is reached, what it does now, and whether it is up.

    An engine that failed a request is ``suspect``, and is asked nothing more until it has said that it is
    well; one that has not is ``gone``. ``up`` is neither.
    """

    def __init__(self, name: str, backend: Backend, clock: Iterator[int]) -> None:
        self.name, self.backend = name, backend
        self.in_flight = 0
        self.suspect = True
        self.gone = asyncio.Event()
        self.doubted = asyncio.Event()
        self.settled = asyncio.Event()
        self.last = 0
        self._clock = clock

    @property
    def up(self) -> bool:
        """Whether it may be asked."""
        return not self.suspect and not self.gone.is_set()

    def doubt(self) -> None:
        """A request failed there: ask nothing more before it has said that it is well."""
        self.suspect = True
        self.settled.clear()
        self.doubted.set()

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Count a request as long as it lasts."""
        self.in_flight += 1
        self.last = next(self._clock)
        try:
            yield
        finally:
            self.in_flight -= 1


def least_busy(engines: list[Engine]) -> Engine:
    """The engine with the fewest requests in flight; of several the one that was asked the longest ago."""
    return min(engines, key=lambda engine: (engine.in_flight, engine.last))


class Pool:
    """All engines in their order, and the ratio.

    The first engines of that order prefill, the next decode, and the last are spare, so a change of the ratio
    moves as few as it can.
    """

    def __init__(self, backends: Mapping[str, Backend]) -> None:
        self.clock = itertools.count(1)
        self.engines = [Engine(name, backend, self.clock) for name, backend in backends.items()]
        self.ratio = Ratio()

    def role(self, engine: Engine) -> str:
        """``prefill``, ``decode``, ``aggregated`` or ``spare``."""
        place = self.engines.index(engine)
        if place >= len(self.engines) - self.ratio.spare:
            return "spare"
        if not self.ratio.prefill:
            return "aggregated"
        return "prefill" if place < self.ratio.prefill else "decode"

    def for_prompt(self, whole: bool) -> Engine | None:
        """The engine that computes a prompt for another one, None where the request is not handed off.

        ``whole``: the request must not be. Nor is it where a role has no engine that is up. Raises NoEngine.
        """
        roles = self._roles()
        return least_busy(roles["prefill"]) if roles["prefill"] and roles["decode"] and not whole else None

    def for_answer(self, handed_off: bool) -> Engine:
        """The engine that answers: of the decode engines after a hand-off, else of those that prefill.

        A request that is served whole leaves the steady pace of the decode engines alone. Where the role has
        no engine that is up, the others do its work. Raises NoEngine.
        """
        roles = self._roles()
        first, second = ("decode", "prefill") if handed_off else ("prefill", "decode")
        return least_busy(roles[first] or roles[second] or roles["aggregated"])

    def _roles(self) -> dict[str, list[Engine]]:
        asked = [engine for engine in self.engines if engine.up]
        # Better one that is slow to say that it is well than nobody.
        asked = asked or [engine for engine in self.engines if not engine.gone.is_set()]
        if not asked:
            raise NoEngine("no engine is up")
        found: dict[str, list[Engine]] = {"prefill": [], "decode": [], "aggregated": [], "spare": []}
        for engine in asked:
            found[self.role(engine)].append(engine)
        self._stand_in(found)
        return found

    def _stand_in(self, found: dict[str, list[Engine]]) -> None:
        """Give spare engines the roles of those that are not up, for as long as they are not."""
        whole = len(self.engines) - self.ratio.spare if not self.ratio.prefill else 0
        wanted = {"prefill": self.ratio.prefill, "decode": self.ratio.decode, "aggregated": whole}
        for engine in found.pop("spare"):
            short = [role for role, count in wanted.items() if len(found[role]) < count]
            if short:
                # A role that nobody has comes before one that lacks one of several.
                found[min(short, key=lambda role: len(found[role]))].append(engine)
