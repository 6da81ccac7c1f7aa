"""Prove a bundle: its signature, every file by its digest, and that nothing else lies there."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from splitrail.bundle import manifest, signing
from splitrail.bundle.manifest import BundleError, Manifest, load
from splitrail.bundle.store import Store, digest_of
from splitrail.verdict import Check, Verdict

HERE = "controller"


def verify(folder: Path, public: Path, read: Callable[[int], None], release: str = "") -> Verdict:
    """Check all of a bundle; ``read`` is told of bytes as they are read.

    ``public`` is the key that is trusted, ``release`` the name that is asked for, if any. Raises BundleError
    when there is nothing to check.
    """
    began = time.monotonic()
    found = load(folder)
    checks = [_signature(folder, public), *([_release(found, release)] if release else [])]
    store = Store(folder)
    looked: dict[str, str] = {}
    for artifact in found.artifacts:
        if artifact.sha256 not in looked:
            looked[artifact.sha256] = _state(store, artifact)
        read(artifact.bytes)
        state = looked[artifact.sha256]
        checks.append(
            _check(
                f"bundle.{artifact.kind}",
                f"{artifact.path}",
                state == "whole",
                state,
                required="whole",
                hint=f"Remove {store.blob(artifact.sha256)}, if it is there, and create the bundle again.",
            )
        )
    surplus = [str(path.relative_to(folder)) for path in store.blobs() if path.name not in looked]
    checks.append(
        _check(
            "bundle.surplus",
            "blobs",
            not surplus,
            ", ".join(surplus[:20]) or "none",
            required="none",
            hint="Remove what no manifest names, or run `splitrail bundle create` again, which does.",
        )
    )
    return Verdict.of(checks, round(time.monotonic() - began, 3))


def _state(store: Store, artifact: manifest.Artifact) -> str:
    path = store.blob(artifact.sha256)
    try:
        length = path.stat().st_size
        if length != artifact.bytes:
            return f"damaged: {length} bytes of {artifact.bytes}"
        return "whole" if digest_of(path) == artifact.sha256 else "damaged: its sha256 is another"
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _signature(folder: Path, public: Path) -> Check:
    subject, required = manifest.SIGNATURE, f"signed by the key in {public}"
    hint = (
        "Do not use this bundle before you know why: take it anew from where it was made, or, if only the "
        "key is old, make it again there."
    )
    if not public.is_file():
        return _check(
            "bundle.signature",
            subject,
            False,
            f"no key: {public} is not there",
            required=required,
            hint="Name the key with --key.",
        )
    if not (folder / manifest.SIGNATURE).is_file():
        return _check(
            "bundle.signature", subject, False, "there is no signature", required=required, hint=hint
        )
    try:
        finding = signing.examine(folder / manifest.NAME, folder / manifest.SIGNATURE, public)
    except BundleError as error:
        return _check(
            "bundle.signature", subject, False, f"could not be checked: {error}", required=required, hint=hint
        )
    measured = finding.fault or f"good, by {finding.fingerprint}"
    return _check("bundle.signature", subject, not finding.fault, measured, required=required, hint=hint)


def _release(found: Manifest, release: str) -> Check:
    return _check(
        "bundle.release",
        manifest.NAME,
        found.release == release,
        found.release,
        required=release,
        hint=f"Use the bundle of {release}, or make one with `splitrail bundle create`.",
    )


def _check(name: str, subject: str, ok: bool, measured: str, *, required: str, hint: str) -> Check:
    return Check(
        name=name, host=HERE, subject=subject, ok=ok, measured=measured, required=required, hint=hint
    )
