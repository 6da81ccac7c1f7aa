"""The conversation with QEMU, against a QEMU that answers badly."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from splitrail.lab.qmp import monitor
from splitrail.lab.run import LabError

Answer = Callable[[dict[str, Any]], list[dict[str, Any]]]


@pytest.fixture
def qemu(tmp_path: Path) -> Iterator[Callable[[Answer], Path]]:
    """Start a stand-in that greets, and answers each command with what a function says."""
    path = tmp_path / "qmp.sock"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen()
    threads = []

    def serve(answer: Answer) -> None:
        plug, _ = listener.accept()
        with plug, plug.makefile("rwb") as stream:
            stream.write(b'{"QMP": {}}\n')
            stream.flush()
            with suppress(ConnectionAbortedError):
                for line in stream:
                    for message in answer(json.loads(line)):
                        stream.write(json.dumps(message).encode() + b"\n")
                    stream.flush()

    def start(answer: Answer) -> Path:
        threads.append(threading.Thread(target=serve, args=(answer,)))
        threads[-1].start()
        return path

    yield start
    for thread in threads:
        thread.join(10)
    listener.close()


def jobs(error: str | None) -> Answer:
    """A QEMU whose job is through at the second look, with `error` or without."""
    asked: list[dict[str, Any]] = []

    def answer(message: dict[str, Any]) -> list[dict[str, Any]]:
        asked.append(message)
        if message["execute"] != "query-jobs":
            return [{"event": "JOB_STATUS_CHANGE"}, {"return": {}}]
        started = next(one for one in asked if one["execute"] == "snapshot-save")["arguments"]
        looks = [one["execute"] for one in asked].count("query-jobs")
        job = {"id": started["job-id"], "status": "running" if looks == 1 else "concluded"}
        return [{"return": [job | ({"error": error} if error else {})]}]

    return answer


def test_a_job_is_waited_for(qemu: Callable[[Answer], Path]) -> None:
    with monitor("n1", qemu(jobs(None))) as opened:
        opened.job("snapshot-save", 5, tag="a")


def test_a_job_that_fails_is_an_error(qemu: Callable[[Answer], Path]) -> None:
    with (
        monitor("n1", qemu(jobs("no space"))) as opened,
        pytest.raises(LabError, match="n1: snapshot-save: no space"),
    ):
        opened.job("snapshot-save", 5, tag="a")


def test_a_refusal_is_told_in_qemus_words(qemu: Callable[[Answer], Path]) -> None:
    def answer(message: dict[str, Any]) -> list[dict[str, Any]]:
        refused = message["execute"] == "set_link"
        return [{"error": {"class": "DeviceNotFound", "desc": "no rail9"}} if refused else {"return": {}}]

    with (
        monitor("n1", qemu(answer)) as opened,
        pytest.raises(LabError, match="n1: QEMU refused set_link: no rail9"),
    ):
        opened.execute("set_link", name="rail9", up=True)


def test_no_socket_and_a_qemu_that_hangs_up(qemu: Callable[[Answer], Path], tmp_path: Path) -> None:
    with pytest.raises(LabError, match="n1: its QEMU does not answer"), monitor("n1", tmp_path / "none"):
        pass

    # Nothing but the greeting's answer, and then it is gone.
    once: Iterator[list[dict[str, Any]]] = iter([[{"return": {}}]])

    def hang_up(_: dict[str, Any]) -> list[dict[str, Any]]:
        answer = next(once, None)
        if answer is None:
            raise ConnectionAbortedError
        return answer

    with (
        monitor("n1", qemu(hang_up)) as opened,
        pytest.raises(LabError, match="n1: QEMU hung up"),
    ):
        opened.execute("query-status")
