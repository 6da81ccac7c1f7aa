"""The page of checks: whole, and each with its cure."""

from __future__ import annotations

import re
from pathlib import Path
from textwrap import dedent

import pytest

from splitrail.handbook.checks import Found, Module, in_suite, in_yaml, page

ROOT = Path(__file__).parents[3]
# Names in tests that no code makes: what is only read back there, and files that are named like checks.
MADE_UP = {"roce_nic.pfc", "preflight.clock"}
FILES = re.compile(r".*\.(html|json|py|yml)")


@pytest.fixture(scope="module")
def suite() -> dict[str, Found]:
    return in_suite(ROOT)


def unknown(names: set[str], known: dict[str, Found]) -> set[str]:
    """Those that are neither on the page nor of a family that is, such as bundle.<kind>."""
    families = [
        re.compile(re.sub(r"<\w+>", r"\\w+", name).replace(".", r"\.")) for name in known if "<" in name
    ]
    return {name for name in names if name not in known and not any(one.fullmatch(name) for one in families)}


def quoted(folder: Path, verbs: set[str]) -> set[str]:
    """Everything in quotes that looks like a check of these verbs, whatever it is there for."""
    pattern = re.compile(rf'"((?:{"|".join(sorted(verbs))})\.[a-z_]+)"')
    found = {name for path in folder.rglob("*.py") for name in pattern.findall(path.read_text())}
    return {name for name in found if not FILES.fullmatch(name)}


def test_no_check_is_missing(suite: dict[str, Found]) -> None:
    verbs = {name.partition(".")[0] for name in suite}
    assert len(suite) > 150
    for folder in ("python/src", "roles"):
        assert unknown(quoted(ROOT / folder, verbs), suite) == set(), folder
    # What tests see fail is an independent list: they name checks as a verdict does.
    assert unknown(quoted(ROOT / "python/tests", verbs) - MADE_UP, suite) == set()


def test_a_check_that_is_missing_is_found(suite: dict[str, Found]) -> None:
    fewer = {name: one for name, one in suite.items() if name not in {"fabric.mtu", "preflight.<name>"}}
    assert unknown({"fabric.mtu", "fabric.gid", "bundle.wheel"}, fewer) == {"fabric.mtu"}
    assert unknown({"preflight.anything"}, fewer) == {"preflight.anything"}


def test_each_has_a_cure(suite: dict[str, Found]) -> None:
    assert [name for name, one in suite.items() if not one.hints] == []


def test_verbs_that_file_verdicts_are_there(suite: dict[str, Found]) -> None:
    filed = {
        name
        for folder in ("roles", "playbooks")
        for path in (ROOT / folder).rglob("*.yml")
        for name in re.findall(r"splitrail_verdict:\n\s+verb: (\w+)", path.read_text())
    }
    assert len(filed) > 5
    # Two verbs file checks that bear their role's name.
    named = {"image": "serving_image", "model": "model_store"}
    assert {named.get(verb, verb) for verb in filed} <= {name.partition(".")[0] for name in suite}


@pytest.mark.parametrize(
    ("source", "names", "hint"),
    [
        ('def f():\n    check("a.b", "s", ok, 1, 2, hint="Do it.")', {"a.b"}, "Do it."),
        (
            'HINT = "Do it."\ndef f():\n    hint = HINT\n    unmade("a.b", "s", "w", 2, hint=hint)',
            {"a.b"},
            "Do it.",
        ),
        ('NAME = "a.b"\ndef f(x):\n    Check(name=NAME, hint=f"Do {x.y}.")', {"a.b"}, "Do <y>."),
        (
            'def w(name, hint):\n    check(f"a.{name}", "s", ok, hint=hint)\n'
            'def f():\n    w("b", "Do it.")\n    w("c", "Do it.")',
            {"a.b", "a.c"},
            "Do it.",
        ),
        ('def f(x):\n    return [{"name": "a.b", "subject": x, "hint": "Do " + "it."}]', {"a.b"}, "Do it."),
        (
            'def f():\n    for name, hint in (("a.b", "Do it."), ("a.c", "Do it.")):\n'
            '        check(name, "s", ok, hint=hint if ok else "")',
            {"a.b", "a.c"},
            "Do it.",
        ),
    ],
)
def test_names_and_hints_are_found(source: str, names: set[str], hint: str) -> None:
    found = Module(source).checks
    assert {name for name, _ in found} == names
    assert {text for _, hints in found for text in hints if text} == {hint}


def test_a_table_of_cures_is_found() -> None:
    source = 'CURES = {"a.b": lambda host: f"Look at {host}."}\ndef f():\n    return CURES["a.b"]'
    assert ("a.b", ["Look at <host>."]) in list(Module(source).mentioned())


def test_checks_of_tasks_are_found() -> None:
    task = {"vars": {"one": {"name": "a.b", "hint": "Set {{ x }}\nnow."}}, "name": "Say a.b"}
    assert list(in_yaml([task])) == [("a.b", "Set <...> now.")]


def test_the_page_shows_angle_brackets_as_text() -> None:
    text = page({"a.<name>": Found(["Look at <host>: `x <y>`."], ["f.py"])})
    assert "### `a.<name>`" in text
    assert "- Look at &lt;host&gt;: `x <y>`." in text
    assert dedent("## a\n") in text
