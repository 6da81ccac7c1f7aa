"""Kernel options: what may be declared, how it is written, and what a command line says of it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitrail.ansible.module_utils import splitrail_cmdline as cmdline

NAMES = st.from_regex(r"[a-z][a-z0-9_.]{0,8}", fullmatch=True)
VALUES = st.from_regex(r"[a-z0-9=:]{1,8}", fullmatch=True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"iommu": "pt"}, ["iommu=pt"]),
        ({"pci": ["realloc=off", "bfsort"]}, ["pci=realloc=off", "pci=bfsort"]),
        ({"nokaslr": ""}, ["nokaslr"]),
        ({"nmi_watchdog": 0}, ["nmi_watchdog=0"]),
    ],
)
def test_render(options: dict[str, Any], words: list[str]) -> None:
    assert cmdline.render(cmdline.declared(options)) == words


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"intel_iommu": True}, "intel_iommu: write the value in quotes"),
        ({"iommu": False}, "iommu: write the value in quotes"),
        ({"pci": []}, "pci: an empty list"),
        ({"pci": ["bfsort", ""]}, "pci: an empty value in a list"),
        ({"pci": [True]}, "pci: write the value in quotes"),
        ({"init": "$(reboot)"}, "init: .* cannot stand on a kernel command line"),
        ({"init": 'a" b'}, "init: .* cannot stand"),
        ({"iommu": {"pt": 1}}, "iommu: .* cannot stand"),
        ({"iommu": None}, "iommu: .* cannot stand"),
        ({"two words": "x"}, "'two words' is no name"),
    ],
)
def test_what_cannot_be_declared_is_refused_by_name(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        cmdline.declared(options)


@pytest.mark.parametrize(
    ("want", "line", "there", "against"),
    [
        ("pt", "ro iommu=pt quiet", True, []),
        ("pt", "ro quiet", False, []),
        ("pt", "iommu=soft iommu=pt", False, ["iommu=soft"]),
        ("pt", "iommu", False, ["iommu"]),
        ("pt", "ro -- iommu=pt", False, []),
        ("pt", 'dyndbg="file a.c +p; iommu=pt"', False, []),
        ("", "iommu", True, []),
        ("", "iommu=pt", False, ["iommu=pt"]),
        (["a=1", "b"], "iommu=a=1 iommu=b", True, []),
        (["a=1", "b"], "iommu=b,c,a=1", True, []),
        (["a=1", "b"], "iommu=a=1", False, []),
        (["a=1", "b"], "iommu=a=2,b iommu=a=1", False, ["iommu=a=2"]),
        (["a=1", "b"], "iommu=a=1,b,nob", False, ["iommu=nob"]),
    ],
)
def test_has(want: str | list[str], line: str, there: bool, against: list[str]) -> None:
    words = cmdline.words_of(line)
    assert cmdline.has("iommu", want, words) is there
    assert cmdline.contradicts("iommu", want, words) == against


def test_dash_and_underscore_are_one() -> None:
    assert cmdline.has("intel_iommu", "on", cmdline.words_of("intel-iommu=on"))


@given(st.dictionaries(NAMES, VALUES, min_size=1, max_size=5))
def test_what_is_rendered_is_found(options: dict[str, str]) -> None:
    line = "BOOT_IMAGE=/boot/x ro " + " ".join(cmdline.render(cmdline.declared(options)))
    words = cmdline.words_of(line)
    # A generated name may be another one's, or one of the line's own.
    for name, value in options.items():
        assert value in cmdline.values_of(name, words)
