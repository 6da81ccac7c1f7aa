"""A host that lacks programs."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from splitrail.lab import lab as module
from splitrail.lab import state
from splitrail.lab.report import Reporter
from splitrail.lab.run import LabError
from splitrail.lab.spec import parse


def test_all_missing_packages_in_one_message(
    tmp_path: Path, listing: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = {"systemd-nspawn", "nft"}
    which = shutil.which
    monkeypatch.setattr(
        shutil, "which", lambda name, path: None if name in missing else which("true", path=path)
    )
    monkeypatch.setattr(module, "locked", lambda name, waiting: state.locked(name, waiting, tmp_path))
    lab = parse(Path("/srv/try/hosts.yml"), listing)
    host = module.LabHost(lab, Reporter(Console(file=io.StringIO())))
    with pytest.raises(LabError, match=r"lacks programs; run: apt-get install nftables systemd-container$"):
        host.up(lab.nodes)


def test_vms_need_other_programs(
    tmp_path: Path, listing: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    which = shutil.which
    monkeypatch.setattr(
        shutil, "which", lambda name, path: None if name == "qemu-img" else which("true", path=path)
    )
    monkeypatch.setattr(module, "locked", lambda name, waiting: state.locked(name, waiting, tmp_path))
    for host in listing["_meta"]["hostvars"].values():
        del host["lab_mounts"]
        host["lab_kind"] = "vm"
    lab = parse(Path("/srv/try/hosts.yml"), listing)
    with pytest.raises(LabError, match=r"lacks programs; run: apt-get install qemu-utils$"):
        module.LabHost(lab, Reporter(Console(file=io.StringIO()))).up(lab.nodes)
