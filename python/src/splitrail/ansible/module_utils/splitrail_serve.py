"""What the modules that deploy through Ray Serve share: configs, slots, and sending a config until it runs.

An application has two **slots**, a and b: places with a name, a route and side-channel ports of their own, so
that a new version can run beside the old one. ``current.yaml`` on the head is the config that was last seen
running; its first application is the live one, a second one is its canary.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ansible.module_utils.splitrail_ray import Head, RayError, RayRefused, RayUnreachable

API = "/api/serve/applications/"
# A replica that cannot start says so after some retries; the app is then one of these and stays so.
DEAD = {"DEPLOY_FAILED"}
# Serve answers a first deploy when its proxies are up (it gives them 60 s), and a removal when it has ended.
PATIENCE_S = 150.0

# The names of Serve's deployments of engines begin with these; the model's name follows.
DEPLOYMENTS = {"prefill": "Prefill:", "decode": "Decode:", "aggregated": "LLMServer:", "elastic": "Engine"}
# Of elastic engines the ingress knows who does what, from its user_config.
ELASTIC_INGRESS = "ElasticIngress"
SLOTS = ("a", "b")
# Between the two slots' first ports of NIXL's side channels. Prefill's begin at 20000, decode's at 22000.
PORTS_APART = 4000
SIDE_CHANNEL = "NIXL_SIDE_CHANNEL_PORT_BASE"

Config = dict[str, Any]
Json = dict[str, Any]


class DeployError(Exception):
    """The application did not come to run; ``str()`` holds every reason that Serve gives."""


def running_config(answer: Json) -> Config:
    """The config that Serve runs now, in the shape in which it was sent.

    Serve keeps an application's config as it was sent, but of its own options all, defaults included.
    """
    applications = [app.get("deployed_app_config") for app in answer.get("applications", {}).values()]
    http = answer.get("http_options") or {}
    return {
        "proxy_location": answer.get("proxy_location"),
        "http_options": {key: http.get(key) for key in ("host", "port")},
        "applications": [app for app in applications if app],
    }


def covers(actual: Config, wanted: Config) -> bool:
    """Whether what runs is what is wanted: the same applications, and the Serve options that are named.

    Applications must be equal, not only contain what is wanted: an argument that was taken out of the config
    still runs until it is deployed without it.
    """
    return listen(actual) == listen(wanted) and by_name(actual) == by_name(wanted)


def listen(config: Config) -> Json:
    """Where Serve's proxies run and listen. Serve reads it when it starts, and never again."""
    http = config.get("http_options") or {}
    return {
        "proxy_location": config.get("proxy_location"),
        **{f"http_options.{key}": http.get(key) for key in ("host", "port")},
    }


def by_name(config: Config) -> dict[str, Json]:
    """The applications of a config by their name; Serve does not keep their order."""
    return {app["name"]: app for app in config["applications"]}


def failed(answer: Json) -> bool:
    """Whether an application of an answer has failed for good."""
    return any(app["status"] in DEAD for app in answer["applications"].values())


def refuse_strangers(answer: Json, ours: set[str]) -> None:
    """Raise DeployError when applications run that someone else has deployed."""
    strangers = sorted(set(answer["applications"]) - ours)
    if strangers:
        raise DeployError(
            f"the cluster also runs {', '.join(strangers)}, which this inventory does not declare and which "
            "this would delete; nothing was changed. Take them away by what deployed them, or serve from a "
            "cluster of their own."
        )


def refuse_to_move(answer: Json, wanted: Config) -> None:
    """Raise DeployError when an application would have to be interrupted for Serve to listen elsewhere."""
    before, after = listen(running_config(answer)), listen(wanted)
    moved = [f"{key} from {before[key]} to {after[key]}" for key in after if after[key] != before[key]]
    if moved and answer["applications"] and not failed(answer):
        raise DeployError(
            f"Serve cannot change {', '.join(moved)} while it runs; nothing was changed. Take the "
            "application away (playbooks/down.yml), then bring cluster and application up again."
        )


def statuses(answer: Json) -> Json:
    """Status and message of each application and deployment."""
    return {
        name: {
            "status": app["status"],
            "message": app["message"],
            "deployments": {
                one: {"status": deployment["status"], "message": deployment["message"]}
                for one, deployment in app["deployments"].items()
            },
        }
        for name, app in answer.get("applications", {}).items()
    }


