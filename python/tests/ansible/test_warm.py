"""What the parent loads before Ansible forks; a plugin that is loaded twice would be loaded in every fork."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from splitrail import release_cache
from splitrail.ansible.filter.splitrail_release import splitrail_release

ROOT = Path(__file__).parents[3]
SCRIPT = """
import sys
from pathlib import Path
from ansible.plugins import loader
from splitrail.ansible.warm import warm
loader.init_plugin_loader()
assert "splitrail.topology" not in sys.modules
if sys.argv[1] == "warm":
    warm(Path.cwd())
if sys.argv[1] == "one is missing":
    warm(Path.cwd(), ["splitrail.no_such_module", "splitrail.topology"])
before = set(sys.modules)
found = loader.filter_loader.get("splitrail_topology_named")
assert found is not None
loader.connection_loader.get("ssh", class_only=True)
print(sorted(set(sys.modules) - before))
"""


def loaded_later(how: str) -> str:
    """The modules that a first use of a filter and of the connection loads."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, how],
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")},
        cwd=ROOT,
        text=True,
        capture_output=True,
        check=True,
        timeout=60,
    )
    return done.stdout.splitlines()[-1]


def test_nothing_is_left_to_load_in_a_fork() -> None:
    assert loaded_later("warm") == "[]"


def test_without_it_everything_is() -> None:
    found = loaded_later("cold")
    assert "splitrail.topology" in found
    assert "ansible.plugins.connection.ssh" in found


def test_releases_are_checked_once(tmp_path: Path) -> None:
    shipped = ROOT / "inventories/releases"
    assert release_cache.preload(shipped) == len(list(shipped.glob("*.yml")))
    before = release_cache.checked.cache_info()
    raw = yaml.safe_load((shipped / "cpu.yml").read_text())
    splitrail_release(raw, "cpu.yml")
    after = release_cache.checked.cache_info()
    assert (after.hits, after.misses) == (before.hits + 1, before.misses)
    (tmp_path / "bad.yml").write_text("name: [")
    (tmp_path / "short.yml").write_text("name: x\n")
    assert release_cache.preload(tmp_path) == 0


def test_a_module_that_is_not_there_is_left_to_whoever_needs_it() -> None:
    assert loaded_later("one is missing") == "[]"


@pytest.mark.parametrize(("hooked", "collects"), [(True, False), (False, True)])
def test_a_fork_collects_no_garbage_and_its_parent_does(hooked: bool, collects: bool) -> None:
    code = (
        "import gc, os\nfrom splitrail.ansible.warm import keep_shared\n"
        f"if {hooked}:\n    keep_shared()\n"
        "if os.fork() == 0:\n    os._exit(int(gc.isenabled()))\n"
        "_, status = os.wait()\nassert gc.isenabled()\nassert gc.get_freeze_count() == 0\n"
        "raise SystemExit(os.waitstatus_to_exitcode(status))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == int(collects)
