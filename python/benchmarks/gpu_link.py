"""What the link between two GPUs of a host gives, and what of it NIXL gets, by the cut of a KV cache.

usage: python gpu_link.py OUT.json [--gib 2.5] [--repeats 7]

Wants torch, nixl and two GPUs. One process owns a KV cache's worth of memory on the first GPU, another reads
it into its own on the second, as a decode engine reads from a prefill engine: first CUDA's own copy (the
link), then NIXL's READ of the same bytes in ever smaller pieces, without gaps merged or not (a fresh cache
has its blocks in a row, a used one has not), by UCX's defaults and by other settings. The last rows look for
the end of the transfer only every 10 ms, as a decode engine does between two steps: what its metrics then
call GB/s. Prints a Markdown table, setting by setting; the median of the repeats, of which the first, which
makes connections, is left out. Exit code 1 when a setting did not come to its end.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

Json = dict[str, Any]
KIB, MIB, GIB = 2**10, 2**20, 2**30
# Bytes of a piece, 0 for one piece; in brackets the block of Qwen3-14B in bf16 that is as long.
PIECES = {
    "whole": 0,
    "20 MiB (128 tokens, all layers)": 20 * MIB,
    "1 MiB": MIB,
    "32 KiB (16 tokens)": 32 * KIB,
}
SETTINGS: dict[str, dict[str, str]] = {
    "UCX's defaults": {},
    "transports by name": {"UCX_TLS": "cuda_ipc,cuda_copy,sm,tcp,self"},
    "1 stream": {"UCX_CUDA_IPC_MAX_STREAMS": "1"},
    "32 streams": {"UCX_CUDA_IPC_MAX_STREAMS": "32"},
}
STEP_S = 0.010
# A transfer that takes longer has been lost; all of a setting's take some 30 s.
LOST_S, SETTING_S = 20.0, 90
COLUMNS = ["UCX", "pieces", "in a row", "looked for every", "descriptors", "post ms", "ms", "GB/s"]


def agent(name: str) -> Any:
    """A NIXL agent on UCX that counts what it moves, as vLLM's has it."""
    from nixl._api import nixl_agent, nixl_agent_config  # noqa: PLC0415  # not there where nothing is measured

    return nixl_agent(name, nixl_agent_config(backends=["UCX"], capture_telemetry=True))


def pieces_of(address: int, size: int, piece: int, device: int) -> list[tuple[int, int, int]]:
    """Address, length and device of each piece."""
    return [(address + at, piece, device) for at in range(0, size - piece + 1, piece)]


def order(count: int, apart: bool) -> list[int]:
    """The pieces in a row, or in an order that leaves no two neighbours to be joined."""
    return [*range(0, count, 2), *range(count - 1 - count % 2, 0, -2)] if apart else list(range(count))


def owner(pipe: Connection, size: int) -> None:
    """Offer memory of the first GPU until told to stop."""
    import torch  # noqa: PLC0415  # as above

    memory = torch.randint(0, 255, (size,), dtype=torch.uint8, device="cuda:0")
    torch.cuda.synchronize()
    own = agent("owner")
    registered = own.register_memory(memory)
    pipe.send((own.get_agent_metadata(), memory.data_ptr(), int(memory[:4096].sum())))
    pipe.recv()
    own.deregister_memory(registered)


