"""Remove and add a node of the lab, lose one, fail an upgrade, and reset the cluster, under a steady load.

usage: python python/benchmarks/day_two.py [STEP ...]     steps: see STEPS below; by default all, in order

The lab must stand and serve a topology whose engines any of its nodes takes, so that it fits one node less:

    splitrail up -i inventories/lab -e @python/benchmarks/drain_under_load.yml

Two clients send a streamed request of 16 tokens every second each (`safe_deploys.py`), and wait 600 s for an
answer. Prints a Markdown table: seconds, requests that ended meanwhile, how many failed or were answered
wrong, the longest, and what was seen on the nodes once the command had ended. A plug that is pulled under an
engine costs requests, and so does a reset: exit code 0 when nothing failed in the other steps, and all that
was looked at was so.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import yaml
from drain_under_load import VARIABLES
from safe_deploys import INVENTORY, PROMPTS, ROOT, Json, Load, ask, client, meanwhile, splitrail
from upgrade_under_load import release_like

NODE, CLUSTER = "lab-decode", "lab"
OWN = ("-e", f"@{VARIABLES}")
# What serving leaves on a node, some of it: docs/day-two.md, "Reset".
LEFT = (
    "/etc/ray/token",
    "/etc/systemd/system/ray.service",
    "/etc/splitrail/serve",
    "/var/lib/splitrail/serving_image",
)


def plain(*words: str) -> str:
    """What a command of the suite prints that has no report. Raises CalledProcessError when it fails."""
    argv = [sys.executable, "-m", "splitrail", *words, "-i", str(INVENTORY)]
    return subprocess.run(argv, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def on(node: str, command: str) -> str:
    """What a command as root prints on a node. Raises CalledProcessError when it fails."""
    argv = [sys.executable, "-m", "splitrail", "lab", "ssh", "-i", str(INVENTORY), node, "--"]
    done = subprocess.run([*argv, f"sudo sh -c '{command}'"], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def look(**seen: bool) -> str:
    """What was looked at, in words. Raises RuntimeError when something was not so."""
    for what, so in seen.items():
        if not so:
            raise RuntimeError(f"it is not so: {what.replace('_', ' ')}")
    return ", ".join(what.replace("_", " ") for what in seen)


def left_on(node: str) -> list[str]:
    """Which of LEFT are on a node."""
    # ls fails where one is missing, which is no error here; a node that cannot be asked still is one.
    return on(node, f"ls -d {' '.join(LEFT)} 2>/dev/null || true").split()


def addresses() -> dict[str, str]:
    """The lab's hosts, each with its address."""
    groups = yaml.safe_load((INVENTORY / "hosts.yml").read_text())["all"]["children"]
    hosts = [group["hosts"] for group in groups.values() if "hosts" in group]
    return {name: one["ansible_host"] for each in hosts for name, one in each.items()}


def live() -> set[str]:
    """The addresses of the nodes that Ray has."""
    listed = on("lab-head", "podman exec ray ray list nodes --filter state=ALIVE --format yaml")
    return {one["node_ip"] for one in yaml.safe_load(listed)}


def out() -> bool:
    """Whether the node is in quarantine."""
    return NODE in plain("quarantine", "list")


def remove() -> str:
    """The node is drained for good, and what serving left there is deleted."""
    splitrail("remove", NODE, "--confirm", CLUSTER, *OWN)
    return look(
        it_is_in_quarantine=out(),
        nothing_is_left_there=not left_on(NODE),
        Ray_has_the_others=live() == set(addresses().values()) - {addresses()[NODE]},
    )


def add() -> str:
    """It is added again."""
    plain("quarantine", "release", NODE)
    splitrail("add", NODE, *OWN)
    return look(it_is_not_in_quarantine=not out(), Ray_has_all_nodes=live() == set(addresses().values()))


def pull_the_plug() -> str:
    """The node loses its power; the next `up` leaves it out and goes on."""
    plain("lab", "power", "off", NODE)
    splitrail("up", *OWN, code=1)
    return look(it_is_in_quarantine=out(), the_others_serve=bool(ask_once()))


def take_back() -> str:
    """It has power again and is released; `up` proves it and has it join."""
    plain("lab", "power", "on", NODE)
    plain("quarantine", "release", NODE)
    splitrail("up", *OWN)
    return look(it_is_not_in_quarantine=not out(), Ray_has_all_nodes=live() == set(addresses().values()))


def upgrade() -> str:
    """An upgrade to a release whose engines do not start."""
    with release_like("cpu", "broken", no_tokenizer) as name:
        splitrail("upgrade", "--to", name, *OWN, code=1)
    return look(what_served_before_serves_again=bool(ask_once()))


def reset() -> str:
    """Everything that serving left is deleted on all nodes."""
    listed = splitrail("reset", "--check", *OWN)
    had = {node: left_on(node) for node in ("lab-head", "lab-prefill", NODE)}
    splitrail("reset", "--confirm", CLUSTER, *OWN)
    return look(
        the_preview_deleted_nothing=bool(listed) and all(had.values()),
        nothing_is_left=not any(left_on(node) for node in had),
        no_container_runs=not any(on(node, "podman ps --quiet") for node in had),
    )


def serve_again() -> str:
    """`up` from there."""
    splitrail("up", *OWN)
    return look(it_serves=bool(ask_once()))


def ask_once() -> list[int]:
    """The tokens of one answer."""
    with client() as who:
        return ask(who, 0)


def no_tokenizer(release: Json) -> None:
    """Have the engines of a release end as soon as they start."""
    release["engine"] = {**release["engine"], "tokenizer": "/nowhere"}


# Each with its title, and whether requests may fail meanwhile.
STEPS: dict[str, tuple[str, Callable[[], str], bool]] = {
    "remove": (f"`remove {NODE}`", remove, False),
    "add": (f"`add {NODE}`", add, False),
    "plug": (f"{NODE} loses its power, `up`", pull_the_plug, True),
    "back": ("power, `quarantine release`, `up`", take_back, False),
    "upgrade": ("`upgrade` to a release whose engines do not start", upgrade, False),
    "reset": ("`reset`", reset, True),
    "serve": ("`up`", serve_again, True),
}


def main() -> int:
    """Take the steps named on the command line, or all."""
    with client() as who:
        load = Load([ask(who, number) for number in range(PROMPTS)], timeout_s=600)
    wanted = [STEPS[name] for name in sys.argv[1:] or STEPS]
    return meanwhile(
        {title: step for title, step, _ in wanted}, load, may_fail={title for title, _, may in wanted if may}
    )


if __name__ == "__main__":
    sys.exit(main())
