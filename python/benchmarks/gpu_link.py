"""What the link between two GPUs of a host gives, and what of it NIXL gets, by the cut of a KV cache.

usage: python gpu_link.py OUT.json [--gib 2.5] [--repeats 7]

Wants torch, nixl and two GPUs. One process owns a KV cache's worth of memory on the first GPU, another reads
it into its own on the second, as a decode engine reads from a prefill engine: first CUDA's own copy (the
link), then NIXL's READ of the same bytes in ever smaller pieces, without gaps merged or not (a fresh cache
has its blocks in a row, a used one has not), by UCX's defaults and by other settings. The last rows look for
the end of the transfer only every 10 ms, as a decode engine does between two steps: what its metrics then
call GB/s. Prints a Markdown table; the median of the repeats, of which the first, which makes connections,
is left out.
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
    "as inventory h200": {"UCX_TLS": "cuda_ipc,cuda_copy,sm,self"},
    "1 stream": {"UCX_CUDA_IPC_MAX_STREAMS": "1"},
    "32 streams": {"UCX_CUDA_IPC_MAX_STREAMS": "32"},
}
STEP_S = 0.010


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


def read_all(pipe: Connection, size: int, repeats: int) -> list[Json]:
    """Read the owner's memory by every cut; a figure each."""
    import torch  # noqa: PLC0415  # as above

    metadata, address, total = pipe.recv()
    memory = torch.zeros(size, dtype=torch.uint8, device="cuda:1")
    own = agent("reader")
    own.register_memory(memory)
    peer = own.add_remote_agent(metadata)
    found = []
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
                while state == "PROC":
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
            found.append(
                {
                    "pieces": label,
                    "in a row": not apart,
                    "looked for every": f"{poll_s * 1000:g} ms" if poll_s else "always",
                    "descriptors": told.descCount,
                    "post ms": round(told.postDuration / 1000, 2),
                    "ms": round(seconds * 1000, 2),
                    "GB/s": round(size / seconds / 1e9, 1),
                }
            )
    return found


def reader(size: int, repeats: int) -> list[Json]:
    """Both processes of one UCX setting."""
    context = multiprocessing.get_context("spawn")
    mine, its = context.Pipe()
    other = context.Process(target=owner, args=(its, size))
    other.start()
    try:
        return read_all(mine, size, repeats)
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
        given.out.write_text(json.dumps(reader(size, given.repeats)), encoding="utf-8")
        return 0
    found = [{"UCX": "", **copied(size, given.repeats)}]
    for label, settings in SETTINGS.items():
        part = given.out.with_suffix(".part")
        # UCX reads its settings once a process.
        argv = [sys.executable, __file__, str(part), "--gib", str(given.gib)]
        argv += ["--repeats", str(given.repeats), "--one"]
        done = subprocess.run(
            argv, env={**os.environ, **settings}, capture_output=True, text=True, check=False
        )
        if done.returncode:
            sys.stderr.write(f"{label}: {done.stderr[-2000:]}\n")
            continue
        found += [{"UCX": label, **one} for one in json.loads(part.read_text(encoding="utf-8"))]
        part.unlink()
    given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    columns = ["UCX", "pieces", "in a row", "looked for every", "descriptors", "post ms", "ms", "GB/s"]
    sys.stdout.write(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|\n")
    for one in found:
        sys.stdout.write(f"| {' | '.join(str(one.get(column, '')) for column in columns)} |\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
