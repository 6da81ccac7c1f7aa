"""The key that a bundle is signed with: made once by the project, and kept out of bundle and repository.

Nodes get the public half from the controller, not from whoever serves the bundle.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from splitrail.bundle.manifest import BundleError

# ed25519 is read by the gpgv of every system that is supported; two years outlast a release.
_ALGORITHM, _USAGE, _LIFETIME = "ed25519", "sign", "2y"
_USER = "splitrail bundle"


@dataclass(frozen=True)
class Finding:
    """What a signature is worth: ``fault`` is empty when it is good."""

    fingerprint: str
    fault: str


class Key:
    """A signing key in ``folder``: ``secret.asc`` (0600) and ``public.asc``."""

    def __init__(self, folder: Path) -> None:
        self.secret = folder / "secret.asc"
        self.public = folder / "public.asc"

    def ensure(self) -> bool:
        """Make the key unless it is there; returns whether it was made. Raises BundleError without gpg."""
        if self.secret.is_file() and self.public.is_file():
            return False
        self.secret.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _home() as home:
            _gpg(home, "--passphrase", "", "--quick-generate-key", _USER, _ALGORITHM, _USAGE, _LIFETIME)
            secret = _gpg(home, "--armor", "--export-secret-keys")
            self.public.write_bytes(_gpg(home, "--armor", "--export"))
        handle = os.open(self.secret, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "wb") as stream:
            stream.write(secret)
        return True

    def sign(self, content: bytes, how: str) -> bytes:
        """Sign; ``how`` is ``--detach-sign`` or ``--clearsign``. Raises BundleError for an expired key."""
        with _home() as home:
            _gpg(home, "--import", stdin=self.secret.read_bytes())
            for line in _gpg(home, "--with-colons", "--list-secret-keys").decode().splitlines():
                fields = line.split(":")
                if fields[0] == "sec" and fields[6] and int(fields[6]) < time.time():
                    day = time.strftime("%Y-%m-%d", time.gmtime(int(fields[6])))
                    raise BundleError(
                        f"{self.secret}: the key expired on {day}: remove {self.secret.parent} and make the "
                        "bundle again (no file is fetched twice); nodes get the new public.asc (bundle_key)"
                    )
            return _gpg(home, "--armor", "--digest-algo", "SHA256", how, stdin=content)


def examine(content: Path, signature: Path, public: Path) -> Finding:
    """Check a detached signature, and that its key is still good. Raises BundleError without gpg."""
    with _home() as home:
        _gpg(home, "--import", stdin=public.read_bytes())
        done = _run(
            home,
            ["--trust-model", "always", "--status-fd", "1", "--verify", str(signature), str(content)],
            None,
        )
    said: dict[str, list[str]] = {}
    for line in done.stdout.decode("utf-8", "replace").splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == "[GNUPG:]":
            said[words[1]] = words[2:]
    fingerprint = said.get("VALIDSIG", [""])[0]
    if "EXPKEYSIG" in said:
        return Finding(fingerprint, "its key has expired")
    if "BADSIG" in said:
        return Finding(fingerprint, "it is of other content")
    if "ERRSIG" in said or "NO_PUBKEY" in said:
        return Finding(fingerprint, "it was made by another key")
    if done.returncode or "GOODSIG" not in said:
        return Finding(fingerprint, "it cannot be read")
    return Finding(fingerprint, "")


@contextmanager
def _home() -> Iterator[Path]:
    """A keyring of its own, with a short name: the agent's socket lies in it."""
    home = Path(tempfile.mkdtemp(prefix="sb-", dir="/tmp"))  # mode 0700, and gone at once
    try:
        yield home
    finally:
        subprocess.run(
            ["gpgconf", "--homedir", str(home), "--kill", "gpg-agent"], capture_output=True, check=False
        ) if shutil.which("gpgconf") else None
        shutil.rmtree(home, ignore_errors=True)


def _gpg(home: Path, *arguments: str, stdin: bytes | None = None) -> bytes:
    done = _run(home, list(arguments), stdin)
    if done.returncode:
        raise BundleError(f"gpg {arguments[-1]}: {done.stderr.decode('utf-8', 'replace').strip()}")
    return done.stdout


def _run(home: Path, arguments: list[str], stdin: bytes | None) -> subprocess.CompletedProcess[bytes]:
    if shutil.which("gpg") is None:
        raise BundleError("gpg is not here: install the package gnupg")
    return subprocess.run(
        [
            "gpg",
            "--homedir",
            str(home),
            "--batch",
            "--quiet",
            "--no-tty",
            "--pinentry-mode",
            "loopback",
            *arguments,
        ],
        input=stdin,
        capture_output=True,
        check=False,
    )
