"""The mesh's hand on a node: runs perftest, reads counters, listens to the wire; told what to do by lines.

Standard library only. It is never installed: the driver sends this text through the channel's stdin and a
Python there runs it (see drive.BOOT). A request is one line of JSON with ``id`` and ``do``; each gets one
line with that ``id`` and ``ok`` or ``error``. It decides nothing: figures go back as they are.

Nothing outlives the channel: when stdin ends, or falls silent longer than the driver ever does, all that was
started is killed; the kernel kills it too (pdeathsig) if the agent itself is killed.
"""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

Json = dict[str, Any]

SILENCE_S = 90.0  # the driver pings every few seconds; after this long there is no driver
PORTS = 200  # how far above the first port one is looked for
TRIES = 4  # servers started on port after port, when others are faster to them
TAIL = 400  # characters of a failed tool's output that are worth sending
BEACON = 0x88B5  # IEEE 802.1's first EtherType for local experiments: no switch or host acts on it
ARP = 0x0806
PIECE = re.compile(r'"?([A-Za-z_][\w.]*)"?\s*:\s*("?)([^",{}\n]*)\2')
ERRORS = re.compile(r"error|fail|couldn|unable|cannot|not found|syndrom|timed out", re.IGNORECASE)
TAKEN = re.compile(r"in use|\bbind|listen to port", re.IGNORECASE)
COLUMNS = {
    # perftest's own tables: with -D a bandwidth test shows a peak of 0, a latency test no distribution.
    ("bw", 5): ("MsgSize", "n_iterations", "BW_peak", "BW_average", "MsgRate"),
    ("lat", 9): (
        "MsgSize",
        "n_iterations",
        "t_min",
        "t_max",
        "t_typical",
        "t_avg",
        "t_stdev",
        "percentile_99",
        "percentile_99.9",
    ),
    ("lat", 4): ("MsgSize", "n_iterations", "t_avg", "tps_average"),
}


class AgentError(Exception):
    """A request cannot be met; the message says why."""


def parse_json(text: str) -> dict[str, float]:
    """The figures in perftest's JSON file.

    Read by pairs and not as JSON: up to 23.x perftest writes keys and words without quotes.
    """
    found = {}
    for key, _, value in PIECE.findall(text):
        try:
            found[key] = float(value)
        except ValueError:
            continue
    return found


def parse_text(kind: str, text: str) -> dict[str, float]:
    """The figures in the last row of perftest's table, and the MTU above it."""
    found: dict[str, float] = {}
    mtu = re.search(r"^\s*Mtu\s*:\s*(\d+)", text, re.MULTILINE)
    if mtu:
        found["Mtu"] = float(mtu.group(1))
    for line in text.splitlines():
        try:
            figures = [float(word) for word in line.split()]
        except ValueError:
            continue
        names = COLUMNS.get((kind, len(figures)))
        if names:
            found.update(zip(names, figures, strict=True))
    return found


def reading(kind: str, file: str, text: str) -> Json:
    """What a client measured: Gb/s or us, how much went through, and the MTU. Raises AgentError."""
    found = {**parse_text(kind, text), **parse_json(file)}
    value = found.get("BW_average") if kind == "bw" else found.get("t_typical", found.get("t_avg"))
    if found.get("n_iterations") == 0:
        raise AgentError("nothing went through")
    if value is None or not 0 < value < float("inf"):
        raise AgentError(f"perftest gave no figure: {complaint(text)}")
    made: Json = {
        "mtu": int(found.get("Mtu", 0)),
        "bytes": int(found.get("MsgSize", 0) * found.get("n_iterations", 0)),
    }
    made["gbps" if kind == "bw" else "us"] = value
    return made


def complaint(text: str) -> str:
    """The lines of an output that say what is wrong, else its end."""
    lines = [line.strip() for line in text.splitlines() if line.strip(" -\t*")]
    said = [line for line in lines if ERRORS.search(line)]
    return "; ".join(said or lines[-2:])[:TAIL] or "it printed nothing"


