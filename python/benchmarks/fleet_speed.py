"""What a run costs the controller as the fleet grows: real SSH to many simulated hosts on one machine.

usage: sudo fleet_speed.py [--hosts 10,100,500] [--plain N] [--render 10,100,500] [--runs first,again]
                           [--tags TAGS] [--out FILE] [--folder DIR]

Each simulated host is an address of 127.0.0.0/8 behind one sshd, with an /etc and a machine-id of its own (a
mount namespace a session). Connections, module transfers, Python on the node and all of Ansible are real;
what is not: the hosts share this machine's processors and kernel, so wall time is that of two machines in
one. The controller's CPU is told apart: that of ansible-playbook and all it waits for, and of the SSH masters
that outlive it.

For each number of hosts four runs: first (files are written), again (nothing changes), one variable changed,
and again. What runs is the suite's own: playbooks/preflight.yml, and of playbooks/provision.yml what the role
container_engine configures. ``--plain N`` does the same work on N hosts the plain way: all facts, no
pipelining, SSH's connection sharing as Ansible has it by default, a task a check. ``--render`` renders
playbooks/render.yml's files of the reference cluster with so many servers: the controller's share alone, no
connection.

Prints a line a run and writes all of it as JSON. Needs root (namespaces), util-linux, iproute2, and an sshd:
the machine's, or one unpacked from its APT sources. Touches nothing outside its own folder; the network
namespace has a loopback only.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
PORT = 2222
LIMIT_S = 1800  # of a run; a first one at 500 hosts took 900 s on two processors
PACKAGES = ("openssh-server", "openssh-sftp-server", "libwrap0")
PLAYBOOKS = ("playbooks/preflight.yml", "playbooks/provision.yml")
TAGS = "preflight_verify,container_engine_preflight,container_engine_configure"
# What programs of a session read there; everything else of /etc is left out, and most of it is not needed.
ETC = (
    *("alternatives", "debian_version", "group", "host.conf", "ld.so.cache", "ld.so.conf", "ld.so.conf.d"),
    *("localtime", "login.defs", "nsswitch.conf", "os-release", "profile", "python3", "python3.11", "shells"),
)


@dataclass
class Figures:
    """One run. CPU in seconds; tasks are results, one a task and host; memory in MiB."""

    way: str
    run: str
    hosts: int
    code: int
    wall_s: float
    cpu_s: float
    tasks: int
    changed: int
    peak_mib: float

    @property
    def cpu_ms(self) -> float:
        """Controller CPU a task and host, in milliseconds."""
        return 1000 * self.cpu_s / max(self.tasks, 1)


# The simulated hosts


def address(number: int) -> str:
    """Of host ``number``, from 0 on."""
    return f"127.1.{number // 250}.{number % 250 + 1}"


def make_etc(folder: Path, number: int) -> None:
    """An /etc of a host: enough for a session, and a machine-id of its own."""
    folder.mkdir(parents=True)
    for name in ETC:
        source = Path("/etc") / name
        if source.is_symlink() or source.is_file():
            shutil.copy2(source, folder / name, follow_symlinks=not source.is_symlink())
        elif source.is_dir():
            shutil.copytree(source, folder / name, symlinks=True)
    (folder / "machine-id").write_text(f"{number + 1:032x}\n")
    (folder / "hosts").write_text(f"127.0.0.1 localhost {os.uname().nodename}\n")
    (folder / "passwd").write_text(
        "root:x:0:0:root:/root:/bin/sh\nsshd:x:110:65534::/run/sshd:/usr/sbin/nologin\n"
        "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
    )
    (folder / "shadow").write_text("root:*:1:0:99999:7:::\n")
    (folder / "containers/containers.conf.d").mkdir(parents=True)
    (folder / "containers/registries.conf.d").mkdir()


def find_sshd(folder: Path) -> tuple[Path, dict[str, str]]:
    """The root under which the machine's sshd lies, or one unpacked from its packages; and the environment
    that it needs."""
    if Path("/usr/sbin/sshd").exists():
        return Path("/"), {}
    unpacked = folder / "sshd"
    if not unpacked.exists():
        unpacked.mkdir()
        subprocess.run(
            ["apt-get", "-q", "download", *PACKAGES], cwd=unpacked, check=True, capture_output=True
        )
        for package in unpacked.glob("*.deb"):
            subprocess.run(["dpkg", "-x", str(package), str(unpacked)], check=True)
    libraries = ":".join(sorted({str(path.parent) for path in unpacked.rglob("*.so*")}))
    return unpacked, {"LD_LIBRARY_PATH": libraries}


@contextmanager
def simulated_hosts(folder: Path, count: int) -> Iterator[None]:
    """Run the hosts' sshd until the block ends."""
    for number in range(count):
        if not (folder / "etc" / address(number)).exists():
            make_etc(folder / "etc" / address(number), number)
    enter = folder / "enter"
    enter.write_text(
        "#!/bin/sh\n"
        "unset LD_LIBRARY_PATH\n"
        f'set -- $SSH_CONNECTION\nmount --bind "{folder}/etc/$3" /etc\n'
        'exec /bin/sh -c "$SSH_ORIGINAL_COMMAND"\n'
    )
    enter.chmod(0o755)
    key, host_key = folder / "key", folder / "host_key"
    for path in (key, host_key):
        if not path.exists():
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    (folder / "known_hosts").write_text(f"fleet {host_key.with_suffix('.pub').read_text()}")
    root, environment = find_sshd(folder)
    # Files arrive as they do on any host; without it Ansible tries it, then scp, then a pipe, for each file.
    (folder / "sshd_config").write_text(
        f"Port {PORT}\nListenAddress 0.0.0.0\nHostKey {host_key}\nAuthorizedKeysFile {key}.pub\n"
        "PermitRootLogin yes\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nUseDNS no\n"
        "MaxStartups 1000\nMaxSessions 64\nPidFile none\nPrintMotd no\n"
        f"Subsystem sftp {root / 'usr/lib/openssh/sftp-server'}\n"
        f"ForceCommand exec unshare --mount --propagation private {enter}\n"
    )
    # Its own /etc has the user that sshd wants, and /run/sshd is not made on the machine.
    own = f'mount --bind "{folder}/etc/{address(0)}" /etc && mount -t tmpfs none /run && mkdir /run/sshd'
    words = ["unshare", "--mount", "--propagation", "private", "sh", "-c", f'{own} && exec "$@"', "sh"]
    server = subprocess.Popen(
        [*words, str(root / "usr/sbin/sshd"), "-D", "-e", "-f", str(folder / "sshd_config")],
        env={**os.environ, **environment},
        stderr=(folder / "sshd.log").open("w"),
    )
    try:
        time.sleep(1)
        if server.poll() is not None:
            raise SystemExit(f"sshd does not run: {(folder / 'sshd.log').read_text()}")
        yield
    finally:
        server.terminate()
        server.wait()


