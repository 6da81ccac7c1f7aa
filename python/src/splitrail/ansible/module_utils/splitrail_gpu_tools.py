"""What AMD's tools print, read into plain values. A text that stops half-way raises ValueError.

Standard library only: this file travels to the nodes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections import Counter
from typing import Any

# Where ROCm's packages put them; a non-interactive shell's PATH has none of these.
PLACES = ("/opt/rocm/bin", "/opt/rocm/extras-7/bin")
_UNITS_MIB = {"MB": 1.0, "MIB": 1.0, "GB": 1024.0, "GIB": 1024.0}


class Failed(Exception):
    """A tool could not be run, did not end, or ended with an error; ``output`` is what it had printed."""

    def __init__(self, why: str, output: str = "") -> None:
        super().__init__(why)
        self.output = output


def run(argv: list[str], timeout_s: float) -> str:
    """What a tool printed, both streams. Raises Failed; a tool that hangs is killed with all its children."""
    path = os.pathsep.join([*PLACES, os.environ.get("PATH", "")])
    program = shutil.which(argv[0], path=path)
    if program is None:
        raise Failed(f"{argv[0]} is not installed")
    process = subprocess.Popen(
        [program, *argv[1:]],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        # A group of its own, so that what it started goes with it.
        start_new_session=True,
        env={**os.environ, "PATH": path, "LC_ALL": "C"},
    )
    try:
        output, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired as error:
        os.killpg(process.pid, signal.SIGKILL)
        try:
            # What it printed so far; a process stuck in the driver cannot even be killed.
            output, _ = process.communicate(timeout=5)
        except subprocess.TimeoutExpired:
            output = error.output.decode(errors="replace") if isinstance(error.output, bytes) else ""
        raise Failed(f"{' '.join(argv)} did not end within {timeout_s:g} s", output) from error
    if process.returncode:
        # The last line that says something: tables end in rules and lone comment signs.
        said = [line.strip() for line in output.splitlines() if re.search(r"\w", line)] or ["no output"]
        raise Failed(f"{' '.join(argv)} ended with code {process.returncode}: {said[-1][:200]}", output)
    return output


# amd-smi


def smi(text: str) -> list[dict[str, Any]]:
    """The entries of the GPUs in an answer of ``amd-smi ... --json``, whatever warnings stand before it.

    Some commands wrap the list in ``gpu_data`` since amd-smi 26, the one of ROCm 7.
    """
    start = re.search(r"^[\[{]", text, re.MULTILINE)
    if start is None:
        raise ValueError(f"no JSON but {text.strip()[:200]!r}")
    try:
        found, _ = json.JSONDecoder().raw_decode(text[start.start() :])
    except ValueError as error:
        raise ValueError(f"its JSON is not whole: {error}") from error
    entries = found.get("gpu_data") if isinstance(found, dict) else found
    if not isinstance(entries, list) or not all(isinstance(of, dict) and "gpu" in of for of in entries):
        raise ValueError("its JSON lists no GPUs")
    return entries


def at(entry: Any, *path: str) -> Any:
    """The value at a path of an entry; None where it is missing or N/A. Raises ValueError on another form."""
    for step in path:
        if entry is None or entry == "N/A":
            return None
        if not isinstance(entry, dict):
            raise ValueError(f"{'.'.join(path)} is {entry!r}")
        entry = entry.get(step)
    if isinstance(entry, dict) and set(entry) <= {"value", "unit"}:
        entry = entry.get("value")
    return None if entry == "N/A" else entry


def mib(entry: Any, *path: str) -> float | None:
    """An amount of memory in MiB; amd-smi calls them MB."""
    value = at(entry, *path)
    if value is None:
        return None
    for step in path:
        entry = entry[step]
    unit = entry.get("unit", "MB") if isinstance(entry, dict) else "MB"
    try:
        return float(value) * _UNITS_MIB[str(unit).upper()]
    except (KeyError, ValueError, TypeError) as error:
        raise ValueError(f"{'.'.join(path)} is {value!r} {unit!r}") from error


def bad_pages(entry: dict[str, Any]) -> list[str]:
    """The kinds of bad pages of a GPU with their numbers. Raises ValueError when it does not say."""
    found = []
    for kind in ("retired", "pending", "un_res"):
        pages = at(entry, kind)
        if isinstance(pages, list):
            if pages:
                found.append(f"{len(pages)} {kind}")
        elif pages != "No bad pages found.":
            raise ValueError(f"amd-smi does not tell of {kind} pages; it must run as root")
    return found


# rocm-smi

_TABLES = {"weight": "Weight", "num_hops": "Hops", "link_type": "Link Type"}


def rocm_smi_topology(text: str) -> list[dict[str, Any]]:
    """The links in an answer of ``rocm-smi --showtopo``, in the form of ``amd-smi topology --json``.

    Three tables of rows and columns by GPU; what stands for a GPU and itself is left out. It tells nothing of
    a link's state. Raises ValueError where a table is missing or not whole.
    """
    if "End of ROCm SMI Log" not in text:
        last = text.strip().splitlines()[-1:] or ["nothing"]
        raise ValueError(f"rocm-smi stopped half-way: {last[0][:200]}")
    links: dict[int, dict[int, dict[str, Any]]] = {}
    for key, title in _TABLES.items():
        table = re.search(rf"^=+ {title} between two GPUs =+\n((?: *GPU.*\n)+)", text, re.MULTILINE)
        columns, *rows = [line.split() for line in table[1].splitlines()] if table else [[]]
        if (
            not rows
            or [row[0] for row in rows] != columns
            or {len(row) for row in rows} != {len(columns) + 1}
        ):
            raise ValueError(f"rocm-smi's table of {title} between two GPUs is not whole")
        for name, *values in rows:
            of = links.setdefault(int(name.removeprefix("GPU")), {})
            for column, value in zip(columns, values, strict=True):
                other = of.setdefault(int(column.removeprefix("GPU")), {})
                other[key] = int(value) if value.isdigit() else value
    return [
        {"gpu": gpu, "links": [{"gpu": other, **link} for other, link in of.items() if other != gpu]}
        for gpu, of in links.items()
    ]


# rocminfo


def rocm_agents(text: str) -> Counter[str]:
    """The GPUs that the ROCm runtime can use, by their architecture (``gfx942``)."""
    if "*** Done ***" not in text:
        last = text.strip().splitlines()[-1:] or ["nothing"]
        raise ValueError(f"rocminfo stopped half-way: {last[0][:200]}")
    # An agent's name stands two blanks in; the ISA's, further in, repeats it with features.
    return Counter(re.findall(r"^  Name:\s+(gfx\w+)\s*$", text, re.MULTILINE))


# ROCm Validation Suite


def rvs(text: str) -> dict[str, dict[str, tuple[float | None, bool]]]:
    """What was reached at the end, by action and GPU, and whether the suite was content with it.

    GFLOPS, or None where only pass or fail is told. An action that began and reported no GPU is there, empty.
    """
    found: dict[str, dict[str, tuple[float | None, bool]]] = {
        name: {} for name in re.findall(r"Action name\s*:\s*(\S+)", text)
    }
    result = re.compile(
        r"\[RESULT\] \[[^\]]*\] \[(?P<action>[^\]]+)\] \[GPU:: (?P<gpu>\d+)\] "
        r"(?:GFLOPS (?P<gflops>[\d.]+) .*)?(?:met|pass):\s*(?P<verdict>TRUE|FALSE)"
    )
    for match in result.finditer(text):
        gflops = float(match["gflops"]) if match["gflops"] else None
        found.setdefault(match["action"], {})[match["gpu"]] = (gflops, match["verdict"] == "TRUE")
    if not found:
        raise ValueError("it reports no action")
    return found


def rvs_errors(text: str) -> list[str]:
    """The lines by which the suite complains."""
    return [line.strip() for line in text.splitlines() if "[ERROR" in line]


# TransferBench


def transferbench_a2a(text: str) -> tuple[float, int]:
    """The average bandwidth of all GPUs writing to all others in GB/s, and how many GPUs took part."""
    match = re.search(r"^Average\s+bandwidth \(GPU Timed\):\s*([\d.]+) GB/s", text, re.MULTILINE)
    if match is None:
        raise ValueError("it tells no average bandwidth")
    rows = re.findall(r"^\W*GPU (\d+)\b(?:\W+(?:[\d.]+|N/A))+", text, re.MULTILINE)
    return float(match[1]), len(set(rows))


def transferbench_p2p(text: str) -> dict[str, float]:
    """The averages from GPU to GPU in GB/s, by ``UniDir`` and ``BiDir``."""
    found = {}
    for way in ("UniDir", "BiDir"):
        # Four columns: CPU->CPU, CPU->GPU, GPU->CPU, GPU->GPU.
        match = re.search(rf"Averages \(During\s+{way}\):\s+(?:(?:[\d.]+|N/A)\s+){{3}}([\d.]+)", text)
        if match is None:
            raise ValueError(f"it tells no average of {way} between GPUs")
        found[way] = float(match[1])
    return found


# rccl-tests


def rccl(text: str) -> dict[str, Any]:
    """What a test of rccl-tests measured: bus bandwidth in GB/s by size, errors, and how many GPUs took part.

    Of out-of-place and in-place the slower counts.
    """
    sizes: dict[int, float] = {}
    wrong = 0
    row = re.compile(
        r"^\s*(\d+)\s+\d+\s+\w+\s+\S+\s+-?\d+((?:\s+[\d.]+){3})\s+(\d+|N/A)((?:\s+[\d.]+){3})\s+(\d+|N/A)\s*$",
        re.MULTILINE,
    )
    for match in row.finditer(text):
        sizes[int(match[1])] = min(float(match[2].split()[2]), float(match[4].split()[2]))
        wrong += sum(int(count) for count in (match[3], match[5]) if count != "N/A")
    bounds = re.search(r"# Out of bounds values\s*:\s*(\d+) (\w+)", text)
    if not sizes or bounds is None:
        raise ValueError("its table is not whole")
    ranks = re.findall(r"^#\s+Rank\s+(\d+)\b", text, re.MULTILINE)
    ok = bounds[2] == "OK"
    return {
        "busbw": sizes,
        "wrong": wrong if ok else wrong + int(bounds[1]),
        "ranks": len(set(ranks)),
        "ok": ok,
    }