def listens(pid: int, port: int, proc: Path = Path("/proc")) -> bool:
    """Whether that process listens on a TCP port; asked of the kernel, so no connection is used up."""
    held = set()
    for entry in (proc / str(pid) / "fd").glob("*"):
        try:
            held.add(str(entry.readlink()))
        except OSError:
            continue
    for name in ("tcp", "tcp6"):
        try:
            lines = (proc / "net" / name).read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            words = line.split()
            mine = words[3] == "0A" and int(words[1].rpartition(":")[2], 16) == port
            if mine and f"socket:[{words[9]}]" in held:
                return True
    return False


def counters(root: Path, device: str) -> dict[str, int]:
    """All counters of a device's port."""
    found = {}
    for folder in ("counters", "hw_counters"):
        for file in sorted((root / "sys/class/infiniband" / device / "ports/1" / folder).glob("*")):
            try:
                found[file.name] = int(file.read_text(encoding="ascii"))
            except (OSError, ValueError):
                continue
    return found


def growth(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    """The counters that moved."""
    return {name: after[name] - before.get(name, 0) for name in after if after[name] != before.get(name, 0)}


class Test:
    """One running perftest: a server that waits, or a client that measures."""

    def __init__(
        self, process: subprocess.Popen[bytes], sheet: int, spec: Json, before: dict[str, int]
    ) -> None:
        self.process, self.sheet, self.spec, self.before = process, sheet, spec, before
        self.text = ""
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        if self.process.stdout is not None:
            self.text = self.process.stdout.read().decode(errors="replace")

    def wait(self, until: float) -> bool:
        """Whether it ended by itself before then."""
        try:
            self.process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            return False
        return True

    def end(self) -> str:
        """Kill it if it runs; its output, and what it wrote to its sheet is kept for sheet_text()."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.reader.join(5)
        return self.text

    def close(self) -> str:
        """What perftest wrote as JSON. The sheet is gone afterwards."""
        try:
            return os.pread(self.sheet, 1 << 16, 0).decode(errors="replace")
        finally:
            os.close(self.sheet)


class Agent:
    """Answers requests until there are none."""

    def __init__(self, out: Any) -> None:
        self._out = out
        self._lock = threading.Lock()
        self._jobs: dict[str, dict[str, Test]] = {}
        self._taken: set[int] = set()
        self._help = ""
        self._root = Path("/")
        # One thread makes all processes and lives as long as the agent: pdeathsig follows the thread.
        self._maker = ThreadPoolExecutor(1)

    def answer(self, request: Json) -> None:
        """Meet one request and say how it went."""
        made: Json = {"id": request.get("id")}
        try:
            work = getattr(self, "do_" + str(request.get("do")), None)
            if work is None:
                raise AgentError(f"no such request: {request.get('do')}")
            made["ok"] = work(request)
        except (AgentError, OSError, KeyError, TypeError, ValueError) as error:
            # A KeyError alone reads as a riddle.
            made["error"] = str(error) if isinstance(error, (AgentError, OSError)) else repr(error)
        line = json.dumps(made) + "\n"
        with self._lock:
            self._out.write(line.encode())
            self._out.flush()

    def do_hello(self, request: Json) -> Json:
        """What this node can measure with."""
        self._root = Path(request.get("root", self._root))
        tools = {tool: shutil.which(tool) for tool in ("ib_write_bw", "ib_write_lat")}
        if tools["ib_write_bw"]:
            done = subprocess.run(
                [tools["ib_write_bw"], "--help"], capture_output=True, timeout=20, check=False
            )
            self._help = (done.stdout + done.stderr).decode(errors="replace")
        flags = [
            flag
            for flag in ("--out_json_file", "--use_rocm", "--use_rocm_dmabuf", "--tclass")
            if flag in self._help
        ]
        return {"tools": [tool for tool, path in tools.items() if path], "flags": flags, "pid": os.getpid()}

    def do_ping(self, _request: Json) -> Json:
        return {}

    def do_serve(self, request: Json) -> Json:
        """Start a server for each test and wait until it listens; the port of each, or its complaint."""
        job, until = str(request["job"]), time.monotonic() + float(request["within"])
        ports, errors = {}, {}
        for spec in request["tests"]:
            rail = str(spec["rail"])
            try:
                ports[rail] = self._serve(job, rail, spec, until)
            except (AgentError, OSError) as error:
                errors[rail] = str(error)
        return {"ports": ports, "errors": errors}

    def _serve(self, job: str, rail: str, spec: Json, until: float) -> int:
        tried = 0
        for port in range(int(spec["port"]), int(spec["port"]) + PORTS):
            with self._lock:
                if port in self._taken or not _free(port):
                    continue
                self._taken.add(port)
            spec = {**spec, "held": port}
            test = self._start(spec, port, "")
            with self._lock:
                self._jobs.setdefault(job, {})[rail] = test
            while test.process.poll() is None and time.monotonic() < until:
                if listens(test.process.pid, port):
                    return port
                time.sleep(0.02)  # a process needs longer to start
            text = self._finish(job, rail)[1]
            tried += 1
            # Somebody else may have been faster to the port: try others. A broken tool is no such case.
            if not TAKEN.search(text) or tried == TRIES:
                raise AgentError(f"the server did not start: {complaint(text)}")
        raise AgentError(f"no free port from {spec['port']} to {int(spec['port']) + PORTS - 1}")

    def do_run(self, request: Json) -> Json:
        """Run the clients against a peer's servers, all at once; the reading or complaint of each."""
        job, until = str(request["job"]), time.monotonic() + float(request["within"])
        with self._lock:
            tests = self._jobs.setdefault(job, {})
        for spec in request["tests"]:
            test = self._start(spec, int(spec["port"]), str(request["peer"]))
            with self._lock:
                tests[str(spec["rail"])] = test
        results: Json = {}
        for rail, test in list(tests.items()):
            ended = test.wait(until)
            sheet, text, moved = self._finish(job, rail)
            made: Json = {"counters": moved}
            try:
                if not ended:
                    raise AgentError(f"timed out: {complaint(text)}")
                if test.process.returncode:
                    raise AgentError(complaint(text))
                made.update(reading(str(test.spec["kind"]), sheet, text))
            except AgentError as error:
                made["error"] = str(error)
            results[rail] = made
        return results

    def do_reap(self, request: Json) -> Json:
        """End the servers of a job; what each counted, and its complaint when it did not end well."""
        job, until = str(request["job"]), time.monotonic() + float(request.get("within", 0))
        with self._lock:
            tests = dict(self._jobs.get(job, {}))
        results: Json = {}
        for rail, test in tests.items():
            ended = test.wait(until)
            _, text, moved = self._finish(job, rail)
            bad = not ended or test.process.returncode
            results[rail] = {"counters": moved, **({"error": complaint(text)} if bad else {})}
        with self._lock:
            self._jobs.pop(job, None)
        return results

    def do_wiring(self, request: Json) -> Json:
        """Say who we are on every rail and note whom we hear; and ask for every gateway on every rail."""
        return wiring(request["node"], request["run"], request["rails"], float(request["seconds"]))

    def _start(self, spec: Json, port: int, peer: str) -> Test:
        sheet = os.memfd_create("perftest")  # a file that is nowhere, so none can be left behind
        command = perftest(spec, port, peer, sheet if "--out_json_file" in self._help else None)
        if shutil.which("setpriv"):
            command = ["setpriv", "--pdeathsig", "KILL", *command]
        before = counters(self._root, str(spec["device"]))

        def make() -> subprocess.Popen[bytes]:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=[sheet],
            )

        return Test(self._maker.submit(make).result(), sheet, spec, before)

    def _finish(self, job: str, rail: str) -> tuple[str, str, dict[str, int]]:
        """End a test and forget it; what it wrote as JSON and as text, and what its port counted."""
        with self._lock:
            test = self._jobs[job].pop(rail)
        text = test.end()
        with self._lock:
            self._taken.discard(int(test.spec.get("held", 0)))
        moved = growth(test.before, counters(self._root, str(test.spec["device"])))
        return test.close(), text, moved

    def stop(self) -> None:
        """Kill whatever runs."""
        with self._lock:
            tests = [test for job in self._jobs.values() for test in job.values()]
        for test in tests:
            if test.process.poll() is None:
                test.process.kill()


