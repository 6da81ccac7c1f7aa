"""What a run proved of a cluster's fabric, and whether that still holds for the hosts that will serve.

A proof is a file of the run record, ``proofs/<verb>.json``. It is withdrawn when the verb begins and
concluded when it ends, so that a verb that broke off leaves no older proof standing. The gate takes the
newest one of the cluster, whatever it says.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from splitrail.run.record import RecordError, load
from splitrail.verdict import Check, Verdict, VerdictError, verdict_file, write_json

Transport = Literal["rdma", "tcp"]

# What must have been proven before anything serves over a transport. TCP needs no transfer through the image:
# UCX has no faster transport that it could silently miss there.
VERBS: dict[str, tuple[str, ...]] = {"rdma": ("fabric", "validate"), "tcp": ("fabric",)}

# How every check of a measurement over TCP names what it looked at.
TCP_SUBJECT = "transport: tcp"
# A waiver is read by somebody who was not there: one word says nothing to them.
WAIVER_WORDS = 3
# Clocks of one site differ by less; what lies further ahead was not measured when it says.
_CLOCK_SKEW = timedelta(minutes=5)


class ProofError(Exception):
    """A proof could not be written or a waiver not be taken; the message says why."""


class _Plain(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Nic(_Plain):
    """A NIC of the fabric as it was when measured; ``rail`` is None where the inventory declares none."""

    rail: int | None = None
    name: str
    rdma_device: str = ""
    pci: str = ""
    mac: str = ""
    guid: str = ""
    firmware: str = ""

    @property
    def label(self) -> str:
        return self.name if self.rail is None else f"rail{self.rail}"


class Identity(_Plain):
    """What a host's proof is bound to: this boot of it, and these NICs."""

    boot_id: str = Field(min_length=1)
    nics: tuple[Nic, ...] = Field(min_length=1)


class Proof(_Plain):
    """``proofs/<verb>.json``; ``problems`` says why ``ok`` is false."""

    verb: str
    cluster: str
    transport: Transport
    at: AwareDatetime
    ok: bool = Field(strict=True)
    hosts: dict[str, Identity] = {}
    image: str | None = None
    problems: tuple[str, ...] = ()

    def save(self, run_dir: Path) -> Path:
        """Write into a run record; returns the file."""
        path = run_dir / "proofs" / f"{self.verb}.json"
        write_json(path, self.model_dump(mode="json"))
        return path


def begin(run_dir: Path, verb: str, cluster: str, transport: Transport, image: str | None = None) -> Proof:
    """Withdraw what was proven: until ``conclude`` the newest proof of the verb says that it is under way."""
    proof = Proof(
        verb=verb,
        cluster=cluster,
        transport=transport,
        at=datetime.now(UTC),
        ok=False,
        image=image,
        problems=("the run broke off before its end",),
    )
    proof.save(run_dir)
    return proof


def conclude(
    run_dir: Path, verb: str, hosts: Sequence[str], identities: Mapping[str, object], image: str | None = None
) -> Proof:
    """The proof that the verdicts of these hosts add up to, saved. Raises ProofError without a ``begin``."""
    path = run_dir / "proofs" / f"{verb}.json"
    try:
        begun = _read(path)
    except (OSError, ValueError) as error:
        raise ProofError(f"{verb} was never begun in this run: {error}") from error
    known: dict[str, Identity] = {}
    problems: list[str] = []
    for host in sorted(hosts):
        problems += _problems(run_dir, begun, host)
        try:
            known[host] = Identity.model_validate(identities[host])
        except KeyError:
            problems.append(f"{host}: its NICs were not looked at")
        except ValidationError as error:
            problems.append(f"{host}: its NICs are not known: {error.errors()[0]['msg']}")
    if not hosts:
        problems.append("no host was looked at")
    proof = begun.model_copy(
        update={
            "at": datetime.now(UTC),
            "ok": not problems,
            "hosts": known,
            "image": image or begun.image,
            "problems": tuple(problems),
        }
    )
    proof.save(run_dir)
    return proof


