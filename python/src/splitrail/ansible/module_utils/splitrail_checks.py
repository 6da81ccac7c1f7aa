"""Build the checks of a verdict on a node.

A module makes all checks of its node in one call and returns them as ``checks``; the action plugin
``splitrail_verdict`` adds the host and files them. Standard library only: this file travels to the nodes.
"""

from __future__ import annotations

from typing import Any


def check(
    name: str, subject: str, ok: bool, measured: Any, required: Any, *, unit: str = "", hint: str = ""
) -> dict[str, Any]:
    """One finding of a verdict, without its host.

    name: stable identifier, ``<verb>.<what>`` (``preflight.memory``).
    subject: what was looked at (``/dev/shm``, ``mlx5_0``).
    measured, required: anything JSON can hold, in ``unit`` (``GiB``, ``Gb/s``, ``ms``).
    hint: the cure in one imperative sentence; give it always, it is shown only when the check fails.

    Raises ValueError when name or subject is empty, or ``ok`` is no bool: a truthy string must not pass.
    """
    if not name or not subject:
        raise ValueError(f"a check needs a name and a subject, got name={name!r}, subject={subject!r}")
    if not isinstance(ok, bool):
        raise ValueError(f"check {name} of {subject}: ok must be a bool, got {ok!r}")
    return {
        "name": name,
        "subject": subject,
        "ok": ok,
        "measured": measured,
        "required": required,
        "unit": unit,
        "hint": hint,
    }


def unmade(
    name: str, subject: str, why: str, required: Any, *, unit: str = "", hint: str = ""
) -> dict[str, Any]:
    """A check that could not be made, and therefore is not ok; ``why`` stands where the measurement would."""
    return check(name, subject, False, f"could not be checked: {why}", required, unit=unit, hint=hint)
