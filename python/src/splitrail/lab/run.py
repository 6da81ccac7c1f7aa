"""Start other programs, and say clearly when one fails."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence

# A user's PATH often lacks the folders where the network tools live.
_PATH = os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin"


class LabError(Exception):
    """The lab could not do what was asked; the message names the thing and the cure."""


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment with the system folders on PATH, plus `extra`."""
    return {**os.environ, "PATH": _PATH, **(extra or {})}


def run(
    argv: Sequence[str],
    *,
    stdin: str | None = None,
    ok: Sequence[int] = (0,),
    timeout: float | None = None,
) -> str:
    """Run `argv` and return its standard output.

    `timeout` is in seconds. Raises LabError, with what the program said, when it is missing, is too slow or
    exits with a code that is not in `ok`.
    """
    try:
        done = subprocess.run(
            argv, input=stdin, capture_output=True, text=True, env=environment(), timeout=timeout, check=False
        )
    except FileNotFoundError as error:
        raise LabError(f"{argv[0]}: command not found") from error
    except subprocess.TimeoutExpired as error:
        raise LabError(f"`{' '.join(argv)}` gave no answer in {timeout:g} s") from error
    if done.returncode not in ok:
        said = (done.stderr.strip() or done.stdout.strip() or "it printed nothing").replace("\n", "\n  ")
        raise LabError(f"`{' '.join(argv)}` exited with {done.returncode}:\n  {said}")
    return done.stdout
