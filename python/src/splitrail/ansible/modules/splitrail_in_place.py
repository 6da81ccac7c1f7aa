#!/usr/bin/python
"""Say in one call whether a role's packages, files and services are on the node as they should be."""

from __future__ import annotations

import hashlib
import stat
import subprocess
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: splitrail_in_place
short_description: Say whether packages, files and services are on the node as they should be
description:
  - Compares and changes nothing. A role skips the tasks that would find nothing to do, each of which costs a
    connection and a start of Python on every node; what differs is left to those tasks.
  - Looks at the node itself, at every call. No stamp of an earlier run is believed, so what was changed by
    hand since is seen.
options:
  packages:
    description: Packages of the distribution that are installed.
    type: list
    elements: str
    default: []
  files:
    description:
      - Files that root owns, by C(dest), C(mode), and C(src), a template, or C(content), a text.
      - The module itself gets C(digest) in place of both; the action of its name makes it.
    type: list
    elements: dict
    default: []
  services: {description: Units that run and are started at boot., type: list, elements: str, default: []}
  paths: {description: Paths that are there., type: list, elements: path, default: []}
  absent: {description: Paths that are not there., type: list, elements: path, default: []}
  lines: {description: "Lines of files, by C(path) and C(line).", type: list, elements: dict, default: []}
author: The splitrail authors
"""

EXAMPLES = r"""
- splitrail_in_place:
    packages: [podman]
    files: [{dest: /etc/containers/storage.conf, mode: "0644", src: storage.conf.j2}]
"""

RETURN = r"""
packages: {description: Whether all packages are installed., type: bool, returned: always}
settings: {description: "Whether all else is in place.", type: bool, returned: always}
differs: {description: "What is not, a sentence each.", type: list, returned: always}
"""

TIMEOUT_S = 60
# User and group of what roles place.
OWNER = (0, 0)


def packages_differ(wanted: list[str]) -> list[str]:
    """Which packages are not installed whole, as dpkg has it; raises OSError where there is no dpkg."""
    if not wanted:
        return []
    words = ["dpkg-query", "--show", "--showformat", "${binary:Package} ${db:Status-Status}\n", *wanted]
    # 1: some are unknown to dpkg, which is an answer. Of a foreign architecture the name ends in ":arch".
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    lines = [line.split(" ") for line in done.stdout.splitlines()]
    present = {name.partition(":")[0] for name, status in lines if status == "installed"}
    return [f"the package {name} is not installed" for name in wanted if name not in present]


def file_differs(dest: str, mode: str, digest: str) -> str | None:
    """What differs in one file; None when nothing does. A link is not the file."""
    path = Path(dest)
    try:
        found = path.lstat()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if stat.S_ISREG(found.st_mode) else ""
    except OSError as error:
        return f"{dest}: {error.strerror}"
    if (found.st_uid, found.st_gid) != OWNER:
        return f"{dest}: belongs to {found.st_uid}:{found.st_gid}, not to root"
    if stat.S_IMODE(found.st_mode) != int(mode, 8):
        return f"{dest}: mode {stat.S_IMODE(found.st_mode):04o}, not {mode}"
    return None if content == digest else f"{dest}: other content"


def line_differs(path: str, line: str) -> str | None:
    """What to say of a file that lacks a line; None when it has it."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        return f"{path}: {error.strerror}"
    return None if line in lines else f"{path}: lacks the line {line}"


def services_differ(wanted: list[str]) -> list[str]:
    """Which units do not run, or are not started at boot."""
    found = []
    for question in ("is-active", "is-enabled") if wanted else ():
        words = ["systemctl", question, *wanted]
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
        # A line a unit, in the order asked; none for a unit that is-enabled does not know.
        answers = done.stdout.split()
        if len(answers) != len(wanted) or set(answers) != {question[3:]}:
            found.append(f"{', '.join(wanted)}: {question} says {' '.join(answers) or done.stderr.strip()}")
    return found


def look(given: dict[str, Any]) -> dict[str, Any]:
    """Compare everything. Raises KeyError for a file without dest, mode or digest."""
    missing = packages_differ(given["packages"])
    files = [file_differs(one["dest"], one["mode"], one["digest"]) for one in given["files"]]
    lines = [line_differs(one["path"], one["line"]) for one in given["lines"]]
    settings = [difference for difference in files + lines if difference]
    settings += services_differ(given["services"])
    settings += [f"{path}: is not there" for path in given["paths"] if not Path(path).exists()]
    settings += [f"{path}: is there" for path in given["absent"] if Path(path).exists()]
    return {"packages": not missing, "settings": not settings, "differs": missing + settings}


def main() -> None:
    options: dict[str, Any] = {
        name: {"type": "list", "elements": elements, "default": []}
        for name, elements in (
            *(("packages", "str"), ("files", "dict"), ("services", "str")),
            *(("paths", "path"), ("absent", "path"), ("lines", "dict")),
        )
    }
    module = AnsibleModule(argument_spec=options, supports_check_mode=True)
    try:
        module.exit_json(changed=False, **look(module.params))
    except KeyError as error:
        module.fail_json(msg=f"one of files has no {error}")
    except (ValueError, OSError, subprocess.SubprocessError) as error:
        module.fail_json(msg=f"what is in place could not be looked at: {error}")


if __name__ == "__main__":
    main()
