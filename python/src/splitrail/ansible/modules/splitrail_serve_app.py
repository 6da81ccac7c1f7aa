#!/usr/bin/python
"""Bring the Ray Serve application to a config: checked first, waited for, rolled back when it fails."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.splitrail_ray import Head, RayError, RayRefused, RayUnreachable

DOCUMENTATION = r"""
module: splitrail_serve_app
short_description: Bring the Ray Serve application to a config
description:
  - Compares the config with what runs; where they differ, checks it by C(validate), deploys it over Serve's
    REST interface and waits until it runs.
  - When it does not come to run, says why, and brings back the last good config, which C(last_good) holds.
  - Serve knows one config for the whole cluster, so applications that are not in the config would be deleted.
    Where one runs that neither C(config), C(last_good) nor C(names) has, nothing is changed.
  - Exact in check mode; shows the difference in diff mode.
options:
  state: {description: C(deployed) or C(absent)., type: str, choices: [deployed, absent], default: deployed}
  url: {description: Ray's dashboard on the head., type: str, required: true}
  token_path: {description: File with Ray's token., type: path, required: true}
  config: {description: The whole Serve config; needed for C(deployed)., type: dict}
  last_good: {description: File that holds the last config that ran., type: path, required: true}
  names: {description: "For C(absent), the applications to take away.", type: list, elements: str,
          default: []}
  validate: {description: Command that checks a config it reads from standard input and prints
             C({"ok" bool, "faults" list})., type: list, elements: str, default: []}
  timeout_s: {description: Longest wait in seconds until the application runs., type: int, default: 1800}
author: The splitrail authors
"""

EXAMPLES = r"""
- splitrail_serve_app:
    url: http://10.0.0.11:8265
    token_path: /etc/ray/token
    config: "{{ lookup('ansible.builtin.template', 'app.yaml.j2') | from_yaml }}"
    last_good: /etc/splitrail/serve/current.yaml
"""

RETURN = r"""
seconds: {description: How long the deploy took., type: float, returned: always}
applications: {description: Status of each application and of its deployments., type: dict, returned: success}
rolled_back: {description: Whether the last good config runs again., type: bool, returned: failure}
"""

API = "/api/serve/applications/"
# A replica that cannot start says so after some retries; the app is then one of these and stays so.
DEAD = {"DEPLOY_FAILED"}
# Serve answers a first deploy when its proxies are up (it gives them 60 s), and a removal when it has ended.
PATIENCE_S = 150.0

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
    for one in llm_configs(config):
        # Ray starts a replica for each data-parallel rank, num_replicas times.
        ranks = one.get("engine_kwargs", {}).get("data_parallel_size", 1)
        for bundle in one["placement_group_config"]["bundles"]:
            for name, amount in bundle.items():
                wanted[name] += amount * one["deployment_config"]["num_replicas"] * ranks
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


def llm_configs(config: Config) -> list[Json]:
    """The LLMConfig of each kind of engine in a config."""
    found: list[Json] = []
    for app in config["applications"]:
        arguments = app["args"]
        found += [arguments[key] for key in ("prefill_config", "decode_config") if key in arguments]
        found += arguments.get("llm_configs", [])
    return found


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


def wait(head: Head, config: Config, timeout_s: float) -> Json:
    """Wait until every application of a config runs, and return Serve's answer. Raises DeployError."""
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
        time.sleep(1)  # between two questions to Serve, which itself looks once a second


def runs(answer: Json, config: Config) -> bool:
    """Whether all applications of a config, and no others, run behind proxies that take requests."""
    states = {name: app["status"] for name, app in answer["applications"].items()}
    proxies = [proxy["status"] for proxy in (answer.get("proxies") or {}).values()]
    return (
        states == dict.fromkeys(by_name(config), "RUNNING")
        and "HEALTHY" in proxies
        and not {"STARTING", "UNHEALTHY"} & set(proxies)
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


def go_back(head: Head, last_good: Config | None, wanted: Config, timeout_s: float) -> tuple[bool, str]:
    """After a failed deploy, run the last good config again; says whether it does, and in words."""
    try:
        if last_good is None or last_good == wanted:
            remove(head, timeout_s)
            return False, "There is no other config to go back to, so the failed application was taken away."
        deploy(head, last_good, timeout_s)
    except (DeployError, RayError) as error:
        return False, f"The last good config did not come back either: {error}"
    return True, "The last good config runs again."


def take_away(module: AnsibleModule, head: Head, answer: Json, last_good: Path) -> Json:
    """Bring the state ``absent`` about."""
    present = bool(answer["applications"]) or last_good.exists()
    kept = read(last_good)
    refuse_strangers(answer, set(module.params["names"]) | set(by_name(kept) if kept else []))
    if present and not module.check_mode:
        if answer["applications"]:
            remove(head, module.params["timeout_s"])
        last_good.unlink(missing_ok=True)
    return {"changed": present, "applications": {}}


def settle(module: AnsibleModule, head: Head) -> Json:
    """Do what the module was asked for, and return what it reports."""
    wanted = module.params
    path, timeout_s = Path(wanted["last_good"]), wanted["timeout_s"]
    answer = head.request("GET", API)
    if wanted["state"] == "absent":
        return take_away(module, head, answer, path)

    config, actual, last_good = wanted["config"], running_config(answer), read(path)
    refuse_strangers(answer, set(by_name(config)) | set(by_name(last_good) if last_good else []))
    refuse_to_move(answer, config)
    sent = covers(actual, config) and not failed(answer)
    if sent and last_good == config:
        if not module.check_mode:
            answer = wait(head, config, timeout_s)
        return {"changed": False, "applications": statuses(answer)}
    diff = {"before": json.dumps(actual, indent=2) + "\n", "after": json.dumps(config, indent=2) + "\n"}
    changed = {"changed": True, "diff": {} if sent else diff}
    if not sent:
        if wanted["validate"]:
            validate(wanted["validate"], config)
        short = lacking(config, head.nodes())
        if short:
            raise DeployError(
                "nothing was deployed: " + "; ".join(short) + ". Add nodes to the pool or lower its replicas."
            )
    if module.check_mode:
        return {**changed, "applications": statuses(answer)}
    try:
        # What an earlier run sent and did not see running is waited for, and taken back as well.
        answer = wait(head, config, timeout_s) if sent else deploy(head, config, timeout_s)
    except (DeployError, RayError) as error:
        rolled_back, words = go_back(head, last_good, config, timeout_s)
        return {"failed": True, "rolled_back": rolled_back, "msg": f"{error}\n{words}"}
    keep(path, config)
    return {**changed, "applications": statuses(answer)}


def main() -> None:
    """Entry point of the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["deployed", "absent"], "default": "deployed"},
            "url": {"type": "str", "required": True},
            "token_path": {"type": "path", "required": True, "no_log": False},
            "config": {"type": "dict"},
            "last_good": {"type": "path", "required": True},
            "names": {"type": "list", "elements": "str", "default": []},
            "validate": {"type": "list", "elements": "str", "default": []},
            "timeout_s": {"type": "int", "default": 1800},
        },
        required_if=[("state", "deployed", ["config"])],
        supports_check_mode=True,
    )
    started = time.monotonic()
    try:
        result = settle(module, Head(module.params["url"], module.params["token_path"]))
    except (DeployError, RayError, OSError) as error:
        result = {"failed": True, "rolled_back": False, "msg": str(error)}
    result["seconds"] = round(time.monotonic() - started, 1)
    if result.pop("failed", False):
        module.fail_json(**result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