def inventory(folder: Path, count: int) -> Path:
    """The inventory of so many simulated hosts."""
    path = folder / f"fleet-{count}"
    (path / "group_vars").mkdir(parents=True, exist_ok=True)
    hosts = {f"n{number:03}": {"ansible_host": address(number)} for number in range(count)}
    groups = {"head": {"hosts": {"n000": None}}, "workers": {"hosts": hosts}}
    (path / "hosts.yml").write_text(yaml.safe_dump({"all": {"children": groups}}))
    ssh = f"-o UserKnownHostsFile={folder}/known_hosts -o HostKeyAlias=fleet"
    variables = {
        "cluster_name": "fleet",
        "ansible_user": "root",
        "ansible_port": PORT,
        "ansible_ssh_private_key_file": str(folder / "key"),
        "ansible_ssh_common_args": ssh,
        "preflight_memory_gib": 1,
        "preflight_disk": [{"path": "/tmp", "free_gib": 1}],  # noqa: S108  # a path to measure
        "preflight_shm_gib": 0,
        "preflight_os": {os_id()[0]: [os_id()[1]]},
        "preflight_cgroup_version": 2 if Path("/sys/fs/cgroup/cgroup.controllers").exists() else 1,
        "preflight_nofile": 1024,
        "preflight_memlock_mib": 0,
        # The way to a node counts as skew, and here it waits for the other nodes' processors.
        "preflight_clock_skew_s": 600,
    }
    (path / "group_vars/all.yml").write_text(yaml.safe_dump(variables))
    return path


