"""The agent of a node: takes chunks from the source and from peers, gives them to peers, until all is here.

    python3 -m splitrail_models.agent JOB

JOB is a file of JSON (see Job). What has been reached is written to the job's status file, as JSON (see
Status). It serves the others until it is told to stop, also when it has given up: then with exit code 3, else
0. A job that is started again goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .folder import Part, PartError
from .manifest import File, Manifest
from .peers import Asker, Peer, PeerError, Ring
from .server import ChunkServer
from .sources import Source, SourceError, make_source

GIVEN_UP = 3
REPORT_S = 1.0
# After a peer said that it does not have a chunk, or a source that it does not answer, in seconds.
REST_S, SOURCE_REST_S = 0.25, 2.0


@dataclass(frozen=True)
class Job:
    """What to bring, and with whom. Durations are in seconds.

    node: this node's name in nodes, which has the address of every node that takes part. folder: the
    model's. seeds: nodes that have it already; where there is none, fetchers ask the source. stall_s: without
    a byte for so long the node gives up. gone_s, stuck_s: a peer that does not answer, or does not move, is
    passed over.
    """

    node: str
    nodes: dict[str, str]
    port: int
    token: str
    folder: str
    manifest: dict[str, Any]
    status: str
    seeds: list[str] = field(default_factory=list)
    fetchers: list[str] = field(default_factory=list)
    source: dict[str, Any] = field(default_factory=dict)
    source_token: str = ""
    chunk_mib: float = 64
    streams: int = 4
    rehash: bool = False
    stall_s: float = 300
    gone_s: float = 20
    stuck_s: float = 60
    linger_s: float = 6 * 3600


@dataclass
class Status:
    """What an agent has reached. from_*, served: bytes; wrong: files whose digest is not the manifest's."""

    state: str = "starting"  # starting, running, checking, done, failed
    chunks: int = 0
    have: int = 0
    from_source: int = 0
    from_peers: int = 0
    served: int = 0
    seconds: float = 0.0
    error: str = ""
    wrong: list[dict[str, str]] = field(default_factory=list)


class GiveUp(Exception):
    """The model cannot be finished; the message says why."""


