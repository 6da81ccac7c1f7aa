"""Stand-in of the check of a Serve config: asks this image's Ray, which here knows one field."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import ray.serve.llm  # noqa: F401 # fails where the image has no Ray

config = json.loads(Path(sys.argv[1]).read_text())
faults = [] if config.get("applications") else ["config.applications: Field required"]
sys.stdout.write(json.dumps({"ok": not faults, "faults": faults}))
sys.exit(bool(faults))
