"""Send the last good Serve config to Ray's head, however long the head takes to answer.

usage: serve_last_good.py URL TOKEN_PATH CONFIG

Ray's head keeps its applications in memory, so a head that comes back is empty until this has run. Sending a
config that already runs changes nothing. Runs on the head's node, standard library only.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

# Installed beside this file.
from splitrail_ray import Head, RayError


def main() -> int:
    """Try every two seconds until the head takes the config."""
    url, token_path, config = sys.argv[1:]
    # Serve answers a PUT only when its controller is up, which takes its time on a fresh head.
    head = Head(url, token_path, timeout_s=150)
    said = ""
    while True:
        try:
            head.request(
                "PUT", "/api/serve/applications/", json.loads(Path(config).read_text(encoding="utf-8"))
            )
        except RayError as error:
            if str(error) != said:
                said = str(error)
                print(f"not yet: {said}", flush=True)
            time.sleep(2)  # between two tries at a head that is still coming up
        else:
            print(f"{config} is deployed", flush=True)
            return 0


if __name__ == "__main__":
    sys.exit(main())
