"""The application: HTTP, OpenAI's errors, an engine's pieces, engines with ports of their own.

With stand-ins of the few names of Ray and FastAPI that it uses, which only the serving image has.
"""

from __future__ import annotations

import asyncio
import copy
import importlib
import json
import sys
from collections.abc import AsyncGenerator, Coroutine
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict

from splitrail_elastic.dispatch import Broken, Refused
from splitrail_elastic.pool import NoEngine

Json = dict[str, Any]


class Body(BaseModel):
    """A request as Ray has it, in part."""

    model_config = ConfigDict(extra="allow")

    model: str
    max_tokens: int = 16


class Answer(BaseModel):
    """What an engine gives that is no text."""

    model_config = ConfigDict(extra="allow")


class Config(BaseModel):
    """Ray's LLMConfig, in part."""

    model_config = ConfigDict(extra="forbid")

    model_id: str = "m"
    engine_kwargs: Json = {}
    deployment_config: Json = {}
    experimental_configs: Json = {}


class Respond:
    """A response as FastAPI makes it, in part."""

    def __init__(
        self, content: Any, status_code: int = 200, headers: Any = None, media_type: str = ""
    ) -> None:
        self.content, self.status, self.headers, self.media_type = content, status_code, headers, media_type


class Routes:
    """FastAPI's decorators, which leave a method as it is."""

    def get(self, _path: str) -> Any:
        return lambda method: method

    post = get


class Deployment(SimpleNamespace):
    """What is bound to what."""

    def options(self, **options: Any) -> Deployment:
        return Deployment(**{**vars(self), **options})

    def bind(self, *bound: Any) -> Deployment:
        return Deployment(**{**vars(self), "bound": bound})


def deployment(**options: Any) -> Any:
    """Ray's decorator, which keeps the class."""
    return lambda kind: Deployment(kind=kind, **options)


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    built: list[Any] = []

    def build(config: Config, name_prefix: str) -> str:
        built.append(copy.deepcopy(config))
        return name_prefix

    names: dict[str, Json] = {
        "fastapi": {"FastAPI": Routes, "Request": object},
        "fastapi.responses": {"JSONResponse": Respond, "Response": Respond, "StreamingResponse": Respond},
        "ray": {},
        "ray.serve": {
            "deployment": deployment,
            "ingress": lambda _app: lambda kind: kind,
            "Application": object,
        },
        "ray.serve.handle": {"DeploymentHandle": object},
        "ray.serve.llm": {"LLMConfig": Config, "build_llm_deployment": build},
        "ray.serve.llm.openai_api_models": {"ChatCompletionRequest": Body, "CompletionRequest": Body},
        "ray.util": {},
        "ray.util.metrics": {"Counter": lambda *_a, **_k: SimpleNamespace(inc=lambda *_: None)},
    }
    for name, members in names.items():
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
        parent, _, last = name.rpartition(".")
        if parent:
            monkeypatch.setattr(sys.modules[parent], last, module, raising=False)
    monkeypatch.delitem(sys.modules, "splitrail_elastic.app", raising=False)
    module = importlib.import_module("splitrail_elastic.app")
    vars(module)["built"] = built
    monkeypatch.delitem(sys.modules, "splitrail_elastic.app")
    return module


class Web:
    """One ingress replica whose dispatcher answers as it is told."""

    def __init__(self, app: ModuleType, pieces: list[Any]) -> None:
        self.ingress = app.ElasticIngress.kind("m", [], 1.0)
        self.pieces = pieces
        self.asked: list[tuple[str, Json]] = []
        self.ingress.dispatcher.answer = self.answer

    async def answer(self, method: str, body: Json, _id: str) -> AsyncGenerator[Any, None]:
        """The pieces; an exception among them is raised."""
        self.asked.append((method, body))
        for piece in self.pieces:
            if isinstance(piece, Exception):
                raise piece
            yield piece

    def post(self, body: Any, method: str = "completions") -> Any:
        """The response to a request; of a stream its whole text."""

        async def read() -> Any:
            async def parsed() -> Any:
                return json.loads(body) if isinstance(body, str) else body

            response = await self.ingress.respond(method, SimpleNamespace(json=parsed))
            if response.media_type:
                response.content = "".join([text async for text in response.content])
            return response

        return asyncio.run(read())


