"""Git sources: one commit of a repository as a pack, which the server lays out as a repository again."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from splitrail.bundle.manifest import BundleError

_FULL = re.compile(r"^[0-9a-f]{40}$")


@dataclass(frozen=True)
class Packed:
    """A commit with its tree: the pack, its index, and which commits have no parents here."""

    url: str
    commit: str
    folder: Path
    shallow: str

    @property
    def files(self) -> list[Path]:
        """The pack and its index."""
        return sorted(
            path for path in (self.folder / "objects/pack").iterdir() if path.suffix in (".pack", ".idx")
        )


def place(url: str) -> str:
    """Where the server shows a repository: its URL without scheme and user, below ``git/``."""
    return "git/" + re.sub(r"^[a-z+]+://(?:[^@/]*@)?/*", "", url)


def pack(url: str, commit: str, work: Path) -> Packed:
    """Fetch one commit into a repository below ``work`` and pack it.

    A full commit id is fetched alone. A shorter one is looked for in everything that the repository has.
    Raises BundleError: unreachable, no such commit (where a branch or tag points does not matter: only the id
    counts), or a commit with submodules, which would be fetched from elsewhere.
    """
    folder = work / re.sub(r"[^A-Za-z0-9.]+", "-", place(url))
    if not (folder / "HEAD").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        _git(folder, url, "init", "--quiet", "--bare", ".")
    full = commit
    if _FULL.match(commit):
        if _git(folder, url, "cat-file", "-e", f"{commit}^{{commit}}", ok=(0, 1, 128)).returncode:
            done = _git(
                folder, url, "fetch", "--quiet", "--depth=1", "--no-tags", url, commit, ok=(0, 1, 128)
            )
            if done.returncode:
                raise BundleError(_why(url, commit, done.stderr), 1)
    else:
        done = _git(
            folder,
            url,
            "fetch",
            "--quiet",
            url,
            "+refs/heads/*:refs/heads/*",
            "+refs/tags/*:refs/tags/*",
            ok=(0, 1, 128),
        )
        if done.returncode:
            raise BundleError(_why(url, commit, done.stderr), 1)
        found = _git(folder, url, "rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}", ok=(0, 1, 128))
        full = found.stdout.strip()
        if not _FULL.match(full) or not full.startswith(commit):
            raise BundleError(_why(url, commit, "not found"), 1)
    if _git(folder, url, "ls-tree", "--name-only", full, ".gitmodules").stdout:
        raise BundleError(
            f"{url}: {full} has submodules, which a bundle does not hold: name them as sources", 1
        )
    _git(folder, url, "update-ref", "--no-deref", "HEAD", full)
    _git(folder, url, "repack", "-a", "-d", "--quiet")
    shallow = folder / "shallow"
    return Packed(url, full, folder, shallow.read_text(encoding="utf-8") if shallow.exists() else "")


def _why(url: str, commit: str, said: str) -> str:
    words = " ".join(said.split())
    if re.search(
        r"not our ref|not found|unadvertised|no such remote ref|bad object", words, re.IGNORECASE
    ) and ("repository" not in words.lower() or "not our ref" in words):
        return f"{url}: there is no commit {commit}: the release pins what its repository lacks (now)"
    return f"{url}: cannot be fetched: {words}"


def _git(
    folder: Path, url: str, *arguments: str, ok: tuple[int, ...] = (0,)
) -> subprocess.CompletedProcess[str]:
    try:
        done = subprocess.run(
            # Nobody is there to type a password.
            ["git", "-c", "core.askPass=true", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except FileNotFoundError as error:
        raise BundleError("git is not here: install the package git") from error
    if done.returncode not in ok:
        raise BundleError(f"{url}: git {arguments[0]}: {' '.join(done.stderr.split())}", 1)
    return done
