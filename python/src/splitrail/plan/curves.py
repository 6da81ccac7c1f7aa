"""Predicted curves: what clients would see over rising rates, in the format of measured ones."""

from __future__ import annotations

from collections.abc import Sequence

from splitrail.plan.advise import Answer, Option, Question
from splitrail.plan.goodput import lifetime, probe
from splitrail.plan.system import fleet
from splitrail.workload import Curve, Point

# Of the goodput: from a lone request to where queues run away.
SHARES = (0.1, 0.3, 0.5, 0.7, 0.85, 0.95, 1.0, 1.05, 1.15, 1.3)


def shown(answer: Answer) -> list[Option]:
    """The options worth a curve: the best of each mode, and the runner-up."""
    best = [answer.best("aggregated"), answer.best("pd")]
    chosen = [option for option in best if option is not None]
    others = [o for o in answer.options if o.qps > 0 and o not in chosen]
    return [*chosen, *others[:1]]


def curve(question: Question, option: Option, rates: Sequence[float], seed: int = 0) -> Curve:
    """Simulate rising rates up to the first at which requests pile up without end."""
    engines = fleet(option.layout, question.model, question.decode_model)
    lasting = lifetime(engines, question.workload, question.sla)
    points: list[Point] = []
    for qps in rates:
        seen = probe(engines, question.workload, question.sla, qps, seed=seed, lasting=lasting)
        if seen.point is None:
            break
        points.append(seen.point)
    return Curve(
        kind="predicted",
        layout=option.layout.label,
        workload=question.workload,
        source=f"splitrail plan, {question.model.system.name}",
        points=tuple(points),
    )


def curves(question: Question, answer: Answer) -> list[Curve]:
    """A curve for each option that is worth one, over the same rates, so that they can be compared."""
    options = shown(answer)
    if not options:
        return []
    top = max(option.qps for option in options)
    rates = sorted({share * top for share in SHARES} | {option.qps for option in options})
    return [curve(question, option, rates) for option in options]
