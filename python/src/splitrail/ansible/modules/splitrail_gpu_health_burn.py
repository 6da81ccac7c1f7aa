#!/usr/bin/python
"""Load the GPUs of a node with one of AMD's tests, and compare what they reach with what they must."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible.module_utils import splitrail_gpu_tools as tools
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.splitrail_checks import check, unmade

DOCUMENTATION = r"""
module: splitrail_gpu_health_burn
short_description: Load the AMD GPUs of a node and judge what they reach
description:
  - Runs one test to its end, keeps its output on the node, and compares its figures with thresholds.
  - An exit code alone decides nothing. A figure that is missing is a finding, and so is a test that is
    missing, hangs, or stops half-way.
  - Refuses GPUs that a process uses. Makes no change; not run in check mode.
options:
  test: {description: The test., type: str, choices: [rvs, transferbench, rccl], required: true}
  count: {description: GPUs that must take part., type: int, required: true}
  commands: {description: Commands by name with their arguments., type: dict, required: true}
  thresholds: {description: The C(thresholds) of the role's data file., type: dict, required: true}
  prefix: {description: Command and arguments put before each tool., type: list, elements: str, default: []}
  timeout_s: {description: Longest time for one command in seconds., type: float, default: 3600}
  log_dir: {description: Where the tests' output is kept., type: path, required: true}
author: The splitrail authors
"""

RETURN = r"""
checks: {description: The findings., type: list, elements: dict, returned: always}
seconds: {description: How long it took., type: float, returned: always}
"""

Check = dict[str, Any]
KFD = "sys/class/kfd/kfd/proc"


@dataclass(frozen=True)
class Bench:
    """Where the tests run and what they are held to."""

    count: int
    commands: dict[str, list[str]]
    thresholds: dict[str, Any]
    log_dir: Path
    prefix: tuple[str, ...] = ()
    timeout_s: float = 3600.0
    root: Path = Path("/")
    run: Callable[[list[str], float], str] = tools.run

    def output(self, name: str) -> str:
        """What a test printed, kept in a file too. Raises Failed."""
        try:
            text = self.run([*self.prefix, *self.commands[name]], self.timeout_s)
        except tools.Failed as why:
            self.keep(name, why.output)
            raise
        self.keep(name, text)
        return text

    def keep(self, name: str, text: str) -> None:
        """Put a test's output where a person finds it."""
        self.log_dir.mkdir(parents=True, exist_ok=True)
        (self.log_dir / f"{name}.log").write_text(text, encoding="utf-8")

    def log(self, name: str) -> str:
        """Where that is."""
        return f"Read {self.log_dir / f'{name}.log'} on the node"


def users(root: Path) -> list[str]:
    """The processes that use the GPUs, by number and name."""
    found = []
    for process in sorted((root / KFD).glob("[0-9]*"), key=lambda path: int(path.name)):
        try:
            name = (root / "proc" / process.name / "comm").read_text(encoding="utf-8").strip()
        except OSError:
            name = "?"
        found.append(f"{process.name} ({name})")
    return found


def check_idle(bench: Bench) -> Check:
    """Whether nothing else uses the GPUs: a test beside an engine would hurt both."""
    found = users(bench.root)
    hint = "Drain the node and stop its engines (ray.service), then run this again."
    made: Check = check(
        "gpu_health.idle", "GPUs", not found, ", ".join(found) or "unused", "unused", hint=hint
    )
    return made


def at_least(name: str, subject: str, measured: float, floor: dict[str, Any], hint: str) -> Check:
    """A figure against the lowest that is allowed."""
    ok = measured >= floor["min"]
    made: Check = check(
        f"gpu_health.{name}", subject, ok, measured, floor["min"], unit=floor["unit"], hint=hint
    )
    return made


def took_part(name: str, subject: str, seen: int, bench: Bench) -> Check:
    """How many GPUs a test used."""
    hint = "Look for HIP_VISIBLE_DEVICES and ROCR_VISIBLE_DEVICES, then run the quick checks again."
    made: Check = check(
        f"gpu_health.{name}",
        f"{subject}: GPUs",
        seen == bench.count,
        seen,
        bench.count,
        unit="GPUs",
        hint=hint,
    )
    return made


def judge_rvs(bench: Bench) -> list[Check]:
    """The stress test of the ROCm Validation Suite: every kind of matrix product on every GPU."""
    text = bench.output("rvs")
    floors = bench.thresholds["rvs_gst"]
    hint = (
        f"{bench.log('rvs')}; look for throttling (`amd-smi metric --throttle`), power cap and cooling, then "
        "ask the vendor."
    )
    errors = tools.rvs_errors(text)
    first = f"{len(errors)} errors, first: {errors[0][:200]}" if errors else "none"
    made = [check("gpu_health.rvs", "errors in the log", not errors, first, "none", hint=hint)]
    actions = tools.rvs(text)
    for kind, floor in floors["min"].items():
        found = [gpus for action, gpus in actions.items() if action.endswith(f"-{kind}")]
        made.append(_gst(kind, found[0] if found else {}, {**floors, "min": floor}, bench.count, hint))
    return made


def _gst(
    kind: str, gpus: dict[str, tuple[float | None, bool]], floor: dict[str, Any], count: int, hint: str
) -> Check:
    """One kind of product: the slowest GPU decides, and one that reported nothing fails it."""
    subject = f"gst {kind}"
    reached = {gpu: gflops for gpu, (gflops, _) in gpus.items() if gflops is not None}
    made: Check
    if len(reached) != count:
        why = f"{len(reached)} of {count} GPUs reported a figure"
        made = unmade("gpu_health.rvs", subject, why, floor["min"], unit=floor["unit"], hint=hint)
        return made
    slowest = min(reached, key=lambda gpu: reached[gpu])
    unmet = sorted(gpu for gpu, (_, met) in gpus.items() if not met)
    ok = reached[slowest] >= floor["min"] and not unmet
    named = f"{hint} RVS calls the slowest GPU {slowest}" + (
        f"; not met: {', '.join(unmet)}." if unmet else "."
    )
    made = check(
        "gpu_health.rvs", subject, ok, reached[slowest], floor["min"], unit=floor["unit"], hint=named
    )
    return made


def judge_transferbench(bench: Bench) -> list[Check]:
    """Copies between GPUs: all to all at once, then each pair, one way and both ways."""
    hint = "{}; compare with `amd-smi topology` and `amd-smi metric --xgmi-err`."
    average, seen = tools.transferbench_a2a(bench.output("transferbench_a2a"))
    a2a_hint = hint.format(bench.log("transferbench_a2a"))
    made = [
        took_part("transferbench", "a2a", seen, bench),
        at_least("transferbench", "a2a average", average, bench.thresholds["transferbench_a2a"], a2a_hint),
    ]
    pairs = tools.transferbench_p2p(bench.output("transferbench_p2p"))
    p2p_hint = hint.format(bench.log("transferbench_p2p"))
    for way, bandwidth in pairs.items():
        floor = bench.thresholds[f"transferbench_p2p_{way.lower()}"]
        made.append(at_least("transferbench", f"p2p {way} average", bandwidth, floor, p2p_hint))
    return made


def judge_rccl(bench: Bench) -> list[Check]:
    """All-reduce over the GPUs of this node: the bus bandwidth of the largest message, and no wrong value."""
    found = tools.rccl(bench.output("rccl"))
    floor = bench.thresholds["rccl_all_reduce"]
    hint = f"{bench.log('rccl')}; look at xGMI, iommu=pt, NUMA balancing, and NCCL_* in the environment."
    made = [
        took_part("rccl", "all_reduce", found["ranks"], bench),
        check(
            "gpu_health.rccl",
            "wrong values",
            found["wrong"] == 0 and found["ok"],
            found["wrong"],
            0,
            hint=hint,
        ),
    ]
    bandwidth = found["busbw"].get(floor["bytes"])
    subject = f"all_reduce {floor['bytes']} B"
    if bandwidth is None:
        why = f"the table ends at {max(found['busbw'])} B"
        made.append(unmade("gpu_health.rccl", subject, why, floor["min"], unit=floor["unit"], hint=hint))
    else:
        made.append(at_least("rccl", subject, bandwidth, floor, hint))
    return made


TESTS: dict[str, Callable[[Bench], list[Check]]] = {
    "rvs": judge_rvs,
    "transferbench": judge_transferbench,
    "rccl": judge_rccl,
}


def burn(bench: Bench, test: str) -> list[Check]:
    """The checks of one test; nothing is run on GPUs that are in use."""
    idle = check_idle(bench)
    if not idle["ok"]:
        return [idle]
    try:
        return [idle, *TESTS[test](bench)]
    except (tools.Failed, ValueError) as why:
        hint = (
            f"Look at {bench.log_dir} on the node. Install the test, name it in gpu_health_commands, or set "
            "gpu_health_command_prefix where it is in a container."
        )
        return [idle, unmade(f"gpu_health.{test}", test, str(why), "figures", hint=hint)]


def main() -> None:
    """Run the test that Ansible asked for."""
    module = AnsibleModule(
        argument_spec={
            "test": {"type": "str", "choices": list(TESTS), "required": True},
            "count": {"type": "int", "required": True},
            "commands": {"type": "dict", "required": True},
            "thresholds": {"type": "dict", "required": True},
            "prefix": {"type": "list", "elements": "str", "default": []},
            "timeout_s": {"type": "float", "default": 3600},
            "log_dir": {"type": "path", "required": True},
        },
        supports_check_mode=False,
    )
    asked = module.params
    started = time.monotonic()
    bench = Bench(
        count=asked["count"],
        commands=asked["commands"],
        thresholds=asked["thresholds"],
        log_dir=Path(asked["log_dir"]),
        prefix=tuple(asked["prefix"]),
        timeout_s=asked["timeout_s"],
    )
    try:
        checks = burn(bench, asked["test"])
    except KeyError as missing:
        module.fail_json(msg=f"gpu_health_data or gpu_health_commands lacks {missing}")
    except OSError as error:
        module.fail_json(msg=f"the output of {asked['test']} cannot be kept: {error}")
    seconds = round(time.monotonic() - started, 1)
    module.exit_json(changed=False, checks=checks, seconds=seconds)


if __name__ == "__main__":
    main()
