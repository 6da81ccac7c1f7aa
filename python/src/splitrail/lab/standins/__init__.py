"""Stand-ins for tools of hardware that a lab lacks: they keep state and answer in the real tools' format.

Installed on lab nodes only. ``install`` places them under a root file system; a scenario may do the same with
Ansible's ``copy``. What they know of the machine and how their cards misbehave is told by an optional
``/etc/splitrail-standins.json`` (see ``standin.py``).
"""

from __future__ import annotations

import shutil
from pathlib import Path

TOOLS = ("mstconfig", "mlnx_qos", "cma_roce_tos", "setpci")
# A folder of their own on the module path: they travel as the package that they are part of here.
FOLDER = "usr/local/lib/splitrail-standins"
PACKAGE = "splitrail/lab/standins"


def install(root: Path, tools: tuple[str, ...] = TOOLS) -> list[Path]:
    """Place tools under a root file system, ahead of real ones on root's PATH; returns what was written."""
    here, folder, programs = Path(__file__).parent, root / FOLDER / PACKAGE, root / "usr/local/sbin"
    folder.mkdir(parents=True, exist_ok=True)
    programs.mkdir(parents=True, exist_ok=True)
    written = []
    for name in ("__init__", "standin", *tools):
        written.append(folder / f"{name}.py")
        shutil.copyfile(here / f"{name}.py", written[-1])
    for name in tools:
        program = programs / name
        program.write_text(wrapper(name), encoding="utf-8")
        program.chmod(0o755)
        written.append(program)
    return written


def wrapper(name: str) -> str:
    """The program that starts a tool."""
    return (
        "#!/bin/sh\n# A stand-in of the lab, not the real tool.\n"
        f'PYTHONPATH=/{FOLDER} exec python3 -m {PACKAGE.replace("/", ".")}.{name} "$@"\n'
    )
