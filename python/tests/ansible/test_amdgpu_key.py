"""Keys as gpg makes them, read as gpg reads them; and every key that must not be trusted."""

from __future__ import annotations

import base64
import http.server
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from splitrail.ansible.module_utils.splitrail_openpgp import Unreadable, keys
from splitrail.ansible.modules.splitrail_amdgpu_key import fetch, judge, kept

pytestmark = pytest.mark.skipif(shutil.which("gpg") is None, reason="gpg, the oracle, is not installed")

NOW = 1_790_000_000  # September 2026
URL = "https://example.org/key"


class Gpg:
    """A gpg with a home of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        home.mkdir(mode=0o700)

    def __call__(self, *arguments: str, given: bytes = b"") -> bytes:
        argv = ["gpg", "--batch", "--quiet", "--homedir", str(self.home), "--pinentry-mode", "loopback"]
        done = subprocess.run(
            [*argv, "--passphrase", "", *arguments], input=given, capture_output=True, check=True
        )
        return done.stdout

    def make(self, name: str, expires: str = "never", *more: str) -> str:
        """Make a key; returns its fingerprint."""
        self(*more, "--quick-generate-key", f"{name} <{name}@example.org>", "ed25519", "sign", expires)
        listed = self("--with-colons", "--list-keys", name).decode()
        return next(line.split(":")[9] for line in listed.splitlines() if line.startswith("fpr:"))

    def export(self, *names: str, armor: bool = True) -> bytes:
        return self(*(["--armor"] if armor else []), "--export", *names)


@pytest.fixture(scope="module")
def gpg(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gpg]:
    # Short: gpg's agent listens on a socket in it.
    made = Gpg(tmp_path_factory.mktemp("g") / "h")
    yield made
    subprocess.run(["gpgconf", "--homedir", str(made.home), "--kill", "all"], check=False)


@pytest.fixture(scope="module")
def good(gpg: Gpg) -> tuple[str, bytes]:
    return gpg.make("good"), gpg.export("good")


def want(fingerprint: str, **more: str) -> dict[str, Any]:
    return {"url": URL, "fingerprint": fingerprint, "sha256": "", **more}


def gpg_says(gpg: Gpg, data: bytes) -> list[tuple[str, int]]:
    """Fingerprint and expiry of each primary key, as gpg shows them."""
    found, expiry = [], 0
    primary = False
    for line in gpg("--with-colons", "--show-keys", given=data).decode().splitlines():
        fields = line.split(":")
        if fields[0] in {"pub", "sub"}:
            primary, expiry = fields[0] == "pub", int(fields[6] or 0)
        elif fields[0] == "fpr" and primary:
            found.append((fields[9], expiry))
    return found


@pytest.mark.parametrize("armor", [True, False], ids=["armoured", "binary"])
def test_keys_are_read_as_gpg_reads_them(gpg: Gpg, armor: bool) -> None:
    limited, rsa = f"limited{armor}", f"rsa{armor}"
    gpg.make(limited, "2030-01-01")
    gpg("--quick-generate-key", f"{rsa} <{rsa}@example.org>", "rsa2048", "sign,cert", "3y")
    data = gpg.export(limited, rsa, armor=armor)
    read = [(key.fingerprint, key.expires) for key in keys(data)]
    assert len(read) == 2
    assert sorted(read) == sorted(gpg_says(gpg, data))


def test_a_prolonged_key_has_its_new_expiry(gpg: Gpg) -> None:
    fingerprint = gpg.make("prolonged", "20210801T000000", "--faked-system-time", "20160801T000000")
    before = gpg.export("prolonged")
    assert judge(before, want(fingerprint), NOW)["measured"] == f"{fingerprint}, expired on 2021-08-01"
    gpg("--faked-system-time", "20210801T000001!", "--quick-set-expire", fingerprint, "20310801T000000")
    after = gpg.export("prolonged")
    assert [(key.fingerprint, key.expires) for key in keys(after)] == gpg_says(gpg, after)
    assert judge(after, want(fingerprint), NOW)["ok"]


def test_the_declared_key_is_trusted(good: tuple[str, bytes], tmp_path: Path) -> None:
    fingerprint, data = good
    assert judge(data, want(fingerprint), NOW)["ok"]
    keyring = tmp_path / "k.gpg"
    assert not kept(keyring, want(fingerprint), NOW)
    keyring.write_bytes(data)
    assert kept(keyring, want(fingerprint), NOW)
    assert not kept(keyring, want("0" * 40), NOW)
    keyring.write_bytes(data[:100])
    assert not kept(keyring, want(fingerprint), NOW)


def test_another_key_is_not(good: tuple[str, bytes]) -> None:
    fingerprint, data = good
    found = judge(data, want("0" * 40), NOW)
    assert not found["ok"]
    assert (found["measured"], found["required"]) == (fingerprint, "0" * 40)
    assert "before its owner has confirmed it" in found["hint"]


def test_a_second_key_in_the_file_is_not(gpg: Gpg, good: tuple[str, bytes]) -> None:
    gpg.make("guest")
    found = judge(gpg.export("good", "guest"), want(good[0]), NOW)
    assert not found["ok"]
    assert good[0] in found["measured"]
    assert "APT would trust all of them" in found["hint"]


def test_a_revoked_key_is_not(gpg: Gpg) -> None:
    fingerprint = gpg.make("revoked")
    text = (gpg.home / f"openpgp-revocs.d/{fingerprint}.rev").read_text()
    gpg("--import", given=text.replace(":-----BEGIN", "-----BEGIN").encode())
    found = judge(gpg.export("revoked"), want(fingerprint), NOW)
    assert found["measured"] == f"{fingerprint}, revoked"


def test_another_file_with_the_key_is_named_as_such(good: tuple[str, bytes]) -> None:
    found = judge(good[1], want(good[0], sha256="0" * 64), NOW)
    assert not found["ok"]
    assert "the fingerprint is right" in found["hint"].lower()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda data: data[: len(data) // 2], "the armour has no end"),
        (lambda data: data.replace(b"\n=", b"\n=AA", 1), "damaged armour"),
        (lambda data: data.replace(b"A", b"B", 2), "damaged armour"),
        (lambda _: b"<html>not found</html>", "not an OpenPGP file"),
        (lambda _: b"", "no public key"),
        (lambda _: base64.b64decode("mDMEZ"[:4]), "cut short"),
    ],
)
def test_what_is_no_key_is_refused(good: tuple[str, bytes], spoil: Any, says: str) -> None:
    with pytest.raises(Unreadable, match=says):
        keys(spoil(good[1]))
    found = judge(spoil(good[1]), want(good[0]), NOW)
    assert not found["ok"]
    assert "no key" in found["measured"]


def test_half_a_download_is_noticed(good: tuple[str, bytes]) -> None:
    class Half(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(good[1])))
            self.end_headers()
            self.wfile.write(good[1][: len(good[1]) // (2 if self.path == "/half" else 1)])

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Half) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{server.server_port}"
        assert fetch(f"{base}/whole", 5) == good[1]
        with pytest.raises(OSError, match="half a download"):
            fetch(f"{base}/half", 5)
        server.shutdown()
