"""Topologies by name: a file of that name, or a family with a ratio.

A family is a file that leaves replicas, mode and name open: ``qwen3-235b.yml`` serves as ``qwen3-235b-1p3d``
(one prefill and three decode engines) and ``qwen3-235b-4agg`` (four aggregated ones); each of its
``variants`` is one more suffix, ``qwen3-235b-1p3d-nocache``. Its ``ratios`` are those that were rendered and
checked; any other resolves too. In a family with a pool ``elastic`` the ratio is the one to begin with.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from splitrail.topology.schema import TopologyError

_NAME = re.compile(
    r"(?P<family>.+?)-(?:(?P<prefill>[1-9]\d*)p(?P<decode>[1-9]\d*)d|(?P<aggregated>[1-9]\d*)agg)(?:-(?P<variant>[a-z0-9]+))?"
)
# Keys of a family that a topology has not.
_FAMILY_KEYS = ("ratios", "variants", "ingress_per_engine")
Raw = dict[str, Any]


def load(name: str, folder: Path) -> Raw:
    """The topology of this name as plain data, for ``parse``.

    Raises TopologyError where the folder has neither a file nor a family for it, naming what it has.
    """
    path = folder / f"{name}.yml"
    if path.is_file():
        raw = _read(path)
        if "ratios" in raw:
            raise TopologyError(f"{name} is a family: add a ratio, such as {name}-{raw['ratios'][0]}")
        return raw
    found = _NAME.fullmatch(name)
    family = folder / f"{found['family']}.yml" if found else None
    if found is None or family is None or not family.is_file():
        known = names(folder)
        near = get_close_matches(name, known, n=1)
        raise TopologyError(
            f"no topology {name} in {folder.name}/"
            + (f", do you mean {near[0]}?" if near else f": there are {', '.join(known)}")
        )
    return _compose(_read(family), name, found)


def names(folder: Path) -> list[str]:
    """Every topology of a folder: its files, and of each family every ratio and variant that it lists."""
    found = []
    for path in sorted(folder.glob("*.yml")):
        raw = _read(path)
        variants = ["", *(f"-{variant}" for variant in raw.get("variants", {}))]
        found += (
            [f"{path.stem}-{ratio}{variant}" for ratio in raw["ratios"] for variant in variants]
            if "ratios" in raw
            else [path.stem]
        )
    return found


def _read(path: Path) -> Raw:
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise TopologyError(f"{path.name}: {error}") from error
    if not isinstance(raw, dict):
        raise TopologyError(f"{path.name}: a topology is a mapping, got {type(raw).__name__}")
    return raw


def _compose(family: Raw, name: str, ratio: re.Match[str]) -> Raw:
    raw = copy.deepcopy({key: value for key, value in family.items() if key not in _FAMILY_KEYS})
    if variant := ratio["variant"]:
        variants = family.get("variants", {})
        if variant not in variants:
            raise TopologyError(
                f"topology {name}: the family has no variant {variant}: "
                f"it has {', '.join(variants) or 'none'}"
            )
        raw = _merged(raw, variants[variant])
    pools = raw["pools"]
    if "elastic" in pools:
        counts = {pool: int(ratio[pool]) for pool in ("prefill", "decode") if ratio[pool]}
        engines = sum(counts.values()) or int(ratio["aggregated"])
        raw |= {"mode": "elastic", "ratio": counts or "aggregated"}
        raw["pools"] = {"elastic": {**pools["elastic"], "replicas": engines}}
    elif ratio["aggregated"]:
        engines = int(ratio["aggregated"])
        raw |= {"mode": "aggregated", "pools": {"aggregated": {**pools["aggregated"], "replicas": engines}}}
    else:
        for pool in ("prefill", "decode"):
            pools[pool] = {**pools[pool], "replicas": int(ratio[pool] or 0)}
        engines = pools["prefill"]["replicas"] + pools["decode"]["replicas"]
        raw["mode"] = "pd"
        if "aggregated" in pools:
            # As many as the same GPUs hold: llm_serve_mode may choose them.
            gpus = sum(_ranks(pools[pool]) * pools[pool]["replicas"] for pool in ("prefill", "decode"))
            pools["aggregated"]["replicas"] = max(1, gpus // _ranks(pools["aggregated"]))
    if "ingress_per_engine" in family:
        raw["ingress"] = {**raw.get("ingress", {}), "replicas": family["ingress_per_engine"] * engines}
    return {"name": name, **raw}


def _ranks(pool: Mapping[str, Any]) -> int:
    ranks: int = pool.get("tensor_parallel_size", 1) * pool.get("data_parallel_size", 1)
    return ranks


def _merged(base: Raw, change: Raw) -> Raw:
    """``base`` with ``change`` laid over it, mapping by mapping."""
    both = dict(base)
    for key, value in change.items():
        old = both.get(key)
        both[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return both