def test_a_whole_answer_is_json_and_a_stream_is_events(app: ModuleType) -> None:
    assert app
    web = Web(app, [{"choices": []}])
    assert web.post({"prompt": "p"}).content == {"choices": []}
    assert web.asked == [("completions", {"prompt": "p", "model": "m"})]
    response = Web(app, ["data: 1\n\n", "data: [DONE]\n\n"]).post({"prompt": "p", "stream": True})
    assert (response.media_type, response.content) == ("text/event-stream", "data: 1\n\ndata: [DONE]\n\n")


def test_a_stream_that_breaks_says_so_and_does_not_end_well(app: ModuleType) -> None:
    text = Web(app, ["data: 1\n\n", Broken("engine1: died")]).post({"prompt": "p"}).content
    first, last, _ = text.split("\n\n")
    assert first == "data: 1"
    assert json.loads(last.removeprefix("data: "))["error"]["message"] == "engine1: died"
    assert "[DONE]" not in text


@pytest.mark.parametrize(
    ("failure", "status", "says"),
    [
        (Refused(400, {"error": {"message": "too long"}}), 400, "too long"),
        (NoEngine("no engine is up"), 503, "no engine is up; try again later"),
        (Broken("engine0: died"), 502, "engine0: died"),
    ],
)
def test_a_failure_has_its_status(app: ModuleType, failure: Exception, status: int, says: str) -> None:
    response = Web(app, [failure]).post({"prompt": "p"})
    assert (response.status, response.content["error"]["message"]) == (status, says)


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ("{", 400, "the body is no JSON"),
        ([1], 400, "the body is no object"),
        ({"model": "other", "prompt": "p"}, 404, "there is no model other, only m"),
        ({"prompt": "p", "max_tokens": "many"}, 400, "max_tokens: Input should be a valid integer"),
        ({"prompt": "p", "kv_transfer_params": {}}, 400, "kv_transfer_params is not for clients"),
    ],
)
def test_a_wrong_request_reaches_no_engine(app: ModuleType, body: Any, status: int, says: str) -> None:
    web = Web(app, [])
    response = web.post(body)
    assert response.status == response.content["error"]["code"] == status
    assert says in response.content["error"]["message"]
    assert web.asked == []


def test_pieces_of_an_engine(app: ModuleType) -> None:
    assert app.checked("data: {}\n\n") == "data: {}\n\n"
    assert app.checked(Answer(id="x")) == {"id": "x"}
    too_long = {"message": "too long", "code": 400}
    for piece in (f"data: {json.dumps({'error': too_long})}\n\n", Answer(error=too_long)):
        with pytest.raises(Refused) as caught:
            app.checked(piece)
        assert (caught.value.status, caught.value.body) == (400, {"error": too_long})
    with pytest.raises(RuntimeError, match="engine dead"):
        app.checked(Answer(error={"message": "engine dead", "code": 500}))


class Handle:
    """A Serve handle of one engine."""

    def __init__(self, items: list[Any]) -> None:
        self.items, self.cancelled, self.sent = items, 0, None
        self.check_health: Any = None
        self.chat = self.completions = self

    def options(self, stream: bool = False, _by_reference: bool = False) -> Handle:
        assert stream != _by_reference
        return self

    def remote(self, request: Any) -> Handle:
        self.sent = request
        return self

    def cancel(self) -> None:
        self.cancelled += 1

    async def __aiter__(self) -> AsyncGenerator[Any, None]:
        for item in self.items:
            yield item


