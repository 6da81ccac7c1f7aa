"""Lay out a folder as a bundle's server would: git repositories, an index of wheels, an interpreter.

usage: make_sources.py SOURCES FOLDER URL

SOURCES has a folder a git repository, FOLDER/downloads wheels of the public index; FOLDER is served at URL.
Writes FOLDER/commits.json, the commits by name: what the releases of this scenario pin.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

ROCM_TORCH = "2.9.1+rocm7.0"
# Stand-ins of wheels: (name, version, what it requires, its modules). Some names have a CUDA build too, which
# is what a resolver takes when nothing keeps it from that.
VLLM = {"vllm/__init__.py": "", "vllm/_C.py": ""}
# Serve's log as the real one makes it: the Containerfile changes a line of it, and the image's test tries it.
SERVE_LOG = """\
import logging.handlers


def configure_component_logger(*, component_name, component_id, logging_config, max_bytes, backup_count):
    logger = logging.getLogger("ray.serve")
    file_handler = logging.FileHandler(f"{logging_config['logs_dir']}/{component_name}.log")
    memory_handler = logging.handlers.MemoryHandler(capacity=1, target=file_handler)
    logger.addHandler(memory_handler)
"""
# And a request to a prefill engine, of which it changes a line too.
PREFILL = """\
def _prepare_prefill_request(request):
    prefill_request = request.model_copy(deep=True)
    prefill_request.max_tokens = 1
    return prefill_request
