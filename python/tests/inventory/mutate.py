"""Good inventories made bad in one way each, for tests and for benchmarks/bad_inventories.py.

A mutation changes a copy of a shipped inventory and says which file and which word the refusal must name.
"""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from splitrail.inventory.vocabulary import Vocabulary, is_template

ROOT = Path(__file__).parents[3]
GOOD = ("lab", "lab-fabric", "mi325x", "h200")


class Bad(NamedTuple):
    """What was done, and what the refusal must name: the file's name and a word of the key."""

    what: str
    file: str
    key: str


class Skip(Exception):
    """This inventory has nothing that could be made bad in this way."""


def copy(name: str, into: Path) -> Path:
    """A copy of a shipped inventory with the releases and topologies beside it."""
    base = into / "inventories"
    for folder in ("releases", "topologies"):
        if not (base / folder).exists():
            shutil.copytree(ROOT / "inventories" / folder, base / folder)
    target = base / name
    if target.exists():
        shutil.rmtree(target)
    shutil.copytree(ROOT / "inventories" / name, target)
    return target


def _files(root: Path) -> list[Path]:
    return sorted((root / "group_vars").rglob("*.yml"))


def _plain(root: Path, draw: random.Random, wanted: Callable[[str, Any], bool]) -> tuple[Path, str, Any]:
    """A variable that stands on one line with a plain value, at random."""
    found = []
    for path in _files(root):
        values = yaml.safe_load(path.read_text()) or {}
        for key, value in values.items():
            text = re.search(rf"^{key}: *[^>|&\s].*$", path.read_text(), re.MULTILINE)
            if text and not is_template(value) and wanted(key, value):
                found.append((path, key, value))
    if not found:
        raise Skip
    return draw.choice(found)


def _write(path: Path, key: str, line: str) -> None:
    """Put another line in the place of a variable, with what belongs to it."""
    text = re.sub(
        rf"^{key}:.*\n(?:[ \t-].*\n|\n(?=[ \t-]))*", f"{line}\n", path.read_text(), count=1, flags=re.M
    )
    path.write_text(text)


def misspelt_variable(root: Path, draw: random.Random, known: Vocabulary) -> Bad:
    path, key, _ = _plain(root, draw, lambda name, _: len(name) > 6 and name in known.typed)
    while True:
        at = draw.randrange(3, len(key))
        wrong = key[:at] + key[at + 1 :] if draw.random() < 0.5 else key[:at] + "x" + key[at:]
        if wrong not in known.known():
            break
    path.write_text(re.sub(rf"^{key}:", f"{wrong}:", path.read_text(), count=1, flags=re.M))
    return Bad(f"{key} is misspelt as {wrong}", path.name, wrong)


def _kind(known: Vocabulary, name: str) -> str:
    kinds = known.typed.get(name, {}).get("type", "")
    return kinds if isinstance(kinds, str) else str(kinds[0])


def wrong_type(root: Path, draw: random.Random, known: Vocabulary) -> Bad:
    wrong = {"integer": "many", "number": "[1]", "boolean": "perhaps", "array": "five", "object": "[a]"}

    def typed(name: str, _: Any) -> bool:
        return _kind(known, name) in {*wrong, "string"}

    path, key, _ = _plain(root, draw, typed)
    kind = _kind(known, key)
    value = wrong.get(kind, "{a: b}")
    _write(path, key, f"{key}: {value}")
    return Bad(f"{key} is {value}, and it is of type {kind}", path.name, key)


def wrong_choice(root: Path, draw: random.Random, known: Vocabulary) -> Bad:
    path, key, value = _plain(root, draw, lambda name, _: "enum" in known.typed.get(name, {}))
    _write(path, key, f"{key}: {value}x")
    return Bad(f"{key} is no choice", path.name, key)


def negative_amount(root: Path, draw: random.Random, known: Vocabulary) -> Bad:
    path, key, _ = _plain(root, draw, lambda name, _: "minimum" in known.typed.get(name, {}))
    _write(path, key, f"{key}: -{draw.randrange(2, 100)}")
    return Bad(f"{key} is negative", path.name, key)


def unknown_field(root: Path, draw: random.Random, known: Vocabulary) -> Bad:
    del known, draw
    for path in _files(root):
        text = path.read_text()
        for key, right, wrong in (
            ("preflight_disk", "free_gib", "free_gb"),
            ("lab_mounts", "target:", "tarjet:"),
            ("roce_nic_rails", "address:", "adress:"),
        ):
            if re.search(rf"^{key}:\n", text, re.M) and right in text:
                path.write_text(text.replace(right, wrong, 1))
                return Bad(f"{wrong} in {key}", path.name, key)
    raise Skip


