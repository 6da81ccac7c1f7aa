"""The Ray Serve application: N engines, each a deployment of its own, and the ingress before them.

A deployment for each engine, because Serve lets a caller choose a deployment and not a replica. What may
change while it serves is the ingress's ``user_config``, which Serve applies to running replicas.
"""

# Ray and FastAPI are in the serving image alone.
# mypy: disable-error-code="import-not-found, untyped-decorator"
from __future__ import annotations

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from ray import serve
from ray.serve.handle import DeploymentHandle
from ray.serve.llm import LLMConfig, build_llm_deployment
from ray.serve.llm.openai_api_models import ChatCompletionRequest, CompletionRequest
from ray.util.metrics import Counter

from splitrail_elastic.dispatch import Broken, Dispatcher, Refused
from splitrail_elastic.pool import NoEngine, Pool

Json = dict[str, Any]
REQUESTS = {"chat": ChatCompletionRequest, "completions": CompletionRequest}
CLIENT_ERRORS = range(400, 500)
PORTS = "NIXL_SIDE_CHANNEL_PORT_BASE"
FIRST_PORT = 20000
DEAD_S = 30.0
# Longer than Serve needs on a busy machine to find a replica's place in its queue, in seconds.
TAKEN_S = 5.0


def problem(status: int, message: str, kind: str = "invalid_request_error") -> Json:
    """OpenAI's error object."""
    return {"error": {"message": message, "type": kind, "param": None, "code": status}}


class ServeEngine:
    """An engine behind a Serve handle."""

    def __init__(self, handle: DeploymentHandle) -> None:
        # By reference: only so can a caller see whether a replica has taken the question.
        self._plain, self._stream = handle.options(_by_reference=True), handle.options(stream=True)

    async def ask(self, method: str, body: Json) -> AsyncGenerator[str | Json, None]:
        """See ``pool.Backend``."""
        request = REQUESTS[method].model_validate(body)
        if "messages" in body:
            # What pydantic makes of them are iterators, which cannot be sent to another process.
            request.messages = body["messages"]
        response = getattr(self._stream, method).remote(request)
        ended = False
        try:
            async for item in response:
                for piece in item if isinstance(item, list) else [item]:
                    yield checked(piece)
            ended = True
        finally:
            if not ended:
                response.cancel()

    async def health(self) -> None:
        """See ``pool.Backend``.

        Serve keeps a question for a replica that has died until there is another, which would be a long wait.
        Raises RuntimeError where no replica has taken it after TAKEN_S.
        """
        response = self._plain.check_health.remote()
        taken = asyncio.ensure_future(response._to_object_ref())
        ended = False
        try:
            if not (await asyncio.wait({taken}, timeout=TAKEN_S))[0]:
                raise RuntimeError(f"no replica takes requests for {TAKEN_S:g} s")
            taken.result()
            await response
            ended = True
        finally:
            taken.cancel()
            if not ended:
                response.cancel()


def checked(piece: Any) -> str | Json:
    """A piece of an engine's answer as it goes on: text of the event stream, or a whole answer.

    Raises Refused for an error that the request caused, RuntimeError for any other.
    """
    if isinstance(piece, str) and not piece.startswith('data: {"error"'):
        return piece
    said = json.loads(piece.removeprefix("data: ")) if isinstance(piece, str) else piece.model_dump()
    error = said.get("error") if isinstance(said, dict) else None
    if error is None:
        return dict(said)
    status = int(error.get("code") or 500)
    if status in CLIENT_ERRORS:
        raise Refused(status, {"error": error})
    raise RuntimeError(str(error.get("message"))[:500])


async def response(pieces: AsyncGenerator[str | Json, None]) -> Response:
    """The HTTP response of an answer: an event stream, or one whole."""
    first = await anext(pieces)
    if isinstance(first, str):
        return StreamingResponse(events(first, pieces), media_type="text/event-stream")
    async for _ in pieces:  # to its end, or it would count as cancelled
        pass
    return JSONResponse(first)


async def events(first: str, pieces: AsyncGenerator[str | Json, None]) -> AsyncGenerator[str, None]:
    """An event stream. A failure after its start is an event too, and then no ``[DONE]`` follows."""
    async with contextlib.aclosing(pieces):
        yield first
        try:
            async for piece in pieces:
                yield str(piece)
        except (Refused, Broken) as error:
            yield f"data: {json.dumps(problem(502, str(error), 'server_error'))}\n\n"


# Serve copies the routes with the globals that are there when it sees the class: what they use stands above.
api = FastAPI()


