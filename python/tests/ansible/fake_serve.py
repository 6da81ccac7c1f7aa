"""Ray Serve's REST interface with the rules of the real one, for tests of what deploys through it."""

from __future__ import annotations

import copy
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

Json = dict[str, Any]
NAMES = {"prefill_config": "Prefill:m", "decode_config": "Decode:m", "llm_configs": "LLMServer:m"}


class Serve:
    """State and rules of Ray Serve.

    It starts with the first PUT, which alone decides where it listens; a config without an application
    deletes it; a config equal to one that failed is ignored; DELETE ends all of it, some answers later. A
    changed number of replicas alone leaves those that stay; any other change replaces all.
    """

    def __init__(self) -> None:
        self.http: Json | None = None
        self.apps: dict[str, Json] = {}
        self.calls: list[str] = []
        self.broken: Callable[[Json], bool] = lambda _: False
        self.never: Callable[[Json], bool] = lambda _: False
        self.proxies = {"10.0.0.11": "HEALTHY"}
        self.ending = 0
        self.numbers = itertools.count()
        self.nodes = [{"resources_total": {"CPU": 2, "decode": 2}}]

    def get(self) -> Json:
        if self.http is None:
            return {"controller_info": {}, "proxies": {}, "applications": {}, "target_capacity": None}
        if self.ending:
            self.ending -= 1
            self.apps = {}
            if not self.ending:
                self.http = None
        else:
            for app in self.apps.values():
                app["age"] += 1
                if app["age"] > 1 and app["status"] == "DEPLOYING" and not self.never(app["config"]):
                    app["status"] = "DEPLOY_FAILED" if self.broken(app["config"]) else "RUNNING"
        return {
            "controller_info": {"actor_name": "SERVE_CONTROLLER_ACTOR"},
            "proxy_location": (self.http or {}).get("proxy_location"),
            # Serve writes out the defaults of its own options, and of nothing else.
            "http_options": {
                "root_path": "",
                "keep_alive_timeout_s": 90,
                **(self.http or {}).get("options", {}),
            },
            "proxies": {ip: {"node_ip": ip, "status": status} for ip, status in self.proxies.items()},
            "applications": {name: self.detail(app) for name, app in self.apps.items()},
        }

    def detail(self, app: Json) -> Json:
        bad = app["status"] == "DEPLOY_FAILED"
        status = "DEPLOY_FAILED" if bad else "UPDATING" if app["status"] == "DEPLOYING" else "HEALTHY"
        return {
            "status": app["status"],
            "message": "Failed to update the deployments ['Decode'].\n" if bad else "",
            "deployments": {
                name: {
                    "status": status,
                    "message": "the replica failed to start 3 times" if bad else "",
                    "replicas": [self.replica(actor, "RUNNING") for actor in actors]
                    # What drains is still listed for a while.
                    + [self.replica(actor, "STOPPING") for actor in app["leaving"].pop(name, [])],
                }
                for name, actors in app["actors"].items()
            },
            "deployed_app_config": copy.deepcopy(app["config"]),
        }

    def replica(self, actor: str, state: str) -> Json:
        return {
            "actor_id": actor,
            "state": state,
            "node_id": "n1",
            "node_ip": "10.0.0.13",
            "log_file_path": "/serve/replica.log",
        }

    def put(self, wanted: Json) -> None:
        if self.ending:
            return  # dropped without a word, as the real one does
        if self.http is None:
            self.http = {"proxy_location": wanted["proxy_location"], "options": wanted["http_options"]}
        names = [app["name"] for app in wanted["applications"]]
        self.apps = {name: app for name, app in self.apps.items() if name in names}
        for app in wanted["applications"]:
            old = self.apps.get(app["name"], {})
            if old.get("config") != app:
                same = old and {**old["config"], "deployments": 0} == {**app, "deployments": 0}
                self.apps[app["name"]] = {"config": app, "status": "DEPLOYING", "age": 0, "leaving": {}}
                self.staff(self.apps[app["name"]], old["actors"] if same else {})

    def staff(self, app: Json, before: dict[str, list[str]]) -> None:
        """Give an application its replicas: those that it had, more or fewer."""
        said = {
            one["name"]: one["num_replicas"]
            for one in app["config"].get("deployments", [])
            if "num_replicas" in one
        }
        app["actors"] = {}
        if "llm_config" in app["config"]["args"]:
            # Elastic engines: a deployment each, and the ingress that knows who does what.
            count = app["config"]["args"]["llm_config"]["deployment_config"]["num_replicas"]
            for name in [*(f"Engine{number}:m" for number in range(count)), "ElasticIngress"]:
                app["actors"][name] = before.get(name) or [f"actor-{next(self.numbers)}"]
            return
        for key, name in NAMES.items():
            one = app["config"]["args"].get(key)
            if one is None:
                continue
            one = one[0] if isinstance(one, list) else one
            count = said.get(name, one["deployment_config"]["num_replicas"])
            had = before.get(name, [])
            fresh = [f"actor-{next(self.numbers)}" for _ in range(count - len(had))]
            app["actors"][name] = had[:count] + fresh
            app["leaving"][name] = had[count:]

    def handle(self, method: str, path: str, body: Any) -> Any:
        if path.startswith("/api/v0/logs"):
            return "INFO ok\nValueError: no such layout\n"
        if path.startswith("/api/v0/nodes"):
            return {"data": {"result": {"result": self.nodes}}}
        assert path == "/api/serve/applications/"
        self.calls.append(method)
        if method == "PUT":
            self.put(body)
        elif method == "DELETE":
            if self.http is not None:
                self.ending = 3
        else:
            return self.get()
        return None


class Params:
    """As much of an AnsibleModule as ``settle`` uses."""

    def __init__(self, check_mode: bool, **params: Any) -> None:
        self.check_mode = check_mode
        self.params = params
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


@contextmanager
def running(serve: Serve, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Serve, str]]:
    """A Serve behind a real socket, and its URL. Sleeping costs nothing but is counted by the clock."""
    slept = [0.0]
    (folder / "token").write_text("5ec7e7")

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Keep quiet."""

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            answer = serve.handle(self.command, self.path, json.loads(body) if body else None)
            text = answer if isinstance(answer, str) else "" if answer is None else json.dumps(answer)
            self.send_response(200)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        do_GET = do_PUT = do_DELETE = answer  # names that http.server asks for

    def sleep(seconds: float) -> None:
        slept[0] += seconds

    clock = time.monotonic
    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(time, "monotonic", lambda: clock() + slept[0])
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield serve, f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()
