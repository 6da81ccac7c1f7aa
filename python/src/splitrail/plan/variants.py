"""Neighbours of a question: the same fleet under other lengths, hit rates and SLAs."""

from __future__ import annotations

from splitrail.plan.advise import Question
from splitrail.workload import Sla, Workload

Variant = tuple[str, str, Workload, Sla]
FACTORS = (0.25, 0.5, 1.0, 2.0)
HIT_RATES = (0.0, 0.3, 0.6, 0.8)
SLACK = (0.5, 0.75, 1.0, 1.5, 2.0)


def variants(question: Question) -> list[Variant]:
    """Rows are what changes, columns to what; prompt by answer length make a square of their own."""
    workload, sla = question.workload, question.sla
    found: list[Variant] = []
    for down in FACTORS:
        isl = workload.isl.model_copy(update={"mean": max(16.0, round(workload.isl.mean * down))})
        for across in FACTORS:
            osl = workload.osl.model_copy(update={"mean": max(4.0, round(workload.osl.mean * across))})
            changed = workload.model_copy(update={"isl": isl, "osl": osl})
            found.append((f"ISL {isl.mean:g}", f"OSL {osl.mean:g}", changed, sla))
    for rate in HIT_RATES:
        changed = workload.model_copy(update={"hit_rate": rate})
        found.append(("hit rate", f"{rate:.0%}", changed, sla))
    for share in SLACK:
        limits = tuple(limit.model_copy(update={"ms": limit.ms * share}) for limit in sla.limits)
        found.append(("SLA times", f"{share:g}", workload, Sla(limits=limits)))
    return found