@serve.deployment(name="ElasticIngress")
@serve.ingress(api)
class ElasticIngress:
    """The OpenAI-compatible front."""

    def __init__(self, model: str, engines: list[DeploymentHandle], dead_s: float) -> None:
        pool = Pool({f"engine{number}": ServeEngine(one) for number, one in enumerate(engines)})
        self.counts: dict[str, int] = {}
        self.counter = Counter(
            "splitrail_elastic_requests", description="Requests, by what they came to.", tag_keys=("outcome",)
        )
        self.model, self.since = model, int(time.time())
        self.dispatcher = Dispatcher(pool, model, self.count, dead_s=dead_s)
        self.started = False

    def count(self, outcome: str) -> None:
        """Count a request."""
        self.counts[outcome] = self.counts.get(outcome, 0) + 1
        self.counter.inc(1, {"outcome": outcome})

    async def reconfigure(self, config: Json) -> None:
        """Take a new ratio: Serve calls it at the start and whenever the ``user_config`` changes."""
        self.dispatcher.configure(config)
        if not self.started:
            # Not in __init__, which Serve may run outside of the loop that serves.
            self.dispatcher.start()
            self.started = True

    @api.get("/v1/models")
    async def models(self) -> Json:
        """The one model."""
        return {"object": "list", "data": [self.card()]}

    @api.get("/v1/models/{name:path}")
    async def one_model(self, name: str) -> Response:
        """The model by its name."""
        if name != self.model:
            return JSONResponse(problem(404, f"there is no model {name}, only {self.model}"), 404)
        return JSONResponse(self.card())

    @api.post("/v1/completions")
    async def completions(self, request: Request) -> Response:
        """OpenAI's completions."""
        return await self.respond("completions", request)

    @api.post("/v1/chat/completions")
    async def chat(self, request: Request) -> Response:
        """OpenAI's chat completions."""
        return await self.respond("chat", request)

    @api.get("/-/ratio")
    async def ratio(self) -> Json:
        """What this replica does now: the ratio, the engines and their roles, and what requests came to."""
        pool = self.dispatcher.pool
        return {
            "prefill": pool.ratio.prefill,
            "decode": pool.ratio.decode,
            "aggregated_below_osl": pool.ratio.aggregated_below_osl,
            "replica": serve.get_replica_context().replica_id.unique_id,
            "engines": [
                {"name": one.name, "role": pool.role(one), "up": one.up, "in_flight": one.in_flight}
                for one in pool.engines
            ],
            "requests": self.counts,
        }

    def card(self) -> Json:
        """The model, as OpenAI describes one."""
        return {"id": self.model, "object": "model", "created": self.since, "owned_by": "splitrail"}

    async def respond(self, method: str, request: Request) -> Response:
        """Check a request, have it served, and put the answer into HTTP."""
        try:
            body = await request.json()
        except ValueError:
            return JSONResponse(problem(400, "the body is no JSON"), 400)
        wrong = self.wrong(method, body)
        if wrong is not None:
            return JSONResponse(wrong, wrong["error"]["code"])
        try:
            return await response(self.dispatcher.answer(method, body, f"req-{uuid.uuid4().hex}"))
        except Refused as error:
            return JSONResponse(error.body, error.status)
        except NoEngine as error:
            said = problem(503, f"{error}; try again later", "service_unavailable_error")
            return JSONResponse(said, 503, headers={"Retry-After": "5"})
        except Broken as error:
            return JSONResponse(problem(502, str(error), "server_error"), 502)

    def wrong(self, method: str, body: Any) -> Json | None:
        """What is wrong with a request, before an engine is asked; None where nothing is."""
        if not isinstance(body, dict):
            return problem(400, "the body is no object")
        if body.get("model", self.model) != self.model:
            return problem(404, f"there is no model {body['model']}, only {self.model}", "NotFoundError")
        if "kv_transfer_params" in body:
            return problem(400, "kv_transfer_params is not for clients")
        try:
            REQUESTS[method].model_validate({"model": self.model, **body})
        except ValidationError as error:
            fault = error.errors()[0]
            place = ".".join(str(part) for part in fault["loc"])
            return problem(400, f"{place}: {fault['msg']}" if place else str(fault["msg"]))
        except ValueError as error:
            return problem(400, str(error))
        body.setdefault("model", self.model)
        return None


class ElasticArgs(BaseModel):
    """Arguments of the application: the engines' LLMConfig, whose ``num_replicas`` is how many there are."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    llm_config: Any
    ingress_deployment_config: Json = Field(default_factory=dict)

    @field_validator("llm_config")
    @classmethod
    def _engines(cls, value: Any) -> Any:
        config = LLMConfig.model_validate(value)
        transfer = config.engine_kwargs.get("kv_transfer_config") or {}
        if transfer.get("kv_connector") != "NixlConnector" or transfer.get("kv_role") != "kv_both":
            raise ValueError("kv_transfer_config must have kv_connector NixlConnector and kv_role kv_both")
        count = config.deployment_config.get("num_replicas")
        if not isinstance(count, int) or count < 1:
            raise ValueError("deployment_config.num_replicas must say how many engines there are")
        return config


def build_elastic_app(args: Json) -> serve.Application:
    """Build the application: what the Serve config's ``import_path`` names.

    Every engine gets side-channel ports of its own, as Ray gives them to replicas of one deployment.
    """
    given = ElasticArgs.model_validate(args)
    config = given.llm_config
    wide = int(config.engine_kwargs.get("tensor_parallel_size", 1))
    first = int(config.experimental_configs.get(PORTS, FIRST_PORT))
    engines = []
    for number in range(config.deployment_config["num_replicas"]):
        own = config.model_copy(deep=True)
        own.deployment_config = {**config.deployment_config, "num_replicas": 1}
        own.experimental_configs = {**config.experimental_configs, PORTS: first + number * wide}
        engines.append(build_llm_deployment(own, name_prefix=f"Engine{number}:"))
    dead_s = float(config.deployment_config.get("health_check_timeout_s", DEAD_S))
    # Without a ratio in the config every engine does both.
    options = {"user_config": {}, **given.ingress_deployment_config}
    ingress = ElasticIngress.options(**options)  # type: ignore[attr-defined]  # a deployment, by its decorator
    return ingress.bind(config.model_id, engines, dead_s)
