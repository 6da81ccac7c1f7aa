"""Carrying pip's configuration over to the nodes."""

from __future__ import annotations

import configparser
from pathlib import Path

from splitrail.lab import pip

LISTING = """\
:env:.default-timeout='180'
:env:.find-links='/srv/wheels'
global.cert='/etc/ssl/certs/ca-certificates.crt'
global.extra-index-url='file:///srv/my%20index/simple\\nhttps://pypi.example/simple'
global.find-links='/srv/old'
global.require-virtualenv='true'
install.no-index='true'
install.find-links='/srv/old'
"""


def test_settings_and_local_folders() -> None:
    config = pip.parse(LISTING)
    read = configparser.RawConfigParser()
    read.read_string(config.text)
    assert {section: dict(read[section]) for section in read.sections()} == {
        "global": {
            "cert": "/etc/ssl/certs/ca-certificates.crt",
            "extra-index-url": "file:///srv/my%20index/simple\nhttps://pypi.example/simple",
            "find-links": "/srv/wheels",
        },
        "install": {"no-index": "true"},
    }
    # The index' parent, because its pages link to files beside it; no folder of the trust store.
    assert config.paths == (Path("/srv/my index"), Path("/srv/wheels"))


def test_nothing_configured() -> None:
    assert pip.parse(":env:.disable-pip-version-check='1'\n") == pip.PipConfig("", ())
