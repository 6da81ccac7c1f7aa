"""Read a build's log: by stage, in the order built, how many steps ran and how many came from the cache.

usage: stages.py LOG
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

stages: dict[str, dict[str, int]] = {}
now, is_from = "", True
for line in Path(sys.argv[1]).read_text(errors="replace").splitlines():
    if step := re.match(r"\[\d+/\d+\] STEP \d+/\d+: (.*)", line):
        is_from = step[1].startswith("FROM ")
        if is_from:
            now = step[1].split()[-1]
            stages[now] = {"run": 0, "cached": 0}
        else:
            stages[now]["run"] += 1
    elif line.startswith("--> Using cache") and not is_from:
        stages[now]["run"] -= 1
        stages[now]["cached"] += 1
sys.stdout.write(json.dumps({"order": list(stages), "stages": stages}))
