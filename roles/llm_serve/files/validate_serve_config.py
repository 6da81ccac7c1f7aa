"""Check Serve configs against the real classes of Ray and vLLM. Runs inside the serving image.

usage: validate_serve_config.py CONFIG.yaml...

Prints one JSON document, {"ok": bool, "faults": [str]}, each fault with its place and what would be
right, and with its file where there are several. Exit code 0 when the configs are good, 1 when one is not, 2
when they could not be checked. Starts no engine and opens no socket. Repeats no value of a config but those
that Ray's and vLLM's own rules name: it may hold secrets.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError


def closest(word: str, known: list[str]) -> str:
    """A hint at the nearest known name, or nothing."""
    near = get_close_matches(word, known, n=1)
    return f", do you mean {near[0]!r}?" if near else ""


def pydantic_faults(place: str, model: Any, value: Any) -> list[str]:
    """What a pydantic model has to say against a value."""
    return rejections(place, lambda: model.model_validate(value), list(getattr(model, "model_fields", [])))


def rejections(place: str, make: Callable[[], Any], known: list[str]) -> list[str]:
    """What the making of an object has to say against its arguments; nothing when it can be made."""
    try:
        make()
    except ValidationError as error:
        found = []
        for fault in error.errors():
            where = ".".join([place, *(str(part) for part in fault["loc"] if part != "function-plain")])
            strange = fault["type"] in ("extra_forbidden", "unexpected_keyword_argument")
            hint = closest(str(fault["loc"][-1]), known) if strange and fault["loc"] else ""
            message = fault["msg"].removeprefix("Value error, ")
            found.append(f"{where}: {message}{hint}")
        return found
    except (ValueError, TypeError) as error:
        return [f"{place}: {error}"]
    return []


def engine_faults(place: str, arguments: dict[str, Any]) -> list[str]:
    """Engine arguments that vLLM does not know, or a KV transfer that it refuses."""
    from vllm.config import KVTransferConfig
    from vllm.engine.arg_utils import AsyncEngineArgs

    known = [field.name for field in fields(AsyncEngineArgs)]
    found = [
        f"{place}.{key}: not an engine argument of this vLLM{closest(key, known)}"
        for key in arguments
        if key not in known
    ]
    transfer = arguments.get("kv_transfer_config")
    if transfer is not None:
        names = [field.name for field in fields(KVTransferConfig)]
        strange = [key for key in transfer if key not in names]
        found += [f"{place}.kv_transfer_config.{key}: unknown{closest(key, names)}" for key in strange]
        if not strange:
            found += rejections(f"{place}.kv_transfer_config", lambda: KVTransferConfig(**transfer), names)
    if not found:
        engine = {**arguments, "model": "checked-elsewhere"}
        found += rejections(place, lambda: AsyncEngineArgs(**engine), known)
    return found


def ratio_faults(place: str, application: dict[str, Any]) -> list[str]:
    """A ratio that elastic engines cannot have; Serve would say so only once they all have started."""
    from splitrail_elastic.pool import Ratio

    engines = application["args"]["llm_config"]["deployment_config"]["num_replicas"]
    return [
        fault
        for number, one in enumerate(application.get("deployments", []))
        if one["name"] == "ElasticIngress"
        for fault in rejections(
            f"{place}.deployments.{number}", lambda one=one: Ratio.read(one["user_config"], engines), []
        )
    ]


def faults(config: Any) -> list[str]:
    """Everything that is wrong with a Serve config."""
    from ray.llm._internal.serve.serving_patterns.prefill_decode.builder import PDServingArgs
    from ray.serve.llm import LLMConfig, LLMServingArgs
    from ray.serve.schema import ServeDeploySchema

    found = pydantic_faults("config", ServeDeploySchema, config)
    if found:
        return found
    for number, application in enumerate(config["applications"]):
        arguments = application["args"]
        place = f"applications.{number}.args"
        if application["import_path"] == "splitrail_elastic.app:build_elastic_app":
            from splitrail_elastic.app import ElasticArgs

            whole, llm_configs = ElasticArgs, {"llm_config": arguments["llm_config"]}
            found += ratio_faults(f"applications.{number}", application)
        elif application["import_path"] == "ray.serve.llm:build_pd_openai_app":
            whole, llm_configs = (
                PDServingArgs,
                {name: arguments[name] for name in ("prefill_config", "decode_config")},
            )
        else:
            whole = LLMServingArgs
            llm_configs = {f"llm_configs.{i}": one for i, one in enumerate(arguments["llm_configs"])}
        before = len(found)
        for name, llm_config in llm_configs.items():
            found += pydantic_faults(f"{place}.{name}", LLMConfig, llm_config)
            found += engine_faults(f"{place}.{name}.engine_kwargs", llm_config.get("engine_kwargs", {}))
        if len(found) == before:
            found += pydantic_faults(place, whole, arguments)
    return found


def main() -> int:
    """Check the files named on the command line."""
    files = sys.argv[1:]
    found = []
    try:
        for file in files:
            said = faults(yaml.safe_load(Path(file).read_text()))
            found += [f"{file}: {fault}" for fault in said] if len(files) > 1 else said
    except (OSError, yaml.YAMLError, ImportError, KeyError, IndexError, TypeError) as error:
        print(json.dumps({"ok": False, "faults": [f"could not be checked: {type(error).__name__}: {error}"]}))
        return 2
    print(json.dumps({"ok": not found, "faults": found}))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