def os_id() -> tuple[str, str]:
    """ID and VERSION_ID of this machine."""
    lines = Path("/etc/os-release").read_text().splitlines()
    fields = dict(line.split("=", 1) for line in lines if "=" in line)
    return fields["ID"].strip('"'), fields["VERSION_ID"].strip('"')


# Runs


def measured(
    label: tuple[str, str, int], words: Sequence[str], folder: Path, env: dict[str, str] | None = None
) -> Figures:
    """Run a command and say what it cost; its output is kept in the folder. ``label``: way, run and hosts."""
    record = Path(tempfile.mkdtemp(prefix="record-", dir=folder))
    environment = {
        **os.environ,
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_SSH_CONTROL_PATH_DIR": str(folder / "cp"),
        "ANSIBLE_LOCAL_TEMP": str(folder / "tmp"),
        "SPLITRAIL_RUN_DIR": str(record),
        **(env or {}),
    }
    before = masters_cpu(folder)
    began = time.perf_counter()
    with (folder / "last.log").open("w") as log:
        process = subprocess.Popen(words, cwd=ROOT, env=environment, stdout=log, stderr=log)
        with peak_memory(process.pid) as peak, overdue(process):
            _, status, used = os.wait4(process.pid, 0)
    wall = time.perf_counter() - began
    lines = (record / "events.jsonl").read_text().splitlines() if (record / "events.jsonl").exists() else []
    events = [json.loads(line) for line in lines]
    masters = max(masters_cpu(folder) - before, 0.0)
    figures = Figures(
        way=label[0],
        run=label[1],
        hosts=label[2],
        code=os.waitstatus_to_exitcode(status),
        wall_s=round(wall, 1),
        cpu_s=round(used.ru_utime + used.ru_stime + masters, 2),
        tasks=len(events),
        changed=sum(event["changed"] for event in events),
        peak_mib=round(peak[0]),
    )
    shutil.rmtree(record)
    say(figures)
    if figures.code:
        sys.stdout.write(f"  failed: {(folder / 'last.log').read_text()[-1500:]}\n")
    return figures