def read_all(pipe: Connection, size: int, repeats: int) -> Iterator[Json]:
    """Read the owner's memory by every cut; a figure each. Raises EOFError when the owner is gone."""
    import torch  # noqa: PLC0415  # as above

    metadata, address, total = pipe.recv()
    memory = torch.zeros(size, dtype=torch.uint8, device="cuda:1")
    own = agent("reader")
    own.register_memory(memory)
    peer = own.add_remote_agent(metadata)
    for label, piece in PIECES.items():
        for apart, poll_s in ((False, 0.0), (True, 0.0), (True, STEP_S)):
            if (apart and not piece) or (poll_s and piece < 20 * MIB):
                continue
            length = piece or size
            here = own.prep_xfer_dlist("", pieces_of(memory.data_ptr(), size, length, 1), "VRAM")
            there = own.prep_xfer_dlist(peer, pieces_of(address, size, length, 0), "VRAM")
            asked = order(size // length, apart)
            handle = own.make_prepped_xfer("READ", here, asked, there, asked)
            times = []
            for _ in range(repeats):
                memory.zero_()
                torch.cuda.synchronize(memory.device)  # else it may come after the bytes
                began = time.perf_counter()
                state = own.transfer(handle)
                while state == "PROC" and time.perf_counter() - began < LOST_S:
                    if poll_s:
                        time.sleep(poll_s)
                    state = own.check_xfer_state(handle)
                times.append(time.perf_counter() - began)
                if state != "DONE" or int(memory[:4096].sum()) != total:
                    raise RuntimeError(f"{label}: {state}, or other bytes than were offered")
            told = own.get_xfer_telemetry(handle)
            own.release_xfer_handle(handle)
            own.release_dlist_handle(here)
            own.release_dlist_handle(there)
            seconds = statistics.median(times[1:])
            yield {
                "pieces": label,
                "in a row": not apart,
                "looked for every": f"{poll_s * 1000:g} ms" if poll_s else "always",
                "descriptors": told.descCount,
                "post ms": round(told.postDuration / 1000, 2),
                "ms": round(seconds * 1000, 2),
                "GB/s": round(size / seconds / 1e9, 1),
            }


def reader(size: int, repeats: int, out: Path) -> None:
    """Both processes of one UCX setting; a line of JSON in ``out`` as soon as it is known."""
    context = multiprocessing.get_context("spawn")
    mine, its = context.Pipe()
    other = context.Process(target=owner, args=(its, size))
    other.start()
    its.close()  # so that an owner that dies is noticed
    try:
        with out.open("a", encoding="utf-8") as sink:
            for one in read_all(mine, size, repeats):
                sink.write(json.dumps(one) + "\n")
                sink.flush()
    finally:
        mine.send("stop")
        other.join(30)
        if other.is_alive():
            other.kill()


def copied(size: int, repeats: int) -> Json:
    """CUDA's own copy from GPU to GPU."""
    import torch  # noqa: PLC0415  # as above

    source = torch.empty(size, dtype=torch.uint8, device="cuda:0")
    sink = torch.empty(size, dtype=torch.uint8, device="cuda:1")
    times = []
    for _ in range(repeats):
        for device in (0, 1):
            torch.cuda.synchronize(device)
        began = time.perf_counter()
        sink.copy_(source)
        for device in (0, 1):
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    seconds = statistics.median(times[1:])
    return {
        "pieces": "CUDA's own copy",
        "ms": round(seconds * 1000, 2),
        "GB/s": round(size / seconds / 1e9, 1),
    }


def main() -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description="The link between two GPUs, and NIXL on it.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--gib", type=float, default=2.5, help="of a transfer; 16,000 tokens are 2.4")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    size = int(given.gib * GIB) // (20 * MIB) * 20 * MIB
    if given.one:
        reader(size, given.repeats, given.out)
        return 0
    sys.stdout.write(f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|\n")
    found = [{"UCX": "", **copied(size, given.repeats)}]
    show(found)
    good = True
    for label, settings in SETTINGS.items():
        part = given.out.with_suffix(".part")
        part.write_text("", encoding="utf-8")
        # UCX reads its settings once a process.
        argv = [sys.executable, __file__, str(part), "--gib", str(given.gib)]
        argv += ["--repeats", str(given.repeats), "--one"]
        try:
            done = subprocess.run(
                argv,
                env={**os.environ, **settings},
                capture_output=True,
                text=True,
                check=False,
                timeout=SETTING_S,
            )
            trouble = done.stderr[-2000:] if done.returncode else ""
        except subprocess.TimeoutExpired:
            trouble = f"not through after {SETTING_S} s"
        rows = [{"UCX": label, **json.loads(line)} for line in part.read_text(encoding="utf-8").splitlines()]
        part.unlink()
        show(rows)
        found += rows
        given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        if trouble:
            good = False
            sys.stderr.write(f"{label}: {trouble}\n")
    return 0 if good else 1


def show(rows: list[Json]) -> None:
    """Lines of the table, at once."""
    for one in rows:
        sys.stdout.write(f"| {' | '.join(str(one.get(column, '')) for column in COLUMNS)} |\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
