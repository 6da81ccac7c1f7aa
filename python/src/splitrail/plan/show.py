"""An answer for the terminal, and as plain data."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from splitrail.plan.advise import Answer, Option, Question
from splitrail.workload import Sla

COLUMNS = ("layout", "req/s", "a GPU", "TTFT ms", "TPOT ms", "E2E s", "P busy", "batch", "KV", "ends with")


def show(console: Console, question: Question, answer: Answer) -> None:
    """The table of options with p90 times, the conclusion and what follows from it."""
    asked = f"{question.workload.label} on {question.gpus} {question.model.system.gpu.name}: {question.sla}"
    console.print(Text(asked), soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    for name in COLUMNS:
        table.add_column(name, overflow="fold", justify="left" if name == "layout" else "right")
    for option in answer.options:
        best = option is answer.recommended
        *cells, _, last = row(option, "{p90}")
        style = "bold green" if best else "dim" if option.qps <= 0 else None
        table.add_row(*cells, last, style=style)
    console.print(table)
    for line in conclusion(question, answer):
        console.print(Text(line), soft_wrap=True)


def row(option: Option, times: str = "{p50}/{p90}") -> list[str]:
    """One option's cells; ``times`` says which percentiles of TTFT, TPOT and E2E."""
    point = option.found.at.point
    cells = ["-"] * 3
    if point is not None:
        seconds = {name: value / 1000 for name, value in point.e2e.items()}
        shown = ((point.ttft, ".0f"), (point.tpot, ".3g"), (seconds, ".3g"))
        cells = [
            times.format(**{name: format(value, form) for name, value in values.items()}) if values else "-"
            for values, form in shown
        ]
    spread = f" ±{option.spread:.2g}" if option.spread else ""
    return [
        option.layout.label,
        f"{option.qps:.3g}{spread}" if option.qps > 0 else "none",
        f"{option.qps / option.layout.gpus:.3g}",
        *cells,
        *pools(option),
        ends(option),
    ]


def pools(option: Option) -> list[str]:
    """Utilisation at the goodput: time that prefill takes, and what an engine that decodes carries.

    Prefill is a share of the prefill pool's time, or of the aggregated engines'; stalled is the share of time
    for which a decode engine posts transfers.
    """
    if option.qps <= 0:
        return ["-"] * 4
    use = option.found.at.pools
    decoding = use.get("decode") or use["aggregated"]
    prefilling = use.get("prefill") or use["aggregated"]
    return [
        f"{prefilling.prefill:.0%}",
        f"{decoding.batch:.0f}",
        f"{decoding.kv:.0%}",
        f"{decoding.stalled:.0%}",
    ]


def ends(option: Option) -> str:
    """Which limit ends the rate, and where."""
    found = option.found
    what = "queues" if found.binding == "rate" else found.binding
    return f"{what}, alone" if option.qps <= 0 else f"{what}, {found.pool}"


def conclusion(question: Question, answer: Answer) -> list[str]:
    """What to do, how sure that is, and what one more engine should be."""
    lines = [answer.words]
    best = answer.recommended
    if best is None:
        return lines
    lines.append(
        f"Recommended: {best.layout.label}, {best.qps:.3g} requests/s (±{best.spread:.2g} over "
        f"{len(best.rates)} paired seeds); the conclusion held in {answer.confidence:.0%} of them. "
        f"It ends with {ends(best)}."
    )
    for label, adds in answer.marginal.items():
        gains = sorted(adds.items(), key=lambda item: -item[1])
        told = ", ".join(f"{role} {gain:+.2f}" for role, gain in gains)
        should = f" It should be: {gains[0][0]}." if label == best.layout.label else ""
        lines.append(f"One more engine beside {label} adds, in requests/s: {told}.{should}")
    if best.layout.label in answer.costs:
        figures = answer.costs[best.layout.label]
        lines.append(
            f"Cost: {figures.money_per_million:.3g} {figures.currency} a million tokens "
            f"({figures.gpu_hours_per_million:.3g} GPU-hours, {figures.money_per_million_output:.3g} "
            f"{figures.currency} a million answer tokens); GPUs: {figures.gpus_continuous:.3g} continuous, "
            f"{figures.gpus_whole} in whole nodes."
        )
        if figures.kv_gb_per_s:
            lines.append(
                f"KV transfer needs {figures.kv_gb_per_s:.3g} GB/s, "
                f"{figures.kv_gb_per_s_per_decode_engine:.3g} into each decode engine."
            )
    if any(engines.tp not in question.model.steps for engines in best.layout.pools.values()):
        lines.append(
            "Its tensor-parallel size was not measured: the step times are scaled, so measure it first."
        )
    return lines


def document(question: Question, answer: Answer) -> dict[str, Any]:
    """Plain data of all of it."""
    return {
        "question": {
            "system": question.model.system.name,
            "workload": question.workload.model_dump(),
            "sla": sla(question.sla),
            "gpus": question.gpus,
        },
        "conclusion": conclusion(question, answer),
        "recommended": answer.recommended.layout.label if answer.recommended else None,
        "margin": answer.margin,
        "confidence": answer.confidence,
        "marginal_qps": answer.marginal,
        "options": [
            {
                "layout": option.layout.label,
                "gpus": option.layout.gpus,
                "goodput_qps": option.qps,
                "rates": list(option.rates),
                **{key: value for key, value in option.found.document.items() if key != "qps"},
                "cost": answer.costs[option.layout.label].model_dump()
                if option.layout.label in answer.costs
                else None,
            }
            for option in answer.options
        ],
    }


def sla(limits: Sla) -> dict[str, float]:
    """``{"ttft_p90": 1000}``."""
    return {limit.key: limit.ms for limit in limits.limits}
