"""Read a build's log: by stage, as they began, how many steps ran and how many came from the cache.

usage: stages.py LOG
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

stages: dict[str, dict[str, int]] = {}
# Stages wait for one another and go on amid others' steps: the number in brackets tells whose step it is.
names: dict[str, str] = {}
now, is_from = "", True
for line in Path(sys.argv[1]).read_text(errors="replace").splitlines():
    if step := re.match(r"\[(\d+)/\d+\] STEP \d+/\d+: (.*)", line):
        is_from = step[2].startswith("FROM ")
        if is_from:
            names[step[1]] = step[2].split()[-1]
            stages[names[step[1]]] = {"run": 0, "cached": 0}
        else:
            stages[names[step[1]]]["run"] += 1
        now = names[step[1]]
    elif line.startswith("--> Using cache") and not is_from:
        stages[now]["run"] -= 1
        stages[now]["cached"] += 1
sys.stdout.write(json.dumps({"order": list(stages), "stages": stages}))
