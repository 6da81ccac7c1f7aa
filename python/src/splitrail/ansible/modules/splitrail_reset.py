#!/usr/bin/python
"""Say what there is to be deleted on this host, or delete exactly what was said."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: splitrail_reset
short_description: Say what there is to be deleted on this host, or delete exactly what was said
description:
  - C(looked) lists the files, folders and images that are there; C(absent) deletes those of I(items), which
    must be among what it may delete.
  - A link is deleted as a link. What is a mount, or holds one, is refused, and then nothing is deleted.
options:
  state: {description: What to do., type: str, required: true, choices: [looked, absent]}
  paths: {description: "Files and folders that it may delete, absolute.", type: list, elements: path,
          required: true}
  images: {description: "Repository of the images that it may delete (C(splitrail/serving)).", type: str,
           required: true}
  engine: {description: The container engine., type: str, default: podman, choices: [podman, docker]}
  items: {description: "What to delete, as C(looked) returned it.", type: list, elements: dict, default: []}
author: The splitrail authors
"""

EXAMPLES = r"""
- splitrail_reset:
    state: looked
    paths: [/etc/ray]
    images: splitrail/serving
  register: there
"""

RETURN = r"""
items: {description: "What is there, or was deleted: kind, name, bytes.", type: list, elements: dict,
        returned: success}
"""

Item = dict[str, Any]
# A path of fewer parts is no place of the suite: /, /etc, /var/lib.
LEAST_PARTS = 4


class Refused(Exception):
    """Nothing is deleted; ``str()`` says why."""


def size(path: Path) -> int:
    """Bytes that a file, or a folder with all in it, takes on disk."""
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_blocks * 512
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            try:
                total += Path(folder, name).lstat().st_blocks * 512
            except FileNotFoundError:
                continue  # what runs may delete its own
    return total


def look(paths: list[str], images: str, engine: str) -> list[Item]:
    """What is there of it."""
    found = [
        {
            "kind": "folder" if path.is_dir() and not path.is_symlink() else "file",
            "name": name,
            "bytes": size(path),
        }
        for name in paths
        if (path := Path(name)).exists() or path.is_symlink()
    ]
    return found + [
        {"kind": "image", "name": name, "bytes": amount}
        for name, amount in local_images(images, engine).items()
    ]


def local_images(repository: str, engine: str) -> dict[str, int]:
    """The images of a repository by their names, with bytes; not those of a store that is only read."""
    if shutil.which(engine) is None:
        return {}
    if engine == "docker":
        done = run([engine, "images", "--format", "{{json .}}"])
        rows = [json.loads(line) for line in done.splitlines() if line.strip()]
        named = {f"{row['Repository']}:{row['Tag']}": 0 for row in rows}
    else:
        rows = json.loads(run([engine, "images", "--format", "json"]) or "[]")
        named = {
            name: int(row.get("Size", 0))
            for row in rows
            if not row.get("ReadOnly")
            for name in row.get("Names") or []
        }
    return {name: amount for name, amount in sorted(named.items()) if is_of(name, repository)}


def is_of(name: str, repository: str) -> bool:
    """Whether an image's name is of a repository, on whatever registry."""
    return name.rpartition(":")[0].split("/", 1)[-1] == repository or name.rpartition(":")[0] == repository


def run(command: list[str]) -> str:
    """What a program prints. Raises Refused when it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Refused(f"{' '.join(command)}: {error}") from error
    if done.returncode:
        raise Refused(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()[-500:]}")
    return done.stdout


def mounts() -> list[str]:
    """Where file systems are mounted."""
    lines = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
    return [line.split()[1].replace("\\040", " ") for line in lines]


def refuse(items: list[Item], paths: list[str], images: str, mounted: list[str]) -> None:
    """Raise Refused for an item that may not be deleted."""
    for item in items:
        name = str(item["name"])
        if item["kind"] == "image":
            if not is_of(name, images):
                raise Refused(f"{name} is no image of {images}")
            continue
        path = Path(name)
        if name not in paths or not path.is_absolute() or ".." in path.parts or len(path.parts) < LEAST_PARTS:
            raise Refused(f"{name} is nothing that a reset may delete")
        inside = [one for one in mounted if one == name or one.startswith(name.rstrip("/") + "/")]
        if inside:
            raise Refused(f"{name}: {inside[0]} is a mount; unmount it, or delete what is in it by hand")


def delete(items: list[Item], engine: str) -> list[Item]:
    """Delete what is still there of these, and return it."""
    gone = []
    for item in items:
        path = Path(str(item["name"]))
        if item["kind"] == "image":
            run([engine, "rmi", "--force", str(item["name"])])
        elif path.is_symlink() or path.is_file():
            path.unlink()
        elif path.is_dir():
            shutil.rmtree(path)
        else:
            continue
        gone.append(item)
    return gone


def main() -> None:
    """Entry point of the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "required": True, "choices": ["looked", "absent"]},
            "paths": {"type": "list", "elements": "path", "required": True},
            "images": {"type": "str", "required": True},
            "engine": {"type": "str", "default": "podman", "choices": ["podman", "docker"]},
            "items": {"type": "list", "elements": "dict", "default": []},
        },
        supports_check_mode=True,
    )
    given = module.params
    try:
        there = look(given["paths"], given["images"], given["engine"])
        if given["state"] == "looked":
            module.exit_json(changed=False, items=there)
        # Only what was shown, and of that only what is still there.
        known = {(item["kind"], item["name"]) for item in there}
        items = [item for item in given["items"] if (item["kind"], item["name"]) in known]
        refuse(given["items"], given["paths"], given["images"], mounts())
        gone = items if module.check_mode else delete(items, given["engine"])
    except (Refused, OSError, ValueError) as error:
        module.fail_json(msg=f"reset: {error}")
    module.exit_json(changed=bool(gone), items=gone)


if __name__ == "__main__":
    main()
