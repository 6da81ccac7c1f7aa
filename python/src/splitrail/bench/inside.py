"""Offer planned traffic with ``vllm bench serve``; runs inside the serving image, standard library only.

Reads a job from stdin and prints one JSON document on its last line:
{"shards": [{"planned", "start", "ttft", "latency", "tokens", "errors"}]}, lists over its requests,
or {"error": str} with exit code 2. ``start`` is of the clock that all processes share (CLOCK_MONOTONIC).

The job: {"url", "model", "key", "block", "salt", "vocabulary": [first, last], "drain_s",
"shards": [[[at_s, isl, osl, [block, ...]], ...], ...]}

vLLM's data set `timed_trace` takes everything from a file: when to send, how long prompt and answer are, and
the names of the prompt's blocks. It wants a tokenizer to draw tokens from, and gets one that is made here of
ordinary token ids: so the model's own need not be on this host.

One job at a time: a controller that is interrupted leaves its job running here, and its traffic would be
measured with the next one's. So a job that begins ends the one before it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

Json = dict[str, Any]
# What the command `vllm bench serve` runs, without it: it looks for a package called vllm, and the CPU
# build's is called otherwise.
SERVE = (
    "import argparse; from vllm.benchmarks import serve; parser = argparse.ArgumentParser('bench serve'); "
    "serve.add_cli_args(parser); serve.main(parser.parse_args())"
)
# vllm's own imports take long on a small machine.
START_S = 300.0
# Held by the job that runs, with the id of its process group.
LOCK = Path(tempfile.gettempdir()) / "splitrail-bench.lock"
END_S = 30.0


def tokenizer(folder: Path, first: int, last: int) -> None:
    """Write a tokenizer whose ordinary tokens have these ids."""
    words = {f"w{number}": number for number in range(first, last + 1)}
    words["[UNK]"] = 0
    model = {"type": "WordLevel", "vocab": words, "unk_token": "[UNK]"}
    special = {"id": 0, "content": "[UNK]", "single_word": False, "lstrip": False, "rstrip": False}
    text = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{**special, "normalized": False, "special": True}],
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": model,
    }
    (folder / "tokenizer.json").write_text(json.dumps(text))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def trace(path: Path, requests: list[list[Any]]) -> None:
    """Write a trace as the data set reads it, a line a request."""
    keys = ("timestamp", "input_length", "output_length", "hash_ids")
    path.write_text("".join(json.dumps(dict(zip(keys, one))) + "\n" for one in requests))  # noqa: B905  # Python 3.9


def command(job: Json, folder: Path, name: str, count: int) -> list[str]:
    """``vllm bench serve`` for one shard."""
    options = {
        "backend": "openai",
        "base-url": job["url"],
        "endpoint": "/v1/completions",
        "model": job["model"],
        "tokenizer": str(folder),
        "dataset-name": "timed_trace",
        "dataset-path": str(folder / f"{name}.jsonl"),
        "timed-trace-chunk-hash-size": str(job["block"]),
        "num-prompts": str(count),
        "result-dir": str(folder),
        "result-filename": f"{name}.json",
        "temperature": "0",
        # It serves already: no request of vLLM's own beside those planned.
        "ready-check-timeout-sec": "0",
        "percentile-metrics": "ttft,tpot,e2el",
    }
    given = [part for key, value in options.items() for part in (f"--{key}", value)]
    return [sys.executable, "-c", SERVE, *given, "--disable-tqdm", "--save-result", "--save-detailed"]


def start(job: Json, folder: Path, name: str, requests: list[list[Any]]) -> subprocess.Popen[str]:
    """Start a shard; its output goes to a file."""
    trace(folder / f"{name}.jsonl", requests)
    environment = {
        **os.environ,
        # Blocks of one name get their tokens by Python's hash: alike in all shards, others in the next run.
        "PYTHONHASHSEED": str(job["salt"]),
        "VLLM_LOGGING_LEVEL": "WARNING",
    }
    if job.get("key"):
        environment["OPENAI_API_KEY"] = job["key"]
    with (folder / f"{name}.log").open("w") as sink:
        return subprocess.Popen(
            command(job, folder, name, len(requests)),
            stdout=sink,
            stderr=subprocess.STDOUT,
            env=environment,
            text=True,
        )


def read(folder: Path, name: str, requests: list[list[Any]]) -> Json:
    """What a shard measured; where it was ended, that none of its requests was answered."""
    planned = [one[0] for one in requests]
    path = folder / f"{name}.json"
    if not path.exists():
        none = [0.0] * len(planned)
        late = ["not through when the benchmark was ended"] * len(planned)
        return {
            "planned": planned,
            "start": planned,
            "ttft": none,
            "latency": none,
            "tokens": none,
            "errors": late,
        }
    found = json.loads(path.read_text())
    return {
        "planned": planned,
        "start": found["start_times"],
        "ttft": found["ttfts"],
        "latency": found["latencies"],
        "tokens": found["output_lens"],
        "errors": [error[-300:] for error in found["errors"]],
    }


def run(job: Json) -> Json:
    """Offer the job's traffic. Raises RuntimeError with the end of a shard's log."""
    with tempfile.TemporaryDirectory(prefix="bench-") as place:
        folder = Path(place)
        tokenizer(folder, *job["vocabulary"])
        shards = [(f"shard{number}", requests) for number, requests in enumerate(job["shards"])]
        finish(job, folder, shards)
        return {"shards": [read(folder, name, requests) for name, requests in shards]}


def finish(job: Json, folder: Path, shards: list[tuple[str, list[list[Any]]]]) -> None:
    """Start shards side by side and wait until they are through, or too late."""
    running = [(name, start(job, folder, name, requests)) for name, requests in shards]
    deadline = time.monotonic() + START_S + max(requests[-1][0] for _, requests in shards) + job["drain_s"]
    for name, process in running:
        try:
            process.wait(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            continue
        if process.returncode or not (folder / f"{name}.json").exists():
            raise RuntimeError(reason((folder / f"{name}.log").read_text(), process.returncode))


def reason(log: str, code: int) -> str:
    """Why a shard failed, with the cure where it is known."""
    if "timed_trace" in log and "invalid choice" in log:
        return "this image's vLLM has no data set timed_trace (0.32 has one): measure with --url"
    return f"vllm bench serve ended with code {code}:\n{log[-1500:]}"


def alone() -> Any:
    """End the job that still runs, and keep others off while the file returned is open.

    Raises RuntimeError where it does not end.
    """
    # Its processes have its group, so that they end together; a session's leader has its own already.
    if os.getpgrp() != os.getpid():
        os.setpgrp()
    held = LOCK.open("a+")
    deadline = time.monotonic() + END_S
    while True:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError as error:
            held.seek(0)
            group = held.read().strip()
            if time.monotonic() > deadline:
                raise RuntimeError(f"the job before, process group {group}, does not end: kill it") from error
            # Only while the lock is held: the number is of no other process then.
            if group.isdigit():
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(int(group), signal.SIGKILL)
            time.sleep(0.2)
    held.truncate(0)
    held.write(str(os.getpgrp()))
    held.flush()
    return held


def main() -> int:
    """Entry point."""
    try:
        with alone():
            document, code = run(json.load(sys.stdin)), 0
    except (RuntimeError, OSError, ValueError, KeyError) as error:
        document, code = {"error": f"{type(error).__name__}: {error}"}, 2
    sys.stdout.write(json.dumps(document) + "\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
