"""QEMU's own control socket (QMP): one short conversation at a time."""

from __future__ import annotations

import json
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from splitrail.lab.run import LabError

_SECONDS = 30.0


class Monitor:
    """An open conversation with the QEMU of one node."""

    def __init__(self, node: str, stream: Any) -> None:
        self._node = node
        self._stream = stream

    def execute(self, command: str, **arguments: Any) -> Any:
        """Run `command` and return what it answers. Raises LabError with QEMU's own words when it refuses."""
        message = {"execute": command, "arguments": {k.replace("_", "-"): v for k, v in arguments.items()}}
        self._stream.write(json.dumps(message).encode() + b"\n")
        self._stream.flush()
        while True:
            answer = self._read()
            if "error" in answer:
                raise LabError(f"{self._node}: QEMU refused {command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]

    def job(self, command: str, seconds: float, **arguments: Any) -> None:
        """Run `command`, one that starts a job, and wait for the job's end, up to `seconds`."""
        name = f"splitrail-{uuid.uuid4().hex[:8]}"
        self.execute(command, job_id=name, **arguments)
        deadline = time.monotonic() + seconds
        while True:
            job = next(job for job in self.execute("query-jobs") if job["id"] == name)
            if job["status"] == "concluded":
                break
            if time.monotonic() > deadline:
                raise LabError(f"{self._node}: {command} is not through after {seconds:.0f} s")
            time.sleep(0.05)
        self.execute("job-dismiss", id=name)
        if job.get("error"):
            raise LabError(f"{self._node}: {command}: {job['error']}")

    def greet(self) -> None:
        """Read QEMU's greeting and switch from capabilities to commands."""
        self._read()
        self.execute("qmp_capabilities")

    def _read(self) -> dict[str, Any]:
        line = self._stream.readline()
        if not line:
            raise LabError(f"{self._node}: QEMU hung up; the node went down meanwhile")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def monitor(node: str, path: Path) -> Iterator[Monitor]:
    """Talk to the QEMU behind the socket `path`. Raises LabError when it does not answer."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as plug:
        plug.settimeout(_SECONDS)
        try:
            plug.connect(str(path))
            with plug.makefile("rwb") as stream:
                opened = Monitor(node, stream)
                opened.greet()
                yield opened
        except OSError as error:
            raise LabError(f"{node}: its QEMU does not answer at {path}: {error}") from error