def lacking(config: Config, nodes: list[Json]) -> list[str]:
    """Resources that the engines of a config reserve and the cluster's live nodes do not have.

    Looks at the sum, and whether each bundle fits on a node. An application that waits for such a resource
    would wait for ever.
    """
    offers = [node.get("resources_total", {}) for node in nodes]
    wanted: Counter[str] = Counter()
    found = []
    for app in config["applications"]:
        for pool, one in engines(app):
            for bundle in one["placement_group_config"]["bundles"]:
                for name, amount in bundle.items():
                    wanted[name] += amount * replicas(app, pool, one)
                if not any(all(offer.get(name, 0) >= bundle[name] for name in bundle) for offer in offers):
                    found.append(
                        f"an engine worker reserves {json.dumps(bundle)}, which no live node offers alone"
                    )
    for name, amount in sorted(wanted.items()):
        offered = sum(offer.get(name, 0) for offer in offers)
        if round(amount - offered, 4) > 0:  # Ray counts in steps of 0.0001
            found.append(
                f"the engines reserve {amount:g} {name}, the {len(nodes)} live nodes offer {offered:g}"
            )
    return list(dict.fromkeys(found))


def engines(app: Json) -> list[tuple[str, Json]]:
    """Pool and LLMConfig of each kind of engine in an application."""
    arguments = app["args"]
    found = [
        (pool, arguments[f"{pool}_config"]) for pool in ("prefill", "decode") if f"{pool}_config" in arguments
    ]
    found += [("elastic", arguments["llm_config"])] if "llm_config" in arguments else []
    return found + [("aggregated", one) for one in arguments.get("llm_configs", [])]


def replicas(app: Json, pool: str, one: Json) -> int:
    """Serve's replicas of a pool: those of the override, where the ratio was changed, or of the LLMConfig.

    An engine is a replica, or with data parallelism one for each rank.
    """
    for override in app.get("deployments", []):
        if override["name"].startswith(DEPLOYMENTS[pool]):
            return int(override["num_replicas"])
    return int(one["deployment_config"]["num_replicas"]) * ranks(one)


def ranks(one: Json) -> int:
    """Serve's replicas of one engine: Ray starts one for each data-parallel rank."""
    return int(one.get("engine_kwargs", {}).get("data_parallel_size", 1))


