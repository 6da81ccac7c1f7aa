from __future__ import annotations

import io
import json
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from rich.console import Console

from splitrail.verdict import Check, Verdict, VerdictError, load_run_verdict, plain_lines, show, verdict_file


def make(name: str = "preflight.memory", host: str = "n1", *, ok: bool = True, **extra: object) -> Check:
    return Check.model_validate(
        {"name": name, "host": host, "subject": "RAM", "ok": ok, "measured": 12, "required": 16, **extra}
    )


def test_a_verdict_is_ok_when_all_checks_are() -> None:
    assert Verdict.of([make(), make(host="n2")]).ok
    assert not Verdict.of([make(), make(host="n2", ok=False)]).ok


def test_a_verdict_without_checks_is_an_error() -> None:
    with pytest.raises(VerdictError, match="nothing was checked"):
        Verdict.of([])


def test_a_verdict_cannot_contradict_its_checks() -> None:
    with pytest.raises(ValidationError, match="exactly when every check is ok"):
        Verdict(ok=True, checks=(make(ok=False),))


@pytest.mark.parametrize("ok", ["yes", "false", 1, None])
def test_only_a_bool_passes_for_ok(ok: object) -> None:
    with pytest.raises(ValidationError):
        make().model_validate({**make().model_dump(), "ok": ok})


@pytest.mark.parametrize("change", [{"name": ""}, {"host": ""}, {"subject": ""}, {"cure": "misspelt key"}])
def test_a_malformed_check_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Check.model_validate({**make().model_dump(), **change})


@given(
    checks=st.lists(
        st.builds(
            Check,
            name=st.text(min_size=1),
            host=st.text(min_size=1),
            subject=st.text(min_size=1),
            ok=st.booleans(),
            measured=st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.integers()),
            required=st.text(),
            unit=st.text(),
            hint=st.text(),
        ),
        min_size=1,
    )
)
def test_what_is_saved_is_loaded_again(tmp_path_factory: pytest.TempPathFactory, checks: list[Check]) -> None:
    path = tmp_path_factory.mktemp("verdict") / "deep/v.json"
    verdict = Verdict.of(checks, seconds=1.25)
    verdict.save(path)
    assert Verdict.load(path) == verdict
    assert [file.name for file in path.parent.iterdir()] == ["v.json"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


@pytest.mark.parametrize("text", ["", "{", '{"ok": true, "checks": []}', '{"ok": true}'])
def test_a_broken_file_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "v.json"
    path.write_text(text)
    with pytest.raises(VerdictError, match=r"v\.json"):
        Verdict.load(path)


def test_a_failed_save_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "v.json"
    Verdict.of([make()]).save(path)
    before = path.read_text()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(json, "dump", full)
    with pytest.raises(OSError, match="No space left"):
        Verdict.of([make(ok=False)]).save(path)
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]


def test_merging_keeps_every_check_and_the_longest_time() -> None:
    whole = Verdict.merge([Verdict.of([make()], 2), Verdict.of([make(host="n2", ok=False)], 5)])
    assert [check.host for check in whole.checks] == ["n1", "n2"]
    assert (whole.ok, whole.seconds) == (False, 5)


def test_an_update_replaces_the_same_check_only() -> None:
    old = Verdict.of([make(ok=False), make(name="preflight.disk")])
    new = old.updated(Verdict.of([make(ok=True)]))
    assert new.ok
    assert len(new.checks) == 2


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "a\0b"])
def test_no_name_leads_out_of_the_record(name: str) -> None:
    for verb, host in ((name, "n1"), ("preflight", name)):
        with pytest.raises(ValueError, match="plain file name"):
            verdict_file(Path("run"), verb, host)


def test_a_run_without_verdicts_has_none(tmp_path: Path) -> None:
    assert load_run_verdict(tmp_path) is None
    Verdict.of([make()]).save(verdict_file(tmp_path, "preflight", "n1"))
    Verdict.of([make(host="n2", ok=False)]).save(verdict_file(tmp_path, "fabric", "n2"))
    whole = load_run_verdict(tmp_path)
    assert whole is not None
    assert [check.host for check in whole.failed] == ["n2"]


def test_plain_lines_put_failures_and_their_cure_first() -> None:
    checks = [make(host=f"n{i}") for i in range(3)]
    bad = make(host="n9", ok=False, unit="GiB", hint="Add memory.")
    assert list(plain_lines(Verdict.of([*checks, bad]))) == [
        "FAIL n9: preflight.memory (RAM): measured 12 GiB, required 16 GiB. Add memory.",
        "ok   preflight.memory: 3 passed",
        "1 of 4 checks failed",
    ]


@pytest.mark.parametrize("terminal", [True, False])
def test_it_is_shown_with_cure_and_without_reading_markup(terminal: bool) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=160, no_color=True)
    bad = make(ok=False, measured="[red]not checked[/nonsense]", hint="Add memory.")
    show(Verdict.of([make(host="n2"), bad]), console)
    text = out.getvalue()
    assert "[red]not checked[/nonsense]" in text
    assert "Add memory." in text
    assert text.index("n1") < text.index("1 passed")
