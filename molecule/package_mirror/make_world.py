"""Make the small bundle of the unit tests in a folder: packages, and the wheels of a lock."""

import os
import shutil
import sys
from pathlib import Path

root = Path(sys.argv[1])
shutil.rmtree(root, ignore_errors=True)
root.mkdir(parents=True)
os.environ |= {"PIP_CONFIG_FILE": "/dev/null", "PIP_INDEX_URL": f"file://{root}/index/simple"}
for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"):
    os.environ.pop(name, None)
sys.path.insert(0, str(Path(__file__).parents[2] / "python"))

from tests.bundle.conftest import World  # noqa: E402  # found by the line above

World(root).create()