def ratio(app: Json) -> dict[str, int]:
    """Engines of each pool; of elastic engines, of each role, and none of both where all do both."""
    for override in app.get("deployments", []):
        if override["name"] == ELASTIC_INGRESS:
            return {role: int(override["user_config"].get(role, 0)) for role in ("prefill", "decode")}
    return {pool: replicas(app, pool, one) // ranks(one) for pool, one in engines(app)}


def slot_of(app: Json) -> str:
    """The slot that an application is in: its route is named after it."""
    return str(app["route_prefix"]).strip("/")


def other_slot(slot: str) -> str:
    """The slot beside a slot."""
    return SLOTS[1 - SLOTS.index(slot)]


def in_slot(app: Json, slot: str) -> Json:
    """An application as it is in a slot: with that slot's name, route and ports of NIXL's side channels.

    The engines of both slots may run on one node, where each needs a port of its own.
    """
    moved = copy.deepcopy(app)
    ports_apart = PORTS_APART * (SLOTS.index(slot) - SLOTS.index(slot_of(app)))
    moved["name"] = f"{app['name'][:-1]}{slot}"
    moved["route_prefix"] = f"/{slot}"
    for _, one in engines(moved):
        settings = one.get("experimental_configs", {})
        if SIDE_CHANNEL in settings:
            settings[SIDE_CHANNEL] += ports_apart
    return moved


def declared(app: Json) -> Json:
    """An application as its topology declares it: without a ratio that was chosen while it ran."""
    return {key: value for key, value in app.items() if key != "deployments"}


def validate(command: list[str], config: Config) -> None:
    """Check a config by an outside command. Raises DeployError with every fault."""
    try:
        done = subprocess.run(
            command, input=json.dumps(config), capture_output=True, text=True, timeout=600, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DeployError(f"nothing was deployed: the config could not be checked: {error}") from error
    try:
        report = json.loads(done.stdout.strip().splitlines()[-1])
        good, faults = report["ok"] is True, "; ".join(report["faults"])
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise DeployError(
            f"nothing was deployed: the config could not be checked: {command[0]} ended with "
            f"{done.returncode}: {done.stderr.strip()[-800:]}"
        ) from error
    if done.returncode not in (0, 1):
        raise DeployError(f"nothing was deployed: {faults}")
    if not good or done.returncode:
        raise DeployError(f"the config is wrong, so nothing was deployed; correct the topology: {faults}")


def reasons(head: Head, answer: Json) -> str:
    """Why an answer's applications do not run: Serve's messages and the last error lines of dead replicas."""
    found: list[str] = []
    for node, proxy in (answer.get("proxies") or {}).items():
        if proxy["status"] != "HEALTHY":
            found.append(
                f"the HTTP proxy on {proxy.get('node_ip', node)} is {proxy['status']}: is its port free?"
            )
    for name, app in answer.get("applications", {}).items():
        if app["status"] == "RUNNING":
            continue
        found.append(f"application {name} is {app['status']}: {app['message'].strip()[-1500:]}")
        for one, deployment in app["deployments"].items():
            if deployment["status"] == "HEALTHY":
                continue
            found.append(f"{one} is {deployment['status']}: {deployment['message'].strip()[-1500:]}")
            for replica in (deployment["replicas"] + deployment.get("recent_dead_replicas", []))[-2:]:
                found += log_errors(head, replica)
    return "\n".join(found) or "Serve reports no application"


def log_errors(head: Head, replica: Json) -> list[str]:
    """The last lines of a replica's log that speak of an error; empty when the log cannot be had."""
    node, path = replica.get("node_id"), replica.get("log_file_path")
    if not node or not path:
        return []
    query = f"/api/v0/logs/file?node_id={node}&filename={quote(path.lstrip('/'))}&lines=200&format=text"
    try:
        text = head.text(query)
    except RayError:
        return []  # the node may be the very thing that died
    lines = [line.strip() for line in text.splitlines() if "Error" in line or "error:" in line]
    return [f"  {replica.get('node_ip')}: {line[:400]}" for line in lines[-3:]]


def wait(head: Head, config: Config, timeout_s: float, *, pace_s: float = 1.0) -> Json:
    """Wait until every application of a config runs, and return Serve's answer. Raises DeployError.

    ``pace_s``: between two questions to Serve, which itself looks about once a second at what has to start.
    """
    deadline = time.monotonic() + timeout_s
    answer: Json = {}
    while True:
        try:
            answer, problem = head.request("GET", API), ""
        except RayRefused:
            raise
        except RayError as error:
            problem = str(error)
        else:
            if runs(answer, config):
                return answer
            if failed(answer):
                raise DeployError(reasons(head, answer))
        if time.monotonic() > deadline:
            raise DeployError(f"not running after {timeout_s:g} s. {problem or reasons(head, answer)}")
        time.sleep(pace_s)


def runs(answer: Json, config: Config) -> bool:
    """Whether all applications of a config, and no others, run behind proxies that take requests."""
    states = {name: app["status"] for name, app in answer["applications"].items()}
    proxies = [proxy["status"] for proxy in (answer.get("proxies") or {}).values()]
    return (
        states == dict.fromkeys(by_name(config), "RUNNING")
        and all(settled(answer["applications"][app["name"]], app) for app in config["applications"])
        and "HEALTHY" in proxies
        and not {"STARTING", "UNHEALTHY"} & set(proxies)
    )


def settled(details: Json, app: Json) -> bool:
    """Whether an application has the replicas that a changed ratio wants, and none that still drains."""
    return all(
        [replica["state"] for replica in details["deployments"][one["name"]]["replicas"]]
        == ["RUNNING"] * one["num_replicas"]
        for one in app.get("deployments", [])
        if "num_replicas" in one
    )


def deploy(head: Head, config: Config, timeout_s: float) -> Json:
    """Send a config and wait until it runs.

    Serve ignores a config that equals the one whose deploy failed, and where to listen once it runs; so Serve
    is ended first where an application has failed or it listens elsewhere.
    """
    before = head.request("GET", API)
    elsewhere = listen(running_config(before)) != listen(config)
    if failed(before) or (before.get("controller_info") and elsewhere):
        remove(head, timeout_s)
    head.request("PUT", API, config, timeout_s=PATIENCE_S)
    return wait(head, config, timeout_s)


def remove(head: Head, timeout_s: float) -> None:
    """End Serve with every application, and wait until it is gone.

    A config that is sent while Serve still ends would be dropped without a word.
    """
    deadline = time.monotonic() + timeout_s
    try:
        head.request("DELETE", API, timeout_s=PATIENCE_S)
    except RayRefused:
        raise
    except RayUnreachable:
        pass  # engines may take longer to end than Serve takes to answer; what counts is looked at below
    while True:
        answer = head.request("GET", API)
        if not answer["applications"] and not answer.get("controller_info"):
            return
        if time.monotonic() > deadline:
            raise DeployError(f"Serve and its applications were not gone after {timeout_s:g} s")
        time.sleep(1)  # as in wait


def keep(path: Path, config: Config) -> None:
    """Write the last good config; whole or not at all, and for root alone: it may name secrets."""
    fresh = path.with_name(f".{path.name}.new")
    try:
        fresh.unlink(missing_ok=True)
        handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(config, file, indent=2)  # JSON is YAML
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except OSError as error:
        raise DeployError(
            f"the application runs, but {path} could not be written ({error.strerror}), so it would not come "
            "back with Ray's head; make room and run this again"
        ) from error
    finally:
        fresh.unlink(missing_ok=True)


def read(path: Path) -> Config | None:
    """The last good config, or None when there is none that can be read."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        by_name(config)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return dict(config)
