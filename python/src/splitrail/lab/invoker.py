"""Root when it is needed, and the person's own rights when it is not."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from splitrail.lab.run import LabError, environment

# What sudo drops and the lab reads: pip's settings, proxies, the lab's own.
_KEPT = (
    "PIP_",
    "SPLITRAIL_",
    "ANSIBLE_",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
)


def become_root(why: str) -> None:
    """Return when this process is root; otherwise start the same command again through one sudo prompt.

    Raises LabError when there is no sudo.
    """
    if os.geteuid() == 0:
        return
    kept = [
        f"{key}={value}" for key, value in os.environ.items() if key.startswith(_KEPT) or key == "NO_PROXY"
    ]
    path = f"PATH={environment()['PATH']}"
    again = [sys.executable, *sys.orig_argv[1:]]
    try:
        os.execvp(  # noqa: S606 (sudo takes over this process)
            "sudo", ["sudo", "-p", f"[splitrail] root {why}; password of %u: ", "env", path, *kept, *again]
        )
    except FileNotFoundError as error:
        raise LabError(f"root {why}, and there is no sudo here; run this as root") from error


def invoker() -> tuple[int, int] | None:
    """User and group id of the person behind sudo, None when there is no such person."""
    if os.geteuid() != 0 or not os.environ.get("SUDO_UID"):
        return None
    return int(os.environ["SUDO_UID"]), int(os.environ["SUDO_GID"])


def own(path: Path) -> None:
    """Give `path` to the person behind sudo."""
    if who := invoker():
        os.chown(path, *who)


def run_as_invoker(argv: Sequence[str], extra: Mapping[str, str] | None = None) -> str:
    """Run a program of this Python's environment as the person behind sudo; return what it printed.

    ``extra``: variables of its environment. Raises LabError with its message when it fails.
    """
    beside = Path(sys.executable).parent / argv[0]
    command = [str(beside) if beside.exists() else argv[0], *argv[1:]]
    who = invoker()
    home = {"HOME": pwd.getpwuid(who[0]).pw_dir} if who else {}
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            env=environment({**home, **(extra or {})}),
            check=False,
            user=who[0] if who else None,
            group=who[1] if who else None,
            extra_groups=os.getgrouplist(pwd.getpwuid(who[0]).pw_name, who[1]) if who else None,
        )
    except FileNotFoundError as error:
        raise LabError(f"{argv[0]}: command not found; install requirements.txt") from error
    except PermissionError as error:
        raise LabError(
            f"{command[0]}: the user behind sudo may not run it; use an environment of theirs"
        ) from error
    if done.returncode != 0:
        raise LabError(f"`{' '.join(argv)}` failed:\n  {done.stderr.strip()}")
    return done.stdout
