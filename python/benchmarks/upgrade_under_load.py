"""Upgrade the lab to another release and back under a steady load of real requests, and count what fails.

usage: python python/benchmarks/upgrade_under_load.py [HOLD_S]     how long a request may wait; by default 600

The lab must stand and serve (`make lab`), with nothing else of it under way. The other release is the lab's
own with NIXL 1.5.0, which is what prefill and decode engines exchange KV caches by; its image is built first.
Two clients send a streamed request of 16 tokens every second each (`safe_deploys.py`) while
`splitrail upgrade` goes there, for a while after that, and while it comes back; each waits HOLD_S for an
answer. Prints a Markdown table: seconds, requests that ended meanwhile, how many of them failed or were
answered wrong, and the longest that one took. Exit code 0 when none failed and none was answered wrong.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import yaml
from safe_deploys import PROMPTS, ROOT, Json, Load, ask, client, meanwhile, splitrail

RELEASES = ROOT / "inventories/releases"
NIXL = "1.5.0"
BETWEEN_S = 60


@contextmanager
def release_like(of: str, suffix: str, change: Callable[[Json], None]) -> Iterator[str]:
    """A release that differs from another by ``change``; its file is there until the end."""
    release = yaml.safe_load((RELEASES / f"{of}.yml").read_text())
    release["name"] = f"{of}-{suffix}"
    change(release)
    file = RELEASES / f"{release['name']}.yml"
    file.write_text(yaml.safe_dump(release, sort_keys=False))
    try:
        yield release["name"]
    finally:
        file.unlink()


def other_nixl(release: Json) -> None:
    """Have a release pin another NIXL, and nothing else."""
    had = release["nixl"]
    release["nixl"] = release["image_test"]["versions"]["nixl"] = NIXL
    release["wheels"] = [
        one.replace(had, NIXL) if one.startswith(("nixl==", "nixl-")) else one for one in release["wheels"]
    ]


def main() -> int:
    """There and back."""
    hold = sys.argv[1] if len(sys.argv) > 1 else "600"
    with client() as who:
        load = Load([ask(who, number) for number in range(PROMPTS)], timeout_s=float(hold) or 120)
    with release_like("cpu", f"nixl-{NIXL}", other_nixl) as name:
        return meanwhile(
            {
                f"upgrade to {name}": lambda: splitrail("upgrade", "--to", name, "--hold", hold),
                "it serves": lambda: time.sleep(BETWEEN_S),
                "upgrade back to cpu": lambda: splitrail("upgrade", "--to", "cpu", "--hold", hold),
            },
            load,
        )


if __name__ == "__main__":
    sys.exit(main())
