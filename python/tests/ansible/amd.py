"""The tools of a healthy GPU server, answering from recorded files that a test can spoil first."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# From where the modules import it: from elsewhere it would be another class.
from ansible.module_utils.splitrail_gpu_tools import Failed

FIXTURES = Path(__file__).parents[1] / "fixtures/amd"
FILES = {
    **{f"amd-smi {name}": f"amd-smi-{name}.json" for name in ("list", "static", "metric", "firmware")},
    "amd-smi bad-pages": "amd-smi-bad-pages.json",
    "amd-smi topology": "amd-smi-topology.json",
    "rocm-smi": "rocm-smi-showtopo.txt",
    "rocminfo": "rocminfo.txt",
    "rvs": "rvs-gst.txt",
    "TransferBench a2a": "transferbench-a2a.txt",
    "TransferBench p2p": "transferbench-p2p.txt",
    "all_reduce_perf": "rccl-all-reduce.txt",
}


def recorded(tool: str) -> str:
    """What a tool prints on a healthy server."""
    return (FIXTURES / FILES[tool]).read_text(encoding="utf-8")


@dataclass
class Tools:
    """Stands for `splitrail_gpu_tools.run`."""

    texts: dict[str, str] = field(default_factory=dict)
    failures: dict[str, Failed] = field(default_factory=dict)
    asked: list[list[str]] = field(default_factory=list)

    def __call__(self, argv: list[str], timeout_s: float) -> str:
        assert timeout_s > 0
        self.asked.append(argv)
        joined = " ".join(argv)
        (tool,) = [name for name in FILES if f" {name} " in f" {joined} "]
        if tool in self.failures:
            raise self.failures[tool]
        return self.texts.get(tool, recorded(tool))

    def edit(self, tool: str, change: Callable[[Any], object]) -> None:
        """Change a JSON answer in place; ``change`` gets the list of GPUs."""
        document = json.loads(self.texts.get(tool, recorded(tool)))
        change(document["gpu_data"] if isinstance(document, dict) else document)
        self.texts[tool] = json.dumps(document)

    def replace(self, tool: str, old: str, new: str, count: int = 1) -> None:
        """Change a text answer; what is to be replaced must be there."""
        text = self.texts.get(tool, recorded(tool))
        assert old in text
        self.texts[tool] = text.replace(old, new, count)
