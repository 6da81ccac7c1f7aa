"""The project on disk: where it is, what its ansible.cfg says, and which verbs the whole bring-up has."""

from __future__ import annotations

import configparser
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml


class ProjectError(Exception):
    """The project cannot be found, or one of its files cannot be used."""


@dataclass(frozen=True)
class Project:
    """A folder with ``ansible.cfg`` and ``site.yml``."""

    root: Path

    @classmethod
    def find(cls, start: Path) -> Project:
        """The project that ``start`` lies in; raises ProjectError when no folder above it is one."""
        for folder in (start.resolve(), *start.resolve().parents):
            if (folder / "ansible.cfg").is_file() and (folder / "site.yml").is_file():
                return cls(folder)
        raise ProjectError(
            f"{start}: neither this folder nor one above it holds ansible.cfg and site.yml; "
            "change into the project's folder"
        )

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def config(self) -> Path:
        return self.root / "ansible.cfg"

    def playbook(self, name: str) -> Path:
        """The playbook of that name relative to the project; raises ProjectError when there is none."""
        path = self.root / name
        if not path.is_file():
            raise ProjectError(f"{path}: no such playbook")
        return path

    def verbs(self) -> list[tuple[str, Path]]:
        """The playbooks that site.yml imports, in order, each with its verb: the file's name."""
        site = self.root / "site.yml"
        return [
            (Path(entry["import_playbook"]).stem, (self.root / entry["import_playbook"]).resolve())
            for entry in _entries(site)
            if "import_playbook" in entry
        ]

    def count_plays(self, playbook: Path) -> int | None:
        """How many plays a playbook and its imports hold; None when that is known only at run time."""
        total = 0
        try:
            for entry in _entries(playbook):
                if "import_playbook" not in entry:
                    total += 1
                    continue
                inner = self.count_plays(playbook.parent / entry["import_playbook"])
                if inner is None:
                    return None
                total += inner
        except ProjectError:
            return None
        return total

    def inventory(self, given: str | None) -> str:
        """The inventory's absolute path, by default the one of ansible.cfg.

        Raises ProjectError when there is none, or it does not exist. A host list ("h1,h2") stays as it is.
        """
        if given is None:
            configured = self.setting("inventory")
            if configured is None:
                raise ProjectError("no inventory: name one with -i, or set inventory in ansible.cfg")
            path = self.root / configured
        elif "," in given:
            return given
        else:
            path = Path(given).expanduser()
        if not path.exists():
            there = ", ".join(sorted(p.parent.name for p in self.root.glob("inventories/*/hosts.yml")))
            hint = f"; this project has: {there}" if there else ""
            raise ProjectError(f"inventory {path}: no such file or folder{hint}")
        # As Ansible spells it in a run record: absolute, links resolved.
        return str(path.resolve())

    def setting(self, key: str, section: str = "defaults") -> str | None:
        """A value of ansible.cfg, or None."""
        parser = configparser.ConfigParser(interpolation=None, inline_comment_prefixes=(";",))
        try:
            parser.read(self.config, encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError) as error:
            raise ProjectError(f"{self.config}: {error}") from error
        return parser.get(section, key, fallback=None)

    def setting_paths(self, key: str) -> str:
        """Folders named in ansible.cfg, absolute and joined by colons, as the environment wants them."""
        value = self.setting(key) or ""
        return os.pathsep.join(
            str(self.root / Path(part).expanduser()) for part in value.split(os.pathsep) if part
        )


def _entries(playbook: Path) -> Iterator[dict[str, Any]]:
    try:
        document = yaml.load(playbook.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506  # a SafeLoader
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ProjectError(f"{playbook}: not a readable playbook: {error}") from error
    if not isinstance(document, list) or not all(isinstance(entry, dict) for entry in document):
        raise ProjectError(f"{playbook}: not a playbook: it must be a list of plays and imports")
    for entry in document:
        # The long name is what ansible-lint wants, the short one is what people write.
        if "ansible.builtin.import_playbook" in entry:
            entry["import_playbook"] = entry["ansible.builtin.import_playbook"]
        yield entry


class _Loader(yaml.SafeLoader):
    """Safe, and indifferent to tags that only Ansible knows, such as !vault."""


_Loader.add_multi_constructor("!", lambda _loader, _suffix, _node: None)
