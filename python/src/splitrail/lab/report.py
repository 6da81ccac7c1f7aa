"""What the lab says while it works: a spinner on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console


class Reporter:
    """Progress on standard error, so that standard output stays clean for `--json`."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False, soft_wrap=True)

    def say(self, line: str) -> None:
        """Print one line."""
        self._console.print(line, markup=False)

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        """Announce a long step, and how many seconds it took once it is through."""
        began = time.monotonic()
        if self._console.is_terminal:
            with self._console.status(what):
                yield
        else:
            self.say(f"{what} ...")
            yield
        self.say(f"{what}: {time.monotonic() - began:.0f} s")