def _problems(run_dir: Path, begun: Proof, host: str) -> Iterator[str]:
    """Why the verdict of a host proves nothing."""
    path = verdict_file(run_dir, begun.verb, host)
    if not path.exists():
        yield f"{host}: no verdict"
        return
    try:
        verdict = Verdict.load(path)
        # A record may hold several runs of the verb; only what this one filed counts.
        filed = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    except (VerdictError, OSError) as error:
        yield f"{host}: {error}"
        return
    if filed < begun.at - timedelta(seconds=1):  # file systems keep coarser times than Python
        yield f"{host}: its verdict is older than this run"
    for check in verdict.failed:
        yield f"{host}: {check.name} ({check.subject})"
    if begun.transport == "rdma" and any(check.subject.startswith(TCP_SUBJECT) for check in verdict.checks):
        yield f"{host}: was measured over TCP, and RDMA is declared"


def newest(run_dir: Path, verb: str, cluster: str) -> tuple[Path, Proof] | None:
    """The newest proof of a verb and cluster, of this record or those beside it, and its record's folder.

    One that cannot be read is passed over: it proves nothing, and the record that holds it says so itself.
    """
    found: list[tuple[Path, Proof]] = []
    for path in {*run_dir.glob(f"proofs/{verb}.json"), *run_dir.parent.glob(f"*/proofs/{verb}.json")}:
        try:
            proof = _read(path)
        except (OSError, ValueError):
            continue
        if proof.cluster == cluster and proof.verb == verb:
            found.append((path.parents[1], proof))
    return max(found, key=lambda one: one[1].at, default=None)