"""
RAY = {
    "ray/__init__.py": "",
    "ray/llm/_internal/serve/pd_server.py": PREFILL,
    "ray/serve/__init__.py": "",
    "ray/serve/llm.py": "",
    "ray/serve/schema.py": "LoggingConfig = dict\n",
    "ray/serve/_private/__init__.py": "",
    "ray/serve/_private/logging_utils.py": SERVE_LOG,
}
TORCH = {"torch/__init__.py": "from torch import version\n", "torch/version.py": "hip = None\n"}
WHEELS: list[tuple[str, str, list[str], dict[str, str]]] = [
    ("ray", "2.55.1", ["vllm>=0.18.0; extra == 'llm'", "nixl>=1.0.0; extra == 'llm'"], RAY),
    ("vllm", "0.18.0+rocm700", [f"torch=={ROCM_TORCH}", "triton==3.4.0"], VLLM),
    ("torch", ROCM_TORCH, [], TORCH | {"torch/version.py": "hip = '7.0.51831'\n"}),
    ("torch", "2.9.1", [], TORCH),
    ("triton", "3.4.0", [], {"triton/__init__.py": ""}),
    ("nixl", "1.0.0", [], {"nixl/__init__.py": ""}),
    ("nvidia-cublas-cu12", "12.8.4.1", [], {"nvidia_cublas.py": ""}),
]
# What is changed in a source for a pin that is not the first one: (name, source, file, from, to).
CHANGES = [
    ("triton-next", "triton", "python/setup.py", '"3.5.0"', '"3.5.1"'),
    ("triton-cuda", "triton", "python/setup.py", '"3.5.0"', '"3.5.0+cu128"'),
    ("ucx-next", "ucx", "ucp.c", "return 0", "return 1"),
]


def wheel(folder: Path, name: str, version: str, requires: list[str], modules: dict[str, str]) -> None:
    """Write one pure wheel."""
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    lines = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"]
    lines += ["Provides-Extra: llm\n"] if name == "ray" else []
    lines += [f"Requires-Dist: {each}\n" for each in requires]
    files = {
        **modules,
        f"{info}/METADATA": "".join(lines),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: own\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl", "w") as archive:
        for path, text in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(path, text)


def index(folder: Path) -> None:
    """Write the index (PEP 503) of the wheels in ``folder``/files."""
    projects: dict[str, list[str]] = {}
    for file in sorted((folder / "files").iterdir()):
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        name = file.name.split("-")[0].lower().replace("_", "-")
        quoted = file.name.replace("+", "%2B")
        projects.setdefault(name, []).append(
            f'<a href="../../files/{quoted}#sha256={digest}">{file.name}</a>'
        )
    for name, links in projects.items():
        page = folder / "simple" / name / "index.html"
        page.parent.mkdir(parents=True)
        page.write_text("<!DOCTYPE html><html><body>\n" + "<br>\n".join(links) + "\n</body></html>\n")


def git(repository: Path, *arguments: str) -> str:
    """Run git with an author and a date of its own, so that the commits are the same each time."""
    when = {"GIT_AUTHOR_DATE": "2026-01-01T00:00:00Z", "GIT_COMMITTER_DATE": "2026-01-01T00:00:00Z"}
    who = ["-c", "user.name=stand-in", "-c", "user.email=stand-in@localhost", "-c", "init.defaultBranch=main"]
    done = subprocess.run(
        ["git", *who, *arguments],
        cwd=repository,
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | when,
    )
    return done.stdout.strip()


def repositories(
    sources: Path, folder: Path, changes: list[tuple[str, str, str, str, str]]
) -> dict[str, str]:
    """A repository a source, served as plain files; the commits by name."""
    commits = {}
    for source in sorted(sources.iterdir()):
        work = folder.parent / "work" / source.name
        shutil.copytree(source, work)
        git(work, "init", "--quiet")
        # What a source ignores may be a part of its archive all the same.
        git(work, "add", "--all", "--force")
        git(work, "commit", "--quiet", "--message", "Stand-in")
        commits[source.name] = git(work, "rev-parse", "HEAD")
        for name, of, file, old, new in changes:
            if of == source.name:
                git(work, "checkout", "--quiet", "-b", name, commits[source.name])
                text = (work / file).read_text()
                (work / file).write_text(text.replace(old, new))
                git(work, "commit", "--quiet", "--all", "--message", name)
                commits[name] = git(work, "rev-parse", "HEAD")
        bare = folder / "example.org" / f"{source.name}.git"
        bare.parent.mkdir(parents=True, exist_ok=True)
        git(work, "clone", "--quiet", "--bare", ".", str(bare))
        git(bare, "update-server-info")
        shutil.rmtree(work)
    return commits


def interpreter(folder: Path, url: str) -> None:
    """This system's Python as an archive that uv installs, and the list that names it."""
    asked = ["/usr/bin/python3", "-c", "import platform; print(platform.python_version())"]
    version = subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()
    short = ".".join(version.split(".")[:2])
    folder.mkdir()
    archive = folder / f"cpython-{version}.tar.gz"
    with tarfile.open(archive, "w:gz", compresslevel=1, dereference=True) as tar:
        tar.add(f"/usr/bin/python{short}", f"python/bin/python{short}")
        tar.add(
            f"/usr/lib/python{short}",
            f"python/lib/python{short}",
            filter=lambda info: None if "__pycache__" in info.name else info,
        )
    major, minor, patch = (int(part) for part in version.split("."))
    entry = {
        **{"name": "cpython", "os": "linux", "libc": "gnu", "arch": {"family": "x86_64", "variant": None}},
        **{"major": major, "minor": minor, "patch": patch, "prerelease": "", "variant": None},
        "url": f"{url}/python/{archive.name}",
        "sha256": hashlib.sha256(archive.read_bytes()).hexdigest(),
        "build": "20260101",
    }
    listed = {f"cpython-{version}-linux-x86_64-gnu": entry}
    (folder / "downloads.json").write_text(json.dumps(listed))


def main() -> None:
    """Lay out the folder."""
    sources, folder, url = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    for part in ("git", "wheels", "python"):
        shutil.rmtree(folder / part, ignore_errors=True)
    (folder / "git").mkdir(parents=True)
    files = folder / "wheels/files"
    files.mkdir(parents=True)
    for file in (folder / "downloads").iterdir():
        shutil.copy(file, files)
    for each in WHEELS:
        wheel(files, *each)
    index(folder / "wheels")
    interpreter(folder / "python", url)
    (folder / "commits.json").write_text(json.dumps(repositories(sources, folder / "git", CHANGES)))


if __name__ == "__main__":
    main()
