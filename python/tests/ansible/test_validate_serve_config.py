"""What the check of a Serve config says, with stand-ins of the classes that only the serving image has."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, model_validator
from pydantic.dataclasses import dataclass as checked_dataclass

import splitrail_elastic.pool  # noqa: F401  # the real one, beside which the stand-in of its app is put

PROGRAM = Path(__file__).parents[3] / "roles/llm_serve/files/validate_serve_config.py"
PD = "ray.serve.llm:build_pd_openai_app"
ELASTIC = "splitrail_elastic.app:build_elastic_app"
Json = dict[str, Any]


class Strict(BaseModel):
    """As Ray's models: no key but the known ones."""

    model_config = ConfigDict(extra="forbid")


class LLMConfig(Strict):
    """A part of Ray's."""

    model_loading_config: dict[str, str]
    deployment_config: dict[str, int] = {}
    engine_kwargs: dict[str, Any] = {}


class ServingArgs(Strict):
    """Ray's LLMServingArgs, in part."""

    llm_configs: list[dict[str, Any]]


class PDServingArgs(Strict):
    """Ray's, in part, with a rule over both pools."""

    prefill_config: dict[str, Any]
    decode_config: dict[str, Any]

    @model_validator(mode="after")
    def _one_model(self) -> PDServingArgs:
        ids = [one["model_loading_config"]["model_id"] for one in (self.prefill_config, self.decode_config)]
        if ids[0] != ids[1]:
            raise ValueError("P/D model id mismatch")
        return self


class ElasticArgs(Strict):
    """The suite's own, in part: the image has the rest."""

    llm_config: dict[str, Any]


class Deploy(BaseModel):
    """Ray's ServeDeploySchema, in part."""

    applications: list[dict[str, Any]]


@checked_dataclass
class EngineArgs:
    """vLLM's AsyncEngineArgs, in part."""

    model: str = ""
    max_model_len: int = 0
    hf_token: int = 0
    kv_transfer_config: Any = None


@dataclass
class TransferConfig:
    """vLLM's KVTransferConfig, in part."""

    kv_connector: str | None = None
    kv_role: str | None = None

    def __post_init__(self) -> None:
        """Refuse a connector without a role."""
        if self.kv_connector and not self.kv_role:
            raise ValueError("please specify kv_role")


