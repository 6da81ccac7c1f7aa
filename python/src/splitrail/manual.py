"""What every command's --help ends with: examples, and the exit codes.

The examples are data, so that a test parses each with the command line itself: one that names an option
which is gone does not pass.
"""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup

from splitrail.completion import offer_values

EXIT_CODES = "Exit codes: 0 ok, 1 a check or task failed, 2 could not run, 130 interrupted."

EXAMPLES: dict[str, list[str]] = {
    "add": ["splitrail add node9 -i inventories/mi325x"],
    "bench matrix": ["splitrail bench matrix matrix.yml -i inventories/lab"],
    "bench point": [
        "splitrail bench point --url http://10.10.0.11:8000 --model NAME --isl 8000 --osl 512 --qps 2.5",
    ],
    "bench profile": ["splitrail bench profile access.jsonl -o inventories/workloads/mine.yml"],
    "bench search": ["splitrail bench search -i inventories/lab -w chat --near 12"],
    "bundle create": ["splitrail bundle create -i inventories/lab --out /srv/bundle"],
    "bundle serve": ["splitrail bundle serve /srv/bundle --port 8090"],
    "bundle verify": ["splitrail bundle verify /srv/bundle"],
    "canary abort": ["splitrail canary abort -i inventories/lab"],
    "canary judge": ["splitrail canary judge -i inventories/lab --requests 50"],
    "canary promote": ["splitrail canary promote -i inventories/lab"],
    "canary start": ["splitrail canary start -i inventories/lab --weight 10"],
    "canary status": ["splitrail canary status -i inventories/lab"],
    "diff": ["splitrail diff -i inventories/lab"],
    "discover": [
        "splitrail discover 10.10.0.11 10.10.0.12 --user splitrail --out inventories/mine --head node1",
        "splitrail discover -i inventories/mine",
    ],
    "down": ["splitrail down -i inventories/lab"],
    "drain": ['splitrail drain mi325x-4 -i inventories/mi325x --reason "new fan"'],
    "fabric drift": ["splitrail fabric drift -i inventories/mi325x"],
    "fabric prove": [
        "splitrail fabric prove -i inventories/lab",
        "splitrail fabric prove --sample 4 --resume",
    ],
    "fabric report": ["splitrail fabric report runs/20260101T120000Z"],
    "inventory check": ["splitrail inventory check -i inventories/mi325x"],
    "inventory schema": ["splitrail inventory schema"],
    "kv": ["splitrail kv -i inventories/lab"],
    "lab down": ["splitrail lab down -i inventories/lab"],
    "lab link": ["splitrail lab link fab-2 0 down -i inventories/lab-fabric"],
    "lab power": ["splitrail lab power off lab-prefill"],
    "lab reset": ["splitrail lab reset lab-decode"],
    "lab snapshot": ["splitrail lab snapshot save before"],
    "lab ssh": ["splitrail lab ssh lab-head", "splitrail lab ssh lab-head -- uptime"],
    "lab status": ["splitrail lab status -i inventories/lab"],
    "lab up": ["splitrail lab up -i inventories/lab"],
    "plan": [
        "splitrail plan --isl 8000 --osl 1000 --sla ttft_p90=1500 --gpus 8 --model h200-qwen3-14b",
    ],
    "plan calibrate": ["splitrail plan calibrate points.json -o model.json"],
    "quarantine add": ['splitrail quarantine add node7 --reason "rail 3 loses packets"'],
    "quarantine list": ["splitrail quarantine list -i inventories/lab"],
    "quarantine release": ["splitrail quarantine release node7"],
    "rebalance": [
        "splitrail rebalance -i inventories/lab --to 1p2d",
        "splitrail rebalance --auto --policy sla.yml",
    ],
    "release check": ["splitrail release check inventories/releases/cpu.yml"],
    "remove": ["splitrail remove mi325x-4 -i inventories/mi325x"],
    "render": ["splitrail render -i inventories/mi325x --out /tmp/review"],
    "report": ["splitrail report build/bench/matrix/curves.json predicted.json --out report.html"],
    "reset": ["splitrail reset -i inventories/lab --check"],
    "rollback": ["splitrail rollback -i inventories/lab"],
    "runs diff": ["splitrail runs diff 20260101T120000Z 20260102T120000Z"],
    "runs export": ["splitrail runs export last --endpoint http://127.0.0.1:4318"],
    "runs list": ["splitrail runs list -n 20 --failed"],
    "runs show": ["splitrail runs show last"],
    "serve": ["splitrail serve -i inventories/lab"],
    "smoke": ["splitrail smoke -i inventories/lab"],
    "status": ["splitrail status -i inventories/lab --json"],
    "top": ["splitrail top -i inventories/lab --once"],
    "undrain": ["splitrail undrain mi325x-4 -i inventories/mi325x --prove"],
    "up": [
        "splitrail up -i inventories/lab",
        "splitrail up -i inventories/mi325x --check",
        "splitrail up -i inventories/mi325x --resume",
    ],
    "upgrade": ["splitrail upgrade -i inventories/mi325x --to mi325x-upstream"],
    "validate": ["splitrail validate -i inventories/mi325x --limit mi325x-1,mi325x-2"],
}


class Suite(TyperGroup):
    """The command line, with completion and the ends of all help texts filled in."""

    def __init__(self, *args: Any, **given: Any) -> None:
        super().__init__(*args, **given)
        end_help(self)
        offer_values(self)


def end_help(command: Any, path: str = "") -> None:
    """Give a command, and those below it, its examples and the exit codes."""
    for name, below in getattr(command, "commands", {}).items():
        end_help(below, f"{path} {name}".strip())
    lines = EXAMPLES.get(path, [])
    # A paragraph each: the help joins the lines of a paragraph.
    command.epilog = "\n\n".join([*(["Examples:"] if lines else []), *lines, command.epilog or EXIT_CODES])