def perftest(spec: Json, port: int, peer: str, sheet: int | None) -> list[str]:
    """The command line of one test; a server when there is no peer."""
    kind = str(spec["kind"])
    command = [f"ib_write_{kind}", "-d", spec["device"], "-x", str(spec["gid_index"]), "-p", str(port), "-F"]
    command += ["-u", str(spec["qp_timeout"])]
    if kind == "bw":
        command += ["-s", str(spec["size"]), "-D", str(spec["seconds"]), "-f", "0", "-q", str(spec["qps"])]
        # A completion for each message: a slow link must not run out of time before the first one.
        command += ["-t", str(spec["depth"]), "-Q", "1", "--report_gbits"]
    else:
        command += ["-s", "8", "-n", str(spec["iterations"])]
    if spec.get("tclass") is not None:
        command += [f"--tclass={spec['tclass']}"]
    if spec.get("gpu") is not None:
        command += [f"--use_rocm={spec['gpu']}", *(["--use_rocm_dmabuf"] if spec.get("dmabuf") else [])]
    if sheet is not None and peer:
        command += ["--out_json", f"--out_json_file=/proc/self/fd/{sheet}"]
    return [*command, *([peer] if peer else [])]


def _free(port: int) -> bool:
    for family, address in ((socket.AF_INET6, "::"), (socket.AF_INET, "0.0.0.0")):  # noqa: S104  # as perftest does
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind((address, port))
                # Two may bind with SO_REUSEADDR as long as none listens.
                probe.listen(1)
        except OSError as error:
            if family == socket.AF_INET6 and not isinstance(error, PermissionError) and not _has_ipv6():
                continue
            return False
    return True


