"""Write every file that the roles would place on the hosts of an inventory into a folder, for review.

Not rendered are secrets, and what is the same in every cluster: the programs under ``roles/*/files``.

The folder holds ``<host>/<path on the host>`` and ``index.json``. It is replaced as a whole: a file that is
no longer rendered is gone, and a rendering that fails leaves the former one as it was. Nothing in it depends
on when or where it was made.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from splitrail.inventory.before import require
from splitrail.placing import NOTES, RenderError, place
from splitrail.project import Project
from splitrail.run.playbook import Interrupts, Options, Step, run_step
from splitrail.run.record import load

__all__ = ["INDEX", "RenderError", "Rendering", "place", "render"]

PLAYBOOK = "playbooks/render.yml"
INDEX = "index.json"
# What the playbook hands out with ansible.builtin.set_stats.
STATS_KEY = "splitrail_render"


@dataclass(frozen=True)
class Rendering:
    """A finished rendering: its folder and the content of its index."""

    folder: Path
    index: dict[str, Any]

    def per_host(self) -> dict[str, int]:
        """How many files each host gets."""
        return dict(sorted(Counter(file["host"] for file in self.index["files"]).items()))


def render(project: Project, options: Options, out: Path | None = None) -> Rendering:
    """Render an inventory into ``out``, by default ``build/render/<cluster_name>`` of the project.

    Raises RenderError naming host and reason, or when ``out`` holds anything but a former rendering;
    CannotRun and ProjectError as the verbs do. No host is contacted.
    """
    require(project, options.inventory, options.extra_vars)
    parent = out.absolute().parent if out else project.root / "build/render"
    if out:
        _check_replaceable(out)
    parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=".render-", dir=parent))
    try:
        stats = _run(project, options, stage)
        target = out.absolute() if out else parent / str(stats["cluster"])
        _check_replaceable(target)
        index = _write_index(stage, stats)
        stage.chmod(0o755)
        former = Path(tempfile.mkdtemp(prefix=".former-", dir=parent))
        try:
            if target.exists():
                target.rename(former / "tree")
            stage.rename(target)
        finally:
            shutil.rmtree(former)
    finally:
        shutil.rmtree(stage, ignore_errors=True)  # there only when something went wrong
    return Rendering(target, index)


def _check_replaceable(target: Path) -> None:
    """Only an empty folder or a former rendering is replaced: --out may be mistyped."""
    if not target.exists():
        return
    if not target.is_dir():
        raise RenderError(f"{target} is not a folder: name another one with --out")
    if any(target.iterdir()) and not (target / INDEX).is_file():
        raise RenderError(
            f"{target} holds no {INDEX}, so it is no former rendering and is left alone: "
            "remove it, or name another folder with --out"
        )


def _run(project: Project, options: Options, stage: Path) -> dict[str, Any]:
    """Run the playbook; leaves no run record, because nothing is done to any host."""
    with tempfile.TemporaryDirectory(prefix="splitrail-render-") as name:
        record = Path(name)
        root = json.dumps({"splitrail_render_root": str(stage)})
        interrupts = Interrupts(lambda: None)
        with interrupts.caught():
            outcome = run_step(
                project,
                Step((project.playbook(PLAYBOOK),)),
                Options(inventory=options.inventory, extra_vars=(*options.extra_vars, root)),
                record,
                on_event=lambda _event: None,
                interrupts=interrupts,
            )
        # The record is read for its failures, and goes with the folder.
        failures = load(record).failures if (record / "run.json").exists() else []
    if interrupts.count:
        raise RenderError("interrupted; the former rendering is as it was")
    if outcome.code or failures:
        why = [f"{failure.host}: {failure.message}" for failure in failures] or outcome.errors
        raise RenderError("\n".join(why) or f"ansible-playbook ended with code {outcome.code}")
    stats = outcome.data.get(STATS_KEY)
    if not isinstance(stats, dict):
        raise RenderError(
            f"{PLAYBOOK} handed out no {STATS_KEY}: does the inventory {options.inventory} have hosts?"
        )
    return stats


def _write_index(stage: Path, stats: dict[str, Any]) -> dict[str, Any]:
    notes = stage / NOTES
    lines = [line for file in notes.iterdir() for line in file.read_text(encoding="utf-8").splitlines()]
    shutil.rmtree(notes)
    files = sorted(map(json.loads, lines), key=lambda note: (note["host"], note["path"]))
    index = {**dict(sorted(stats.items())), "files": files}
    (stage / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return index