def not_yaml(root: Path, draw: random.Random, known: Vocabulary) -> Bad:
    del known
    path = draw.choice(_files(root))
    path.write_text(path.read_text() + "broken: [1, 2\nmore: }\n")
    return Bad("no YAML", path.name, "YAML")


def broken_template(root: Path, draw: random.Random, known: Vocabulary) -> Bad:
    del known
    path = draw.choice([path for path in _files(root) if re.search(r"^[^#\n]* }}", path.read_text(), re.M)])
    text = path.read_text()
    at = draw.choice([found.end() - 3 for found in re.finditer(r"^[^#\n]*? }}", text, re.M)])
    key = re.findall(r"^(\w+):", text[:at], re.M)[-1]
    path.write_text(text[:at] + " )}}" + text[at + 3 :])
    return Bad(f"a template of {key} is broken", path.name, key)


def unknown_name(root: Path, draw: random.Random, known: Vocabulary) -> Bad:
    del known
    found = [
        (path, match)
        for path in _files(root)
        for match in re.finditer(r"^[^#\n]*\{\{ ([a-z_]{8,}) ", path.read_text(), re.M)
        if match[1] not in ("lookup", "inventory_dir")
    ]
    if not found:
        raise Skip
    path, match = draw.choice(found)
    wrong = match[1] + "q"
    text = path.read_text()
    path.write_text(text[: match.start(1)] + wrong + text[match.end(1) :])
    return Bad(f"a template reads {wrong}", path.name, wrong)


def twice(root: Path, draw: random.Random, known: Vocabulary) -> Bad:
    path, key, value = _plain(root, draw, lambda _, value: isinstance(value, str | int) and value != "")
    del known
    path.write_text(path.read_text() + f"\n{key}: {yaml.safe_dump(value).splitlines()[0]}\n")
    return Bad(f"{key} stands twice", path.name, key)


def plain_secret(root: Path, draw: random.Random, known: Vocabulary) -> Bad:
    del known
    path = draw.choice(_files(root))
    path.write_text(path.read_text() + "\nray_cluster_token: hunter2hunter2\n")
    return Bad("a secret in plain text", path.name, "ray_cluster_token")


def unknown_topology(root: Path, draw: random.Random, known: Vocabulary) -> Bad:
    del known
    path = root / "group_vars/all/main.yml"
    if "topology_name" not in path.read_text():
        raise Skip
    _write(path, "topology_name", f"topology_name: qwen3-{draw.randrange(300, 400)}b-1p1d")
    return Bad("no such topology", path.name, "topology")


def no_cluster_name(root: Path, draw: random.Random, known: Vocabulary) -> Bad:
    del known, draw
    path = root / "group_vars/all/main.yml"
    path.write_text(re.sub(r"^cluster_name:.*\n", "", path.read_text(), flags=re.M))
    return Bad("cluster_name is missing", root.name, "cluster_name")


def group_of_no_one(root: Path, draw: random.Random, known: Vocabulary) -> Bad:
    del known
    name = draw.choice(["prefil", "decod", "heads", "workres"])
    (root / f"group_vars/{name}.yml").write_text("---\npool: any\n")
    return Bad(f"group_vars/{name}.yml of no group", f"{name}.yml", name)


def _hosts(root: Path) -> tuple[Path, str]:
    return root / "hosts.yml", (root / "hosts.yml").read_text()


def no_address(root: Path, draw: random.Random, known: Vocabulary) -> Bad:
    del known
    path, text = _hosts(root)
    found = draw.choice(list(re.finditer(r"ansible_host: [0-9.]+,? ?", text)))
    path.write_text(text[: found.start()] + text[found.end() :])
    return Bad("a host without an address", path.name, "ansible_host")


def same_address(root: Path, draw: random.Random, known: Vocabulary) -> Bad:
    del known
    path, text = _hosts(root)
    found = re.findall(r"ansible_host: ([0-9.]+)", text)
    if len(found) < 2:
        raise Skip
    one, other = draw.sample(found, 2)
    path.write_text(text.replace(one, other))
    return Bad("two hosts with one address", path.name, "ansible_host")


def no_such_address(root: Path, draw: random.Random, known: Vocabulary) -> Bad:
    del known
    path, text = _hosts(root)
    found = draw.choice(list(re.finditer(r"ansible_host: ([0-9.]+)", text)))
    wrong = draw.choice(["10.10.0.300", "10.10.0", "10..1.2", "300.1.1.1"])
    path.write_text(text[: found.start(1)] + wrong + text[found.end(1) :])
    return Bad(f"{wrong} is no address", path.name, "ansible_host")


def no_head(root: Path, draw: random.Random, known: Vocabulary) -> Bad:
    del known
    path, text = _hosts(root)
    path.write_text(re.sub(r"\bhead:", draw.choice(["heat:", "haed:"]), text))
    return Bad("no head", path.name, "head")


