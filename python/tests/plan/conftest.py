"""A made-up system whose every time can be worked out by hand."""

from __future__ import annotations

import pytest

from splitrail.plan.simulate import Fleet
from splitrail.plan.step import Kind, Settings, Step, Transfer
from splitrail.plan.system import Gpu, Model, Shape, System
from splitrail.workload import Lengths, Workload

STEP = Step(
    step_s=8e-3,
    token_s=4e-5,
    attention_s=1.5e-9,
    sequence_s=2e-5,
    context_s=4e-8,
    mixed_context_s=1.2e-7,
)
SETTINGS = Settings(max_num_batched_tokens=8192, max_num_seqs=256, block_size=16, kv_tokens=560_000)
TRANSFER = Transfer(
    descriptor_s=3.4e-6,
    descriptors_per_block=80,
    bytes_per_s=75e9,
    bytes_per_token=163_840,
    handoff_s=0.04,
)


def aggregated(replicas: int = 1, step: Step = STEP, settings: Settings = SETTINGS) -> Fleet:
    """Aggregated engines."""
    return Fleet({"aggregated": Kind(step, settings)}, {"aggregated": replicas})


def split(
    prefill: int = 1,
    decode: int = 1,
    *,
    step: Step = STEP,
    settings: Settings = SETTINGS,
    transfer: Transfer = TRANSFER,
) -> Fleet:
    """Prefill and decode engines."""
    kinds = {
        "prefill": Kind(step, settings, prefill_only=True),
        "decode": Kind(step, settings, transfer),
    }
    return Fleet(kinds, {"prefill": prefill, "decode": decode})


def workload(isl: float = 8000, osl: float = 512, **more: float) -> Workload:
    """Constant lengths, Poisson arrivals."""
    return Workload.model_validate({"isl": Lengths(mean=isl), "osl": Lengths(mean=osl), **more})


@pytest.fixture
def model() -> Model:
    """The made-up system as `calibrate` would write it."""
    return make_model()


def make_model() -> Model:
    """The same, where a fixture does not reach."""
    system = System(
        name="made up",
        gpu=Gpu(name="H200", tflops=989, memory_gb=141, memory_gb_per_s=4800),
        model=Shape(
            layers=40,
            hidden=5120,
            heads=40,
            kv_heads=8,
            head_size=128,
            weights=14.8e9,
            active_weights=13.2e9,
        ),
        settings={"aggregated": SETTINGS, "prefill": SETTINGS, "decode": SETTINGS},
        descriptors_per_block=80,
        link_gb_per_s=150,
    )
    return Model(system=system, steps={1: STEP}, transfer=TRANSFER, overhead_s=0.007)
