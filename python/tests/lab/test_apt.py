"""Rewriting this machine's APT configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from splitrail.lab import apt
from splitrail.lab.run import LabError

ONE_LINE = """\
# deb http://commented.example/debian bookworm main
deb [arch=amd64,arm64 signed-by=/usr/share/keyrings/x.gpg] http://a.example/debian bookworm main contrib # why
deb-src http://a.example/debian bookworm main
deb http://vendor.example/apt stable tools
deb cdrom:[Debian]/ bookworm main
"""
DEB822 = """\
# The archive
Types: deb deb-src
URIs: http://a.example/debian file:/srv/mirror
# a comment between fields
Suites: bookworm bookworm-updates bookworm-backports-sloppy
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc

Types: deb
Enabled: no
URIs: http://off.example/debian
Suites: bookworm
Components: main
"""


def test_one_line_style() -> None:
    chosen = apt.select(apt.parse_list(ONE_LINE), "bookworm")
    assert [source.render() for source in chosen] == [
        "Types: deb\nURIs: http://a.example/debian\nSuites: bookworm\nComponents: main contrib\n"
        "Architectures: amd64 arm64\nSigned-By: /usr/share/keyrings/x.gpg\n"
    ]


def test_deb822_style_keeps_an_inline_key() -> None:
    (source,) = apt.select(apt.parse_deb822(DEB822), "bookworm")
    assert source.get("types") == "deb"
    assert source.get("URIs") == "http://a.example/debian"
    assert source.get("Suites") == "bookworm bookworm-updates"
    assert apt.parse_deb822(source.render()) == [source]
    assert " -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc\n" in source.render()


@pytest.mark.parametrize("codename", ["trixie", "book"])
def test_other_releases_are_left_out(codename: str) -> None:
    assert apt.select([*apt.parse_list(ONE_LINE), *apt.parse_deb822(DEB822)], codename) == []


def test_options_that_reach_a_server() -> None:
    dump = (
        'Acquire "";\nAcquire::http::Proxy "http://proxy.example:3128";\nAcquire::http "";\n'
        'Acquire::Retries "3";\n'
        'Acquire::http::Proxy-Auto-Detect "/usr/bin/find-proxy";\nAPT::Install-Recommends "0";\n'
        'Acquire::cdrom::mount "/media/cdrom/";\n'
    )
    assert apt.options(dump) == 'Acquire::http::Proxy "http://proxy.example:3128";\nAcquire::Retries "3";\n'


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    (tmp_path / "etc/apt/sources.list.d").mkdir(parents=True)
    return tmp_path


def test_machine_with_both_styles_and_its_keys(machine: Path) -> None:
    key = machine / "key.gpg"
    key.write_bytes(b"\x99key")
    etc = machine / "etc/apt"
    (etc / "sources.list").write_text(f"deb [signed-by={key}] https://a.example/debian bookworm main\n")
    (etc / "sources.list.d/more.sources").write_text(DEB822)
    (etc / "sources.list.d/off.list.disabled").write_text("deb http://off.example/debian bookworm main\n")
    (etc / "auth.conf.d").mkdir()
    (etc / "auth.conf.d/a.conf").write_text("machine a.example login me password secret\n")
    config = apt.from_machine("bookworm", machine)
    assert config.files == {
        str(key): b"\x99key",
        str(etc / "auth.conf.d/a.conf"): b"machine a.example login me password secret\n",
    }
    assert len(apt.parse_deb822(config.sources)) == 2
    assert "off.example" not in config.sources


def test_machine_without_a_usable_source(machine: Path) -> None:
    (machine / "etc/apt/sources.list").write_text("deb http://a.example/debian bookworm-updates main\n")
    with pytest.raises(LabError, match=r"no enabled .* source has `bookworm` with the component main; add"):
        apt.from_machine("bookworm", machine)