@contextmanager
def overdue(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """End a run that takes too long."""
    timer = threading.Timer(LIMIT_S, process.terminate)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def peak_memory(pid: int) -> Iterator[list[float]]:
    """The largest sum of the proportional memory (PSS) of a process and those below it, in MiB, every 5 s."""
    peak, stop = [0.0], threading.Event()

    def look() -> None:
        while not stop.wait(5):
            peak[0] = max(peak[0], sum(pss(one) for one in tree(pid)) / 1024)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


def tree(pid: int) -> list[int]:
    """A process and those below it that live now."""
    found, todo = [], [pid]
    while todo:
        one = todo.pop()
        found.append(one)
        try:
            tasks = Path(f"/proc/{one}/task/{one}/children").read_text()
        except OSError:
            continue
        todo += map(int, tasks.split())
    return found


def pss(pid: int) -> int:
    """Proportional memory in KiB; 0 for a process that has ended."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")), 0)


def masters_cpu(folder: Path) -> float:
    """CPU of the SSH masters so far, which outlive the runs that started them; in seconds."""
    total = 0
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if (
                f"{folder}/cp" in (path / "cmdline").read_text(errors="replace")
                and (path / "comm").read_text() == "ssh\n"
            ):
                fields = (path / "stat").read_text().rpartition(") ")[2].split()
                total += int(fields[11]) + int(fields[12])
        except OSError:
            continue
    return total / os.sysconf("SC_CLK_TCK")


def end_masters(folder: Path, hosts: int) -> None:
    """End the connections that are kept, so that the next first run makes its own."""
    for socket in (folder / "cp").glob("*"):
        subprocess.run(
            ["ssh", "-o", f"ControlPath={socket}", "-O", "exit", address(hosts)],
            capture_output=True,
            check=False,
        )


def fresh(folder: Path, count: int) -> None:
    """Hosts on which nothing was written yet."""
    for number in range(count):
        containers = folder / "etc" / address(number) / "containers"
        shutil.rmtree(containers)
        (containers / "containers.conf.d").mkdir(parents=True)
        (containers / "registries.conf.d").mkdir()


def suite(folder: Path, count: int, runs: Sequence[str], tags: str) -> list[Figures]:
    """The suite's way; ``runs`` says which of first, again, one variable changed, again with it."""
    where = inventory(folder, count)
    fresh(folder, count)
    program = str(Path(sys.executable).with_name("ansible-playbook"))
    words = [program, "-i", str(where), *PLAYBOOKS, "--tags", tags]
    other = [*words, "-e", json.dumps({"container_engine_ulimits": {"nofile": f"{8192 + count}:16384"}})]
    plan = (("first", words), ("again", words), ("one variable", other), ("again with it", other))
    found = [measured(("suite", name, count), line, folder) for name, line in plan if name in runs]
    end_masters(folder, count)
    return found


# The plain way

PLAIN_CHECKS = {
    "the system": "ansible_facts['distribution_version'] is version('11', '>=')",
    "the kernel": "ansible_facts['kernel'] is version('5.15', '>=')",
    "the machine": "ansible_facts['architecture'] == 'x86_64'",
    "Python": "ansible_facts['python_version'] is version('3.10', '>=')",
    "memory": "ansible_facts['memtotal_mb'] > 1000",
    "the machine-id": "ansible_facts['machine_id'] | length == 32",
}
PLAIN_LOOKS = {
    "the disk": "df --output=avail -BG /tmp",
    "shared memory": "df --output=size -BG /dev/shm",
    "the cgroup hierarchy": "stat -fc %T /sys/fs/cgroup",
    "open files": "sh -c 'ulimit -Hn'",
    "locked memory": "sh -c 'ulimit -Hl'",
    "the clock": "date +%s",
}


def plain_playbook(folder: Path) -> Path:
    """What is usually written: facts of everything, a task a check, and the same files as the role places."""
    tasks: list[dict[str, Any]] = [
        {"name": f"Check {what}", "ansible.builtin.assert": {"that": [condition]}}
        for what, condition in PLAIN_CHECKS.items()
    ]
    for what, command in PLAIN_LOOKS.items():
        name = what.replace(" ", "_").replace("-", "_")
        tasks += [
            {"name": f"Look at {what}", "ansible.builtin.command": command, "register": name}
            | {"changed_when": False},
            {"name": f"Check {what}", "ansible.builtin.assert": {"that": [f"{name}.stdout | length > 0"]}},
        ]
    templates = ROOT / "roles/container_engine/templates"
    tasks.append(
        {
            "name": "Make the folder",
            "ansible.builtin.file": {
                "path": "/etc/containers/containers.conf.d",
                "state": "directory",
                "mode": "0755",
            },
        }
    )
    for source, target in (
        ("containers.conf.j2", "containers.conf.d/50-splitrail.conf"),
        ("registries.conf.j2", "registries.conf.d/50-splitrail.conf"),
        ("storage.conf.j2", "storage.conf"),
    ):
        arguments = {"src": str(templates / source), "dest": f"/etc/containers/{target}", "mode": "0644"}
        tasks.append({"name": f"Write {target}", "ansible.builtin.template": arguments})
    files = [ROOT / f"roles/container_engine/{part}/main.yml" for part in ("defaults", "vars")]
    play = {
        "name": "The plain way",
        "hosts": "all",
        "gather_facts": True,
        "vars_files": [str(path) for path in files if path.is_file()],
        "tasks": tasks,
    }
    path = folder / "plain.yml"
    path.write_text(yaml.safe_dump([play], sort_keys=False))
    return path


def plain(folder: Path, count: int) -> list[Figures]:
    """The same work the plain way, first and again, over as many forks as the suite takes."""
    fresh(folder, count)
    program = str(Path(sys.executable).with_name("ansible-playbook"))
    environment = {
        "ANSIBLE_PIPELINING": "false",
        "ANSIBLE_SSH_ARGS": "-C -o ControlMaster=auto -o ControlPersist=60s",
    }
    words = [program, "-i", str(inventory(folder, count)), str(plain_playbook(folder))]
    found = [measured(("plain", name, count), words, folder, environment) for name in ("first", "again")]
    end_masters(folder, count)
    return found


# Rendering


def rendered(folder: Path, count: int) -> Figures:
    """Every file of the reference cluster with so many servers, as `splitrail render` makes them."""
    base = folder / "inventories"
    if not base.exists():
        shutil.copytree(ROOT / "inventories", base)
        for part in ("roles", "templates"):
            (folder / part).symlink_to(ROOT / part)
    where = base / f"mi325x-{count}"
    if not where.exists():
        shutil.copytree(base / "mi325x", where)
        rails = where / "group_vars/all/rails.yml"
        # The reference has room for 128 servers on each rail's network of 256 addresses; here it is 32768.
        text = (
            rails.read_text()
            .replace("10.30.%d.%d", "10.%d.%d.%d")
            .replace("(nic.rail, 2", "(30 + nic.rail, 2")
        )
        for position in ("2 * rail_position + 1", "2 * rail_position"):
            text = text.replace(f", {position})", f", ({position}) // 256, ({position}) % 256)")
        rails.write_text(text)
    hosts = {
        f"n{n:03}": {"ansible_host": f"10.10.{n // 250}.{n % 250 + 1}", "rail_position": n}
        for n in range(count)
    }
    names = sorted(hosts)
    groups = {
        "head": {"hosts": {names[0]: None}},
        "prefill": {"hosts": {name: hosts[name] for name in names[: max(1, count // 4)]}},
        "decode": {"hosts": {name: hosts[name] for name in names[max(1, count // 4) :]}},
        "workers": {"children": {"prefill": None, "decode": None}},
    }
    (where / "hosts.yml").write_text(yaml.safe_dump({"all": {"children": groups}}))
    out = folder / f"rendered-{count}"
    shutil.rmtree(out, ignore_errors=True)
    program = str(Path(sys.executable).with_name("ansible-playbook"))
    words = [
        program,
        "-i",
        str(where),
        "playbooks/render.yml",
        "-e",
        json.dumps({"splitrail_render_root": str(out)}),
    ]
    return measured(("render", "render", count), words, folder)


# The command


def say(one: Figures) -> None:
    """A line a run."""
    sys.stdout.write(
        f"{one.way:7} {one.run:14} {one.hosts:4} hosts {one.wall_s:7.1f} s controller {one.cpu_s:7.1f} s CPU "
        f"{one.tasks:6} tasks x hosts  {one.cpu_ms:6.1f} ms each  changed {one.changed:5}  "
        f"peak {one.peak_mib:5.0f} MiB{'' if one.code == 0 else f'  EXIT {one.code}'}\n"
    )
    sys.stdout.flush()


def exponent(figures: Sequence[Figures], run: str, way: str = "suite") -> float | None:
    """How CPU grows with hosts: the slope of a straight line through the logarithms; 1 is linear."""
    points = [
        (math.log(one.hosts), math.log(one.cpu_s)) for one in figures if (one.way, one.run) == (way, run)
    ]
    if len(points) < 2:  # noqa: PLR2004  # a line takes two
        return None
    mean_x, mean_y = (sum(values) / len(points) for values in zip(*points, strict=True))
    over = sum((x - mean_x) * (y - mean_y) for x, y in points)
    return over / sum((x - mean_x) ** 2 for x, _ in points)


def numbers(text: str) -> list[int]:
    """``10,100`` as a list."""
    return [int(part) for part in text.split(",") if part]


def summary(figures: Sequence[Figures]) -> None:
    """Growth, the second run's share, and how the plain way compares."""
    for way, run in dict.fromkeys((one.way, one.run) for one in figures):
        slope = exponent(figures, run, way)
        if slope is not None:
            sys.stdout.write(f"growth of controller CPU, {way} {run}: hosts^{slope:.2f}\n")
    by = {(one.way, one.run, one.hosts): one for one in figures}
    for (way, run, hosts), one in by.items():
        first = by.get((way, "first", hosts))
        if run == "again" and first:
            cpu, wall = one.cpu_s / first.cpu_s, one.wall_s / first.wall_s
            sys.stdout.write(
                f"{way}, {hosts} hosts: second run takes {cpu:.2f} of the CPU, {wall:.2f} of the time\n"
            )
        other = by.get(("plain", run, hosts))
        if way == "suite" and other:
            cpu, wall = other.cpu_s / one.cpu_s, other.wall_s / one.wall_s
            sys.stdout.write(
                f"{hosts} hosts, {run} run: plain takes {cpu:.1f} x the CPU, {wall:.1f} x the time\n"
            )


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Controller's cost over the number of hosts.")
    parser.add_argument("--hosts", default="10,100,500", help="numbers of simulated hosts")
    parser.add_argument("--plain", default="", help="numbers of hosts for the plain way")
    parser.add_argument("--render", default="", help="numbers of servers to render files of")
    parser.add_argument("--runs", default="first,again,one variable,again with it", help="which of the four")
    parser.add_argument("--tags", default=TAGS, help="what of the playbooks is run")
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--folder", type=Path, help="where everything is kept; by default removed afterwards")
    given = parser.parse_args()
    if "FLEET_FOLDER" not in os.environ:
        outside = given.folder or Path(tempfile.mkdtemp(prefix="fleet-"))
        outside.mkdir(parents=True, exist_ok=True)
        find_sshd(outside)  # while there is a network
        os.environ["FLEET_FOLDER"] = str(outside.resolve())
        os.execvp(  # noqa: S606  # this very program, in namespaces of its own
            "unshare",
            ["unshare", "--mount", "--net", "--propagation", "private", sys.executable, *sys.argv],
        )
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    folder = Path(os.environ["FLEET_FOLDER"])
    (folder / "tmp").mkdir(exist_ok=True)
    figures: list[Figures] = []
    hosts, plain_hosts = numbers(given.hosts), numbers(given.plain)
    try:
        for count in numbers(given.render):
            figures.append(rendered(folder, count))
        if hosts or plain_hosts:
            with simulated_hosts(folder, max([*hosts, *plain_hosts])):
                for count in hosts:
                    figures += suite(folder, count, given.runs.split(","), given.tags)
                for count in plain_hosts:
                    figures += plain(folder, count)
        summary(figures)
        if given.out:
            document = [{**asdict(one), "cpu_ms": round(one.cpu_ms, 1)} for one in figures]
            given.out.write_text(json.dumps(document, indent=1) + "\n")
    finally:
        if given.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    return int(any(one.code for one in figures))


if __name__ == "__main__":
    sys.exit(main())
