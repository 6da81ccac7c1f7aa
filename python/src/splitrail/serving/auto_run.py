"""`splitrail rebalance --auto`: the policy of ``auto``, on a cluster, until it is interrupted."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from splitrail.metrics.collect import Collect, CollectError
from splitrail.metrics.window import Snapshot, Window, window
from splitrail.serving.auto import Policy, Ratio, follow


class NoRatio(Exception):
    """What runs has no prefill and decode engines to move; the message says what it has."""


def ratio_of(live: dict[str, Any]) -> Ratio:
    """The ratio of the live application, as ``splitrail canary status`` tells it. Raises NoRatio."""
    found = live.get("ratio") or {}
    if not {"prefill", "decode"} <= found.keys():
        has = ", ".join(f"{count} {pool}" for pool, count in found.items()) or "no engines"
        raise NoRatio(f"{live.get('name')} has {has}: only prefill and decode engines can change places")
    return Ratio(int(found["prefill"]), int(found["decode"]))


def windows(collect: Collect, application: str, seconds: float) -> Callable[[], Window]:
    """Windows of the application, one after another; one without engines where nothing could be read.

    The clock of each is this machine's, so that data that stopped coming grow old.
    """
    last: list[Snapshot] = []

    def read() -> Window:
        if not last:
            last.append(collect())
        time.sleep(seconds)
        try:
            now = collect()
        except CollectError as error:
            return Window(seconds, [], unread={"the cluster": str(error)}, at=time.time())
        before, last[0] = last[0], now
        found = window(before if now.at > before.at else None, now, application)
        found.at = time.time()
        return found

    return read


def automatic(
    collect: Collect,
    live: dict[str, Any],
    policy: Policy,
    apply: Callable[[Ratio], None],
    *,
    say: Callable[[str], None],
    seconds: float = 15.0,
    dry_run: bool = False,
    rounds: int | None = None,
) -> Ratio:
    """Follow the policy until interrupted; says each decision. Raises NoRatio and CollectError."""
    return follow(
        windows(collect, str(live.get("name", "")), seconds),
        apply,
        policy,
        ratio_of(live),
        say=lambda text: say(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {text}"),
        dry_run=dry_run,
        rounds=rounds,
    )