def two_heads(root: Path, draw: random.Random, known: Vocabulary) -> Bad:
    del known, draw
    path, text = _hosts(root)
    others = re.findall(r"^ +([a-z0-9-]+-[a-z0-9]+):", text, re.M)
    head = re.search(r"^( +)head:\n( +)hosts:\n( +)(\S+):.*\n", text, re.M)
    assert head is not None
    other = next((name for name in others if name != head[4]), None)
    if other is None:
        raise Skip
    path.write_text(text[: head.end()] + f"{head[3]}{other}:\n" + text[head.end() :])
    return Bad("two heads", path.name, "head")


def misspelt_key_of_a_group(root: Path, draw: random.Random, known: Vocabulary) -> Bad:
    del known
    path, text = _hosts(root)
    found = draw.choice(list(re.finditer(r"\bhosts:|\bchildren:", text)))
    path.write_text(text[: found.end() - 2] + ":" + text[found.end() :])
    return Bad("a misspelt key of a group", path.name, found[0][:-2])


def empty_pool(root: Path, draw: random.Random, known: Vocabulary) -> Bad:
    del known
    path, text = _hosts(root)
    pool = draw.choice(["prefill", "decode"])
    serve = "".join(path.read_text() for path in _files(root))
    if not re.search(rf"^ +{pool}: \{{{pool}:", serve, re.MULTILINE):
        raise Skip  # its engines run wherever there are GPUs
    changed = re.sub(rf"^( +){pool}:\n +hosts:\n(?: {{8}}.*\n)+", rf"\1{pool}:\n", text, count=1, flags=re.M)
    if changed == text:
        raise Skip
    path.write_text(changed)
    return Bad(f"pool {pool} has no host", path.name, pool)


def rails(root: Path, draw: random.Random, known: Vocabulary) -> Bad:
    """Rails that do not fit, on one host, by host_vars."""
    del known
    _, text = _hosts(root)
    positions = re.findall(r"^ +(\S+): \{ansible_host: ([0-9.]+), rail_position: (\d+)\}", text, re.M)
    if not positions:
        raise Skip
    host, address, position = draw.choice(positions)
    other = draw.choice([entry for entry in positions if entry[0] != host])
    mine = _rails_of(root.name, int(position))
    what = draw.choice(["fewer", "pci", "taken", "outside", "overlap", "management", "no rail", "twice"])
    rail = draw.randrange(len(mine))
    if what == "fewer":
        mine.pop(rail)
    elif what == "pci":
        mine[rail]["pci"] = "0000:zz:00.0"
    elif what == "taken":
        mine[rail] = {**_rails_of(root.name, int(other[2]))[rail], "pci": mine[rail]["pci"]}
    elif what == "outside":
        mine[rail] = {**mine[rail], "gateway": "192.0.2.1"}
    elif what == "overlap":
        mine[rail] = {**mine[rail], "address": mine[rail - 1]["address"], "gateway": ""}
        mine[rail].pop("gateway")
    elif what == "management":
        mine[rail] = {"rail": mine[rail]["rail"], "pci": mine[rail]["pci"], "address": f"{address}/24"}
    elif what == "no rail":
        mine[rail]["rail"] = 200
    else:
        mine[rail]["rail"] = mine[rail - 1]["rail"]
    folder = root / "host_vars"
    folder.mkdir(exist_ok=True)
    (folder / f"{host}.yml").write_text(yaml.safe_dump({"roce_nic_rails": mine}))
    # Against another host's rails both are at fault, and either may be named.
    return Bad(f"rails of {host}: {what}", "", "rail")


def _rails_of(name: str, position: int) -> list[dict[str, Any]]:
    if name == "mi325x":
        pci = ["0c", "2a", "41", "58", "86", "a5", "bd", "d5"]
        return [
            {
                "rail": rail,
                "pci": f"0000:{bus}:00.0",
                "address": f"10.30.{rail}.{2 * position}/31",
                "gateway": f"10.30.{rail}.{2 * position + 1}",
            }
            for rail, bus in enumerate(pci)
        ]
    return [
        {"rail": rail, "pci": f"0000:0{rail + 1}:00.0", "address": f"10.89.1{rail}.{position}/24"}
        for rail in range(2)
    ]


MUTATIONS: dict[str, Callable[[Path, random.Random, Vocabulary], Bad]] = {
    one.__name__: one
    for one in (
        misspelt_variable,
        wrong_type,
        wrong_choice,
        negative_amount,
        unknown_field,
        not_yaml,
        broken_template,
        unknown_name,
        twice,
        plain_secret,
        unknown_topology,
        no_cluster_name,
        group_of_no_one,
        no_address,
        same_address,
        no_such_address,
        no_head,
        two_heads,
        misspelt_key_of_a_group,
        empty_pool,
        rails,
    )
}
