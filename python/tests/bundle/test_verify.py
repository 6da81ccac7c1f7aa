"""`bundle verify` finds what is wrong with a bundle, all of it, and says so by its exit code."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from splitrail.bundle import signing
from splitrail.bundle.cli import app
from splitrail.bundle.manifest import NAME, SIGNATURE, BundleError, load
from splitrail.bundle.store import Store
from splitrail.bundle.verify import verify
from splitrail.verdict import Check
from tests.bundle.conftest import World


def failed(world: World, release: str = "") -> list[Check]:
    return list(verify(world.out, world.key.public, lambda _: None, release).failed)


def test_a_whole_bundle_passes(made: World) -> None:
    verdict = verify(made.out, made.key.public, lambda _: None, "cpu")
    assert verdict.ok
    assert len(verdict.checks) == len(load(made.out).artifacts) + 3


def test_missing_damaged_and_surplus_files_are_named_together(made: World) -> None:
    store = Store(made.out)
    gone, short, changed = load(made.out).of("wheel")[:3]
    store.blob(gone.sha256).unlink()
    store.blob(short.sha256).write_bytes(b"half")
    blob = store.blob(changed.sha256)
    blob.write_bytes(b"x" * changed.bytes)
    (made.out / "blobs/sha256/stray").write_text("stray", encoding="utf-8")
    found = {check.subject: check.measured for check in failed(made)}
    assert found[gone.path] == "missing"
    assert found[short.path] == f"damaged: 4 bytes of {short.bytes}"
    assert found[changed.path] == "damaged: its sha256 is another"
    assert found["blobs"] == "blobs/sha256/stray"
    # And it heals: what the hint says.
    for one in (short, changed):
        store.blob(one.sha256).unlink()
    made.create()
    assert failed(made) == []


def test_a_manifest_that_was_edited(made: World) -> None:
    path = made.out / NAME
    path.write_text(path.read_text(encoding="utf-8").replace('"cpu"', '"cpu2"'), encoding="utf-8")
    [check] = failed(made)
    assert (check.name, check.measured) == ("bundle.signature", "it is of other content")


def test_a_manifest_without_signature(made: World) -> None:
    (made.out / SIGNATURE).unlink()
    assert [check.measured for check in failed(made)] == ["there is no signature"]


def test_a_manifest_signed_by_another_key(made: World) -> None:
    made.key = signing.Key(made.root / "other")
    made.key.ensure()
    assert [check.measured for check in failed(made)] == ["it was made by another key"]


def test_the_bundle_of_another_release(made: World) -> None:
    [check] = failed(made, "mi325x")
    assert (check.name, check.measured, check.required) == ("bundle.release", "cpu", "mi325x")


@pytest.mark.parametrize("text", ["", "{}", '{"format": 2}', "[]"])
def test_a_manifest_that_is_none(made: World, text: str) -> None:
    (made.out / NAME).write_text(text, encoding="utf-8")
    with pytest.raises(BundleError, match="not a bundle's manifest"):
        load(made.out)


def test_a_path_that_leaves_the_bundle(made: World) -> None:
    document = json.loads((made.out / NAME).read_text(encoding="utf-8"))
    document["artifacts"][0]["path"] = "apt/../../etc/passwd"
    (made.out / NAME).write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(BundleError, match="leaves the bundle"):
        load(made.out)


def test_exit_codes(made: World) -> None:
    def run(*arguments: str) -> int:
        return CliRunner().invoke(app, ["verify", *arguments]).exit_code

    key = str(made.key.public)
    assert run(str(made.out), "--key", key) == 0
    assert run(str(made.out), "--key", key, "--release", "other") == 1
    assert run(str(made.root / "nowhere"), "--key", key) == 2
