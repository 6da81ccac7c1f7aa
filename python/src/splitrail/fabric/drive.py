"""Hold one agent a node: start it through a channel, ask it things, and notice soon when it is gone."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path
from typing import IO, Any, Protocol

AGENT = Path(__file__).parent / "agent.py"
PING_S = 3.0
# Six pings: a node whose two cores both move data answers late, one that is gone never does.
SILENCE_S = 20.0

# Reads the agent from stdin and becomes it. os.read and not sys.stdin: what follows belongs to the agent.
BOOT = """import os
t = b""
while len(t) < {size}:
    c = os.read(0, {size} - len(t))
    if not c: raise SystemExit(2)
    t += c
exec(compile(t, "splitrail-agent", "exec"), {{"__name__": "__main__"}})
"""


class DriveError(Exception):
    """A node cannot be asked; the message says why."""


class AgentGone(DriveError):
    """The agent does not answer any more, and will not again."""


class AgentRefused(DriveError):
    """The agent answered that it cannot do what was asked."""


class Channel(Protocol):
    """Where an agent's stdin and stdout are."""

    def send(self, data: bytes) -> None:
        """Raises OSError when the other end is gone."""

    def lines(self) -> Iterable[bytes]:
        """The agent's stdout."""

    def complaint(self) -> str:
        """What came on stderr."""

    def close(self) -> None:
        """End the agent with the channel."""


class ProcessChannel:
    """An agent as a process of this machine: for hosts with the connection ``local``, and for tests."""

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, data: bytes) -> None:
        assert self._process.stdin is not None  # noqa: S101  # for the type checker: it is a pipe
        self._process.stdin.write(data)

    def lines(self) -> IO[bytes]:
        assert self._process.stdout is not None  # noqa: S101  # as above
        return self._process.stdout

    def complaint(self) -> str:
        assert self._process.stderr is not None  # noqa: S101  # as above
        return self._process.stderr.read().decode(errors="replace")

    def close(self) -> None:
        assert self._process.stdin is not None  # noqa: S101  # as above
        try:
            self._process.stdin.close()
            self._process.wait(5)
        except (OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()


def boot_command(size: int, *, sudo: bool) -> list[str]:
    """What to run on a node so that it takes an agent of that many bytes from stdin."""
    return [*(["sudo", "-n"] if sudo else []), "python3", "-c", BOOT.format(size=size)]


def local_channel() -> ProcessChannel:
    """An agent beside this process, by this process's Python."""
    return ProcessChannel([sys.executable, *boot_command(AGENT.stat().st_size, sudo=False)[1:]])


def remote_command(*, sudo: bool) -> str:
    """The boot command for a shell at the other end."""
    return shlex.join(boot_command(AGENT.stat().st_size, sudo=sudo))


class Agent:
    """A node's agent: ask() it from any thread."""

    def __init__(self, node: str, channel: Channel) -> None:
        self.node = node
        self._channel = channel
        self._lock = threading.Lock()
        self._waiting: dict[int, Future[Any]] = {}
        self._next = 0
        self._gone = ""
        self._heard = time.monotonic()
        self._closed = threading.Event()
        self._ended = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()
        self._write(AGENT.read_bytes())
        threading.Thread(target=self._watch, daemon=True).start()

    @property
    def gone(self) -> str:
        """Why it does not answer any more; empty as long as it does."""
        return self._gone

    def ask(self, do: str, timeout: float, **what: Any) -> Any:
        """The answer to a request. Raises AgentGone or AgentRefused, at the latest after ``timeout``."""
        answer: Future[Any] = Future()
        with self._lock:
            if self._gone:
                raise AgentGone(f"{self.node}: {self._gone}")
            self._next += 1
            number = self._next
            self._waiting[number] = answer
        self._write(json.dumps({"id": number, "do": do, **what}).encode() + b"\n")
        try:
            return answer.result(timeout)
        except FutureTimeoutError:
            # It pings and yet does not do its work: nothing that it would say later could be trusted.
            self._lose(f"no answer to {do} within {timeout:.0f} s")
            raise AgentGone(f"{self.node}: {self._gone}") from None
        finally:
            with self._lock:
                self._waiting.pop(number, None)

    def close(self) -> None:
        """End it."""
        self._closed.set()
        self._lose("closed")
        self._channel.close()

    def _write(self, data: bytes) -> None:
        try:
            self._channel.send(data)
        except OSError as error:
            # The reader knows why, as soon as it has read to the end.
            if not self._ended.wait(2):
                self._lose(f"the connection broke: {error}")

    def _read(self) -> None:
        try:
            for line in self._channel.lines():
                self._heard = time.monotonic()
                self._take(line)
        except OSError as error:
            self._lose(f"the connection broke: {error}")
        if not self._closed.is_set() and not self._gone:
            self._lose(f"the agent ended: {self._channel.complaint().strip()[-300:] or 'without a word'}")
        self._ended.set()

    def _take(self, line: bytes) -> None:
        try:
            said = json.loads(line)
            number = said["id"]
            with self._lock:
                answer = self._waiting.pop(number, None)
            if answer is None or answer.done():
                return  # to a ping, or to somebody who stopped waiting
            if "ok" in said:
                answer.set_result(said["ok"])
            else:
                answer.set_exception(AgentRefused(f"{self.node}: {said['error']}"))
        except (ValueError, KeyError, TypeError):
            self._lose(f"it does not speak as an agent does: {line[:80]!r}")

    def _watch(self) -> None:
        while not self._closed.wait(PING_S) and not self._gone:
            if time.monotonic() - self._heard > SILENCE_S:
                self._lose(f"silent for {SILENCE_S:.0f} s")
            else:
                self._write(b'{"id": 0, "do": "ping"}\n')

    def _lose(self, why: str) -> None:
        with self._lock:
            self._gone = self._gone or why
            waiting, self._waiting = self._waiting, {}
        for answer in waiting.values():
            if not answer.done():
                answer.set_exception(AgentGone(f"{self.node}: {self._gone}"))