def _has_ipv6() -> bool:
    return Path("/proc/net/if_inet6").exists()


def beacon(node: str, run: str, rail: int) -> bytes:
    """The payload of a beacon."""
    return json.dumps({"splitrail": run, "node": node, "rail": rail}).encode()


def heard_beacon(payload: bytes, run: str) -> tuple[str, int] | None:
    """Who sent a beacon of this run and on which of his rails; None for anything else."""
    try:
        said = json.loads(payload.rstrip(b"\0"))
        return (str(said["node"]), int(said["rail"])) if said["splitrail"] == run else None
    except (ValueError, KeyError, TypeError):
        return None


def arp_request(mac: bytes, source: str, target: str) -> bytes:
    """Who has ``target``? Tell ``source``."""
    return struct.pack(
        "!HHBBH6s4s6s4s",
        1,
        0x0800,
        6,
        4,
        1,
        mac,
        socket.inet_aton(source),
        bytes(6),
        socket.inet_aton(target),
    )


def arp_answer(payload: bytes) -> str:
    """The address that an ARP answer speaks for; empty for anything else."""
    if len(payload) < 28 or struct.unpack("!H", payload[6:8])[0] != 2:  # noqa: PLR2004
        return ""
    return socket.inet_ntoa(payload[14:18])


def wiring(node: str, run: str, rails: list[Json], seconds: float) -> Json:
    """Beacons heard and gateways that answered, by rail."""
    heard: dict[str, set[tuple[str, int]]] = {str(rail["rail"]): set() for rail in rails}
    answered: dict[str, set[str]] = {str(rail["rail"]): set() for rail in rails}
    errors: dict[str, str] = {}
    ports: dict[int, tuple[socket.socket, Json]] = {}
    try:
        ports = _open_rails(rails, errors)
        until, next_shout = time.monotonic() + seconds, 0.0
        while ports and time.monotonic() < until:
            if time.monotonic() >= next_shout:
                next_shout = time.monotonic() + 0.5
                for port, rail in list(ports.values())[::2]:
                    try:
                        _shout(port, beacon(node, run, int(rail["rail"])), rails)
                    except OSError as error:
                        errors[str(rail["rail"])] = str(error)
            ready, _, _ = select.select(list(ports), [], [], 0.1)
            for number in ready:
                port, rail = ports[number]
                try:
                    kind, payload = _receive(port)
                except OSError as error:  # the rail went down
                    errors[str(rail["rail"])] = str(error)
                    continue
                who = heard_beacon(payload, run) if kind == BEACON else None
                if who and who != (node, int(rail["rail"])):
                    heard[str(rail["rail"])].add(who)
                elif kind == ARP and arp_answer(payload):
                    answered[str(rail["rail"])].add(arp_answer(payload))
    finally:
        for port, _ in ports.values():
            port.close()
    return {
        "heard": {rail: sorted(who) for rail, who in heard.items()},
        "answered": {rail: sorted(who) for rail, who in answered.items()},
        "errors": errors,
    }