def load() -> ModuleType:
    """Import the program, which lies outside of any package."""
    spec = importlib.util.spec_from_file_location("validate_serve_config", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


program = load()


@pytest.fixture
def image(monkeypatch: pytest.MonkeyPatch) -> None:
    """The modules that the serving image would have."""
    builder = "ray.llm._internal.serve.serving_patterns.prefill_decode.builder"
    names: dict[str, Json] = {
        builder: {"PDServingArgs": PDServingArgs},
        "ray.serve.llm": {"LLMConfig": LLMConfig, "LLMServingArgs": ServingArgs},
        "ray.serve.schema": {"ServeDeploySchema": Deploy},
        "splitrail_elastic.app": {"ElasticArgs": ElasticArgs},
        "vllm.config": {"KVTransferConfig": TransferConfig},
        "vllm.engine.arg_utils": {"AsyncEngineArgs": EngineArgs},
    }
    for name, members in names.items():
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            folder = ".".join(parts[:end])
            if folder not in sys.modules:
                monkeypatch.setitem(sys.modules, folder, ModuleType(folder))
        vars(sys.modules[name]).update(members)


def engine(model: str = "m", **arguments: Any) -> Json:
    """An engine's LLMConfig."""
    return {"model_loading_config": {"model_id": model}, "engine_kwargs": arguments}


def pd(prefill: Json, decode: Json | None = None) -> Json:
    """A Serve config of prefill and decode."""
    arguments = {"prefill_config": prefill, "decode_config": decode or engine()}
    return {"applications": [{"import_path": PD, "args": arguments}]}


def run(
    config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, list[str]]:
    """Exit code and faults of the program; ``ok`` must agree with both."""
    path = tmp_path / "config.yaml"
    path.write_text(config if isinstance(config, str) else json.dumps(config))
    monkeypatch.setattr(sys, "argv", ["validate", str(path)])
    code = program.main()
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is (code == 0) is (not report["faults"])
    return code, report["faults"]


def elastic(roles: Json, **arguments: Any) -> Json:
    """A Serve config with three elastic engines."""
    one = {**engine(**arguments), "deployment_config": {"num_replicas": 3}}
    override = {"name": "ElasticIngress", "user_config": roles}
    return {
        "applications": [{"import_path": ELASTIC, "args": {"llm_config": one}, "deployments": [override]}]
    }


PLACE = "applications.0.args.prefill_config"
KWARGS = f"{PLACE}.engine_kwargs"
TRANSFER = f"{KWARGS}.kv_transfer_config"
UNKNOWN = "not an engine argument of this vLLM"
NO_INTEGER = "Input should be a valid integer, unable to parse string as an integer"


@pytest.mark.usefixtures("image")
@pytest.mark.parametrize(
    ("config", "says"),
    [
        (pd(engine()), []),
        (pd(engine(max_model_len=8, kv_transfer_config={"kv_connector": "N", "kv_role": "kv_both"})), []),
        ({"applications": [{"import_path": "x", "args": {"llm_configs": [engine()]}}]}, []),
        ({}, ["config.applications: Field required"]),
        (
            pd(engine(max_model_length=8)),
            [f"{KWARGS}.max_model_length: {UNKNOWN}, do you mean 'max_model_len'?"],
        ),
        (pd(engine(max_model_len="long")), [f"{KWARGS}.max_model_len: {NO_INTEGER}"]),
        (
            pd({**engine(), "engine_kwarg": {}}),
            [f"{PLACE}.engine_kwarg: Extra inputs are not permitted, do you mean 'engine_kwargs'?"],
        ),
        (
            pd(engine(kv_transfer_config={"kv_roll": "x"})),
            [f"{TRANSFER}.kv_roll: unknown, do you mean 'kv_role'?"],
        ),
        (pd(engine(kv_transfer_config={"kv_connector": "N"})), [f"{TRANSFER}: please specify kv_role"]),
        (pd(engine("a"), engine("b")), ["applications.0.args: P/D model id mismatch"]),
        (
            {"applications": [{"import_path": "x", "args": {"llm_configs": [engine(), engine(zzz=1)]}}]},
            [f"applications.0.args.llm_configs.1.engine_kwargs.zzz: {UNKNOWN}"],
        ),
        (elastic({"prefill": 1, "decode": 2}), []),
        (elastic({}), []),
        (
            elastic({"prefill": 1, "decode": 2}, zzz=1),
            [f"applications.0.args.llm_config.engine_kwargs.zzz: {UNKNOWN}"],
        ),
        (
            elastic({"prefill": -1, "decode": 2}),
            ["applications.0.deployments.0: user_config.prefill is -1: write a whole number, 0 or more"],
        ),
    ],
)  # fmt: skip
def test_faults_have_a_place_and_a_cure(
    config: Any,
    says: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(config, tmp_path, monkeypatch, capsys) == (1 if says else 0, says)


@pytest.mark.usefixtures("image")
def test_all_faults_of_both_pools_are_named_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, faults = run(pd(engine(one=1, two=2), engine(three=3)), tmp_path, monkeypatch, capsys)
    assert [fault.partition(":")[0].rpartition(".")[2] for fault in faults] == ["one", "two", "three"]


@pytest.mark.usefixtures("image")
def test_a_secret_is_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, faults = run(pd(engine(**{"hf_token": "hf_secret"})), tmp_path, monkeypatch, capsys)
    assert code == 1
    assert "hf_token" in faults[0]
    assert "hf_secret" not in str(faults)


@pytest.mark.usefixtures("image")
@pytest.mark.parametrize("config", ["{", {"applications": [{}]}, pd(engine())["applications"][0]])
def test_a_config_that_cannot_be_looked_at_is_no_pass(
    config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, faults = run(config, tmp_path, monkeypatch, capsys)
    assert code in (1, 2)
    assert len(faults) == 1


def test_outside_of_the_image_nothing_can_be_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, faults = run(pd(engine()), tmp_path, monkeypatch, capsys)
    assert (code, faults) == (2, ["could not be checked: ModuleNotFoundError: No module named 'ray'"])