class Health:
    """The answer to a health check, which a replica takes and answers, or not."""

    def __init__(self, taken: bool, error: Exception | None = None) -> None:
        self.taken, self.error, self.cancelled = taken, error, 0

    async def _to_object_ref(self) -> None:
        await asyncio.sleep(0 if self.taken else 60)

    def __await__(self) -> Any:
        return self._answer().__await__()

    async def _answer(self) -> None:
        if self.error:
            raise self.error

    def cancel(self) -> None:
        self.cancelled += 1


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (Health(True), None),
        (Health(True, RuntimeError("engine dead")), "engine dead"),
        (Health(False), "no replica takes requests for 0.01 s"),
    ],
)
def test_an_engine_without_a_replica_is_not_waited_for(
    app: ModuleType, answer: Health, says: str | None
) -> None:
    vars(app)["TAKEN_S"] = 0.01
    handle = Handle([])
    handle.check_health = SimpleNamespace(remote=lambda: answer)
    if says is None:
        asyncio.run(app.ServeEngine(handle).health())
    else:
        with pytest.raises(RuntimeError, match=says):
            asyncio.run(app.ServeEngine(handle).health())
    assert answer.cancelled == (says is not None)


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


def test_an_engine_gets_plain_messages_and_gives_its_batches_piece_by_piece(app: ModuleType) -> None:
    async def test() -> None:
        handle = Handle([["a", "b"], "c"])
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
        assert [piece async for piece in app.ServeEngine(handle).ask("chat", body)] == ["a", "b", "c"]
        assert handle.sent is not None
        assert handle.sent.messages is body["messages"]
        assert handle.cancelled == 0

    run(test())


def test_a_request_that_is_taken_back_is_cancelled_at_the_engine(app: ModuleType) -> None:
    async def test() -> None:
        handle = Handle(["a", "b"])
        pieces = app.ServeEngine(handle).ask("completions", {"model": "m", "prompt": "p"})
        assert await anext(pieces) == "a"
        await pieces.aclose()
        assert handle.cancelled == 1

    run(test())


TRANSFER = {"kv_connector": "NixlConnector", "kv_role": "kv_both"}


def test_every_engine_is_a_deployment_with_ports_of_its_own(app: ModuleType) -> None:
    config = {
        "engine_kwargs": {"tensor_parallel_size": 2, "kv_transfer_config": TRANSFER},
        "deployment_config": {"num_replicas": 3, "health_check_timeout_s": 7},
        "experimental_configs": {"NIXL_SIDE_CHANNEL_PORT_BASE": 24000},
    }
    made = app.build_elastic_app({"llm_config": config, "ingress_deployment_config": {"num_replicas": 2}})
    assert made.bound == ("m", ["Engine0:", "Engine1:", "Engine2:"], 7.0)
    assert (made.name, made.num_replicas, made.user_config) == ("ElasticIngress", 2, {})
    ports = [one.experimental_configs["NIXL_SIDE_CHANNEL_PORT_BASE"] for one in app.built]
    assert ports == [24000, 24002, 24004]
    assert [one.deployment_config["num_replicas"] for one in app.built] == [1, 1, 1]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"deployment_config": {}}, "num_replicas must say how many engines there are"),
        ({"engine_kwargs": {}}, "kv_connector NixlConnector and kv_role kv_both"),
        (
            {"engine_kwargs": {"kv_transfer_config": {**TRANSFER, "kv_role": "kv_producer"}}},
            "kv_role kv_both",
        ),
        ({"zzz": 1}, "Extra inputs are not permitted"),
    ],
)
def test_arguments_that_cannot_be_are_refused(app: ModuleType, change: Json, says: str) -> None:
    config = {"engine_kwargs": {"kv_transfer_config": TRANSFER}, "deployment_config": {"num_replicas": 2}}
    with pytest.raises(ValueError, match=says):
        app.build_elastic_app({"llm_config": {**config, **change}})