class Agent:
    """One node's part in bringing a model. Raises OSError where the disk or the address does not do."""

    def __init__(self, job: Job) -> None:
        self.job, self.status = job, Status()
        self.began = self.moved_at = time.monotonic()
        self.manifest = Manifest.from_dict(job.manifest)
        self.part = Part(Path(job.folder), self.manifest, int(job.chunk_mib * 2**20), rehash=job.rehash)
        peers = [Peer(name, address) for name, address in job.nodes.items() if name != job.node]
        self.ring = Ring(job.node, peers, job.seeds or job.fetchers, job.gone_s, job.stuck_s)
        self.server = ChunkServer(job.nodes[job.node], job.port, job.token, self.part, self._moved)
        # Of a seed nothing is asked of the source: it may be gone.
        asks = job.node in job.fetchers and not job.seeds
        self.source: Source | None = make_source(job.source, job.source_token) if asks else None
        self._lock, self._counting = threading.Condition(), threading.Lock()
        self._open = set(self.part.missing())
        self._lanes: dict[int, list[int]] = {}
        for index in sorted(self._open):
            self._lanes.setdefault(self.ring.lane(index), []).append(index)
        self._rests: dict[int, float] = {}
        self._attempts: dict[int, int] = {}
        self._last_error = ""
        self._broken: OSError | None = None
        self._failing_since: float | None = None
        self._over = False
        self.stopping = threading.Event()

    def count(self, what: str, done: int) -> None:
        """Bytes have come, from the source or from peers."""
        with self._counting:
            setattr(self.status, what, getattr(self.status, what) + done)
        self.moved_at = time.monotonic()

    def _moved(self) -> int:
        return self.status.from_source + self.status.from_peers

    # -- choosing

    def _mine(self) -> int | None:
        """A chunk that is this node's to take from the source."""
        return next((index for index in sorted(self._open) if self.ring.origin(index) == self.job.node), None)

    def _others(self) -> int | None:
        """A chunk to ask a peer for: the earliest, in the order in which distributors get them."""
        now, best = time.monotonic(), None
        for lane, indices in self._lanes.items():
            while indices and indices[0] in self.part.have:
                indices.pop(0)
            if self._rests.get(lane, 0) > now:
                continue
            for index in indices:
                if index in self._open and not (self.source and self.ring.origin(index) == self.job.node):
                    key = (index // len(self.job.nodes), lane)
                    best = min(best or (key, index), (key, index))
                    break
        return best[1] if best else None

    @contextmanager
    def _taking(self, source: bool) -> Iterator[int | None]:
        """A chunk for this thread alone; it is open to others again unless it is here afterwards."""
        with self._lock:
            index = self._mine() if source else self._others()
            if index is None:
                self._lock.wait(REST_S)
            else:
                self._open.discard(index)
        try:
            yield index
        finally:
            # Who found nothing wakes nobody: idle threads would keep each other awake.
            if index is not None:
                with self._lock:
                    if index not in self.part.have:
                        self._open.add(index)
                    self._lock.notify_all()

    # -- taking

    def _writer(self, index: int, counter: str) -> _Writer:
        return _Writer(self, index, counter)

    def _from_source(self) -> None:
        while not self._over:
            with self._taking(source=True) as index:
                if index is None or self.source is None:
                    continue
                chunk, total = self.part.chunks[index], hashlib.sha256()
                try:
                    with self._writer(index, "from_source") as write:
                        for data in self.source.read(chunk.file, chunk.offset, chunk.length):
                            total.update(data)
                            write(memoryview(data))
                except SourceError as error:
                    self._source_failed(str(error))
                    continue
                self._failing_since, self.ring.source_fails = None, False
                self._arrived(index, total.hexdigest())

    def _source_failed(self, why: str) -> None:
        now = time.monotonic()
        self._last_error = why
        self._failing_since = self._failing_since or now
        if now - self._failing_since > self.job.gone_s:
            # Others take over; after a while this node tries again.
            self.ring.source_fails = not self.ring.source_fails
            self._failing_since = now
        self.stopping.wait(SOURCE_REST_S)

    def _from_peers(self) -> None:
        asker = Asker(self.job.port, self.job.token, self.manifest.digest)
        # The more peers, the shorter each is waited for: a round of all of them stays at some seconds.
        wait = min(2.0, 8 / len(self.job.nodes))
        while not self._over:
            with self._taking(source=False) as index:
                if index is None:
                    continue
                attempt = self._attempts[index] = self._attempts.get(index, -1) + 1
                peer = self.ring.whom(index, attempt)
                if peer is None:
                    self.stopping.wait(REST_S)
                    continue
                try:
                    with self._writer(index, "from_peers") as write:
                        digest = asker.fetch(
                            peer, index, self.part.chunks[index].length, wait=wait, write=write
                        )
                except PeerError as error:
                    self._last_error, digest = str(error), None
                if digest is None:
                    self._rests[self.ring.lane(index)] = time.monotonic() + REST_S
                else:
                    self._arrived(index, digest)

    def _arrived(self, index: int, digest: str) -> None:
        self.part.note(index, digest)
        self.server.tell()

    def _guarded(self, work: Any) -> None:
        try:
            work()
        except OSError as error:  # of the disk; those of the network are handled where they arise
            with self._lock:
                self._broken = error
                self._lock.notify_all()

    # -- the whole

    def run(self) -> None:
        """Bring the model and give it its name. Raises GiveUp."""
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        threading.Thread(target=self._report, daemon=True).start()
        self.status.chunks = len(self.part.chunks)
        if not self.part.whole:
            self.status.state = "running"
            self._bring()
            self.status.state = "checking"
            self._check()
            try:
                self.part.publish()
            except (OSError, PartError) as error:
                raise GiveUp(f"{self.job.folder}: {error}") from error
        self.status.state = "done"
        self.write_status()

    def _bring(self) -> None:
        streams = [self._from_peers] * self.job.streams + [self._from_source] * (
            self.job.streams if self.source else 0
        )
        threads = [threading.Thread(target=self._guarded, args=(each,), daemon=True) for each in streams]
        for thread in threads:
            thread.start()
        try:
            with self._lock:
                while len(self.part.have) < len(self.part.chunks):
                    self._lock.wait(1)
                    self._give_up_if_vain()
        finally:
            self._over = True
        for thread in threads:
            thread.join()

    def _give_up_if_vain(self) -> None:
        if self._broken:
            raise GiveUp(f"{self.part.root}: {self._broken}")
        if self.stopping.is_set():
            raise GiveUp("stopped before the model was whole; what is here is kept")
        if time.monotonic() - self.moved_at > self.job.stall_s:
            raise GiveUp(
                f"nothing has come for {self.job.stall_s:.0f} s, {len(self.part.missing())} of "
                f"{len(self.part.chunks)} chunks are missing; what is here is kept; "
                f"last: {self._last_error or 'no peer had one'}"
            )

    def _check(self) -> None:
        """Compare every file with its digest: chunks are compared between nodes only."""

        def wrong(file: File) -> str:
            return self.part.wrong_file(file)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            found = dict(zip(self.manifest.files, pool.map(wrong, self.manifest.files), strict=True))
        bad = [file for file, digest in found.items() if digest]
        if bad:
            self.part.forget(bad)
            self.status.wrong = [
                {"path": file.path, "found": found[file], "wanted": file.digest} for file in bad
            ]
            raise GiveUp(
                f"{', '.join(file.path for file in bad)}: the digest is wrong; fetched anew the next time"
            )

    def _report(self) -> None:
        while not self.stopping.wait(REPORT_S):
            self.write_status()

    def write_status(self) -> None:
        """Replace the status file. Raises OSError."""
        self.status.have, self.status.served = len(self.part.have), self.server.served
        if self.status.state not in ("done", "failed"):
            self.status.seconds = round(time.monotonic() - self.began, 2)
        write_status(Path(self.job.status), self.status)


class _Writer:
    """Writes a chunk to its place as it comes, and counts."""

    def __init__(self, agent: Agent, index: int, counter: str) -> None:
        self._agent, self._counter = agent, counter
        self._path, self._at = agent.part.path(index), agent.part.chunks[index].offset
        self._file = -1

    def __enter__(self) -> _Writer:
        self._file = os.open(self._path, os.O_WRONLY)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def __call__(self, data: memoryview) -> None:
        done = 0
        while done < len(data):
            done += os.pwrite(self._file, data[done:], self._at + done)
        self._at += done
        self._agent.count(self._counter, done)


def write_status(path: Path, status: Status) -> None:
    """Replace the status file as a whole. Raises OSError."""
    fresh = path.with_name(f"{path.name}.{threading.get_ident()}")
    fresh.write_text(json.dumps(asdict(status)), encoding="utf-8")
    fresh.replace(path)


def main() -> int:
    """Do the job of the file that is named on the command line."""
    job = Job(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    os.umask(0o022)
    agent = None
    try:
        agent = Agent(job)
        signal.signal(signal.SIGTERM, lambda *_: agent.stopping.set())
        agent.run()
    except (GiveUp, PartError, SourceError, OSError) as error:
        status = agent.status if agent else Status()
        status.state, status.error = "failed", str(error)
        write_status(Path(job.status), status)
        if agent is None:
            return GIVEN_UP
    # Others may want what is here, also of a node that cannot finish.
    agent.stopping.wait(job.linger_s)
    if agent.status.state != "done":
        return GIVEN_UP
    agent.write_status()
    return 0


if __name__ == "__main__":
    sys.exit(main())
