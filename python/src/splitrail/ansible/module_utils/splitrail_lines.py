"""Ask a program one line of JSON over TCP and get one back.

Standard library only: this file travels to the nodes.
"""

from __future__ import annotations

import json
import socket
from typing import Any

Json = dict[str, Any]

LONGEST_LINE = 1 << 24


def ask(address: str, port: int, asked: Json, timeout_s: float) -> Json:
    """The answer. Raises OSError, ValueError when it is no JSON, RuntimeError when it is an error."""
    with (
        socket.create_connection((address, port), timeout=timeout_s) as link,
        link.makefile("rwb") as stream,
    ):
        stream.write(json.dumps(asked).encode() + b"\n")
        stream.flush()
        line = stream.readline(LONGEST_LINE)
    if not line:
        raise RuntimeError(f"{address} port {port} hung up without an answer")
    answer = json.loads(line)
    if not isinstance(answer, dict):
        raise ValueError(f"{address} port {port} answers {type(answer).__name__}, not an object")
    if "error" in answer:
        raise RuntimeError(str(answer["error"]))
    return answer