def _open_rails(rails: list[Json], errors: dict[str, str]) -> dict[int, tuple[socket.socket, Json]]:
    """Two sockets a rail, one a protocol: the kernel sorts out whatever else the rail carries."""
    ports: dict[int, tuple[socket.socket, Json]] = {}
    for rail, protocol in ((rail, protocol) for rail in rails for protocol in (BEACON, ARP)):
        try:
            port = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(protocol))
            ports[port.fileno()] = (port, rail)
            port.bind((rail["name"], protocol))
        except OSError as error:
            errors[str(rail["rail"])] = str(error)
    return ports


def _receive(port: socket.socket) -> tuple[int, bytes]:
    """A frame's EtherType and payload; nothing for what this node sent itself. Raises OSError."""
    frame, address = port.recvfrom(2048)
    if address[2] == socket.PACKET_OUTGOING:
        return 0, b""
    return struct.unpack("!H", frame[12:14])[0], frame[14:]


def _shout(port: socket.socket, mine: bytes, rails: list[Json]) -> None:
    """Send a beacon, and ask for every gateway. Raises OSError."""
    mac = port.getsockname()[4]
    port.send(b"\xff" * 6 + mac + struct.pack("!H", BEACON) + mine.ljust(46, b"\0"))
    # Each gateway on each rail: the one that answers on another rail says where the cable ends.
    for other in rails:
        if other.get("gateway"):
            asked = arp_request(mac, other["ip"], other["gateway"]).ljust(46, b"\0")
            port.send(b"\xff" * 6 + mac + struct.pack("!H", ARP) + asked)


def main() -> None:
    """Read requests until there are no more, or nobody is there."""
    agent = Agent(sys.stdout.buffer)
    workers = ThreadPoolExecutor(32)
    stdin, rest = sys.stdin.fileno(), b""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(1))  # pdeathsig ends what runs
    try:
        while select.select([stdin], [], [], SILENCE_S)[0]:
            piece = os.read(stdin, 1 << 16)
            if not piece:
                break
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                try:
                    request = json.loads(line)
                except ValueError:
                    continue  # no id to answer to; the driver's own timeout tells
                if request.get("do") == "ping":
                    agent.answer(request)  # also while all workers work
                else:
                    workers.submit(agent.answer, request)
    finally:
        agent.stop()
        os._exit(0)  # threads that wait for a killed process need not be waited for


if __name__ == "__main__":
    main()