def _read(path: Path) -> Proof:
    return Proof.model_validate_json(path.read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Claim:
    """What is about to be started: on which hosts, as they are now, over which transport, from what image."""

    cluster: str
    transport: Transport
    hosts: Sequence[str]
    identities: Mapping[str, object]
    image: str
    max_age: timedelta


def judge(run_dir: Path, claim: Claim, gate_host: str, now: datetime | None = None) -> list[Check]:
    """Every finding of the gate; it is open when all are ok. ``gate_host`` is the host that asks."""
    time = now or datetime.now(UTC)
    return [
        check for verb in VERBS[claim.transport] for check in _judge(run_dir, claim, verb, gate_host, time)
    ]


def _judge(run_dir: Path, claim: Claim, verb: str, gate_host: str, now: datetime) -> Iterator[Check]:
    subject = f"{verb} proof of {claim.cluster}"
    again = f"Run playbooks/{verb}.yml for all hosts of the cluster."

    def made(
        name: str, ok: bool, measured: Any, required: Any, hint: str, *, host: str = "", what: str = ""
    ) -> Check:
        return Check(
            name=f"gate.{name}",
            host=host or gate_host,
            subject=f"{subject}, {what}" if what else subject,
            ok=ok,
            measured=measured,
            required=required,
            hint=hint,
        )

    found = newest(run_dir, verb, claim.cluster)
    if found is None:
        hint = f"{again} What nobody proved is not served over."
        yield made("proof", False, "none in the run records", "a proof", hint)
        return
    folder, proof = found
    yield made("proof", True, folder.name, "a proof", "")
    why = "; ".join(proof.problems[:3]) + ("; ..." if len(proof.problems) > 3 else "")  # noqa: PLR2004
    yield made(
        "verdict",
        proof.ok,
        "ok" if proof.ok else f"not ok in {folder.name}: {why}",
        "ok",
        f"Correct what is named, then: {again}",
    )
    hint = f"Declare the transport that is meant, then: {again}"
    yield made("transport", proof.transport == claim.transport, proof.transport, claim.transport, hint)
    yield _age(made, proof, claim, now, again)
    if verb == "validate":
        hint = f"{again} What one image's UCX can do says nothing of another's."
        yield made("image", proof.image == claim.image, proof.image or "none", claim.image, hint)
    for host in sorted(claim.hosts):
        if host not in proof.hosts:
            yield made("hosts", False, _absent(folder, host), "in the proof", again, host=host)
    for host, raw in sorted(claim.identities.items()):
        if host in proof.hosts:
            yield from _same(made, proof.hosts[host], host, raw, again)


def _age(made: Callable[..., Check], proof: Proof, claim: Claim, now: datetime, again: str) -> Check:
    age, hours = now - proof.at, claim.max_age.total_seconds() / 3600
    if age < -_CLOCK_SKEW:
        measured = f"made at {proof.at:%Y-%m-%d %H:%M} UTC, which is still to come"
        return made("age", False, measured, "past", f"Set the controller's clock, then: {again}")
    return made("age", age <= claim.max_age, f"{_hours(age)} h", f"at most {hours:g} h", again)


def _hours(age: timedelta) -> str:
    return f"{max(0.0, age.total_seconds() / 3600):.1f}"


def _absent(folder: Path, host: str) -> str:
    """Why a host is in no proof, as far as its run's record tells."""
    try:
        limit = load(folder).limit
    except RecordError:
        limit = None
    return f"{host} is not in it" + (f": that run was limited to {limit}" if limit else "")


def _same(
    made: Callable[..., Check], proven: Identity, host: str, raw: object, again: str
) -> Iterator[Check]:
    """Whether a host is still the one that was proven."""
    try:
        now = Identity.model_validate(raw)
    except ValidationError as error:
        why = f"not known now: {error.errors()[0]['msg']}"
        yield made("nic", False, why, "the NICs of the proof", again, host=host)
        return
    booted = now.boot_id == proven.boot_id
    hint = f"{again} A reboot loses what only the running kernel and NIC held."
    yield made("boot", booted, "same boot" if booted else "rebooted since", "same boot", hint, host=host)
    before, after = ({nic.label: nic for nic in one.nics} for one in (proven, now))
    for label in sorted({*before, *after}):
        old, new = before.get(label), after.get(label)
        if old is None or new is None:
            state = ("gone", "present") if new is None else ("present", "absent, as it was")
            hint = f"Put the NIC of {label} back, or prove the host as it is now: {again}"
            yield made("nic", False, *state, hint, host=host, what=label)
            continue
        keys = [key for key in Nic.model_fields if getattr(old, key) != getattr(new, key)]
        yield made(
            "nic",
            not keys,
            ", ".join(f"{key} {getattr(new, key) or 'none'}" for key in keys) or "same NIC",
            ", ".join(f"{key} {getattr(old, key) or 'none'}" for key in keys) or "same NIC",
            f"Put back the NIC and firmware that were proven, or prove this one: {again}",
            host=host,
            what=label,
        )


def check_reason(reason: str) -> str:
    """The reason of a waiver in one line. Raises ProofError for one that is none."""
    words = reason.split()
    if len(words) < WAIVER_WORDS:
        raise ProofError(
            f"a waiver needs its reason in words, at least {WAIVER_WORDS}, got {reason!r}: "
            "write why serving without a proof is right here"
        )
    return " ".join(words)


def waive(run_dir: Path, reason: str, *, what: str, host: str, refused: Sequence[Check]) -> list[Check]:
    """Put a waiver into the run record, and what it lets pass as findings that say so.

    Raises ProofError for a reason that is none.
    """
    text = check_reason(reason)
    # Two folders deep as verdicts are, which also refuses names that would leave the record.
    path = run_dir / "waivers" / verdict_file(run_dir, what, host).relative_to(run_dir / "verdicts")
    write_json(
        path,
        {
            "what": what,
            "host": host,
            "reason": text,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "refused": [f"{check.host}: {check}" for check in refused],
        },
    )
    return [
        check.model_copy(
            update={
                "ok": True,
                "measured": f"WAIVED ({text}): {_text(check.measured)}",
                "hint": "",
            }
        )
        for check in refused
    ]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def waived(run_dir: Path) -> list[str]:
    """A line a waiver of this run, for the end of it."""
    lines = []
    for path in sorted(run_dir.glob("waivers/*/*.json")):
        try:
            one = json.loads(path.read_text(encoding="utf-8"))
            lines.append(
                f"{one['what']} on {one['host']} was started WITHOUT A PROOF of the fabric. Reason: "
                f"{one['reason']} ({len(one['refused'])} refusals waived, first: {one['refused'][0]})"
            )
        except (OSError, ValueError, KeyError, IndexError) as error:
            lines.append(f"{path}: a waiver that cannot be read: {error}")
    return lines
