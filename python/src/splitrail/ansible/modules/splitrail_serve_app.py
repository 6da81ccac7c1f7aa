#!/usr/bin/python
"""Bring the Ray Serve application to a config: checked first, waited for, rolled back when it fails."""

from __future__ import annotations

import json
import time
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.splitrail_ray import Head, RayError
from ansible.module_utils.splitrail_serve import (
    API,
    Config,
    DeployError,
    Json,
    by_name,
    covers,
    declared,
    deploy,
    failed,
    in_slot,
    keep,
    lacking,
    listen,
    ratio,
    read,
    refuse_strangers,
    refuse_to_move,
    remove,
    running_config,
    slot_of,
    statuses,
    validate,
    wait,
)

DOCUMENTATION = r"""
module: splitrail_serve_app
short_description: Bring the Ray Serve application to a config
description:
  - Compares the config with what runs; where they differ, checks it by C(validate), deploys it over Serve's
    REST interface and waits until it runs.
  - When it does not come to run, says why, and brings back the last good config, which C(last_good) holds.
  - Serve knows one config for the whole cluster, so applications that are not in the config would be deleted.
    Where one runs that neither C(config), C(last_good) nor C(names) has, nothing is changed.
  - C(config) has one application, written for slot a; it is deployed in the slot that is live now. A ratio
    that was chosen while it ran (M(splitrail_serve_slots)) stays where nothing else changes, with a warning.
  - What ran before is kept beside C(last_good) as C(previous.yaml).
  - Exact in check mode; shows the difference in diff mode.
options:
  state: {description: "C(deployed), C(absent), or C(compared), which only tells the difference.", type: str,
          choices: [deployed, absent, compared], default: deployed}
  url: {description: Ray's dashboard on the head., type: str, required: true}
  token_path: {description: File with Ray's token., type: path, required: true}
  config: {description: The whole Serve config; needed but for C(absent)., type: dict}
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
difference: {description: "What runs and what is declared for the live slot, as JSON.", type: dict,
             returned: for compared}
rolled_back: {description: Whether the last good config runs again., type: bool, returned: failure}
"""


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
        last_good.with_name("previous.yaml").unlink(missing_ok=True)
    return {"changed": present, "applications": {}}


def aim(config: Config, last_good: Config | None) -> tuple[Config, str]:
    """The config as it is to run: in the live slot, with the ratio that was chosen while it ran.

    A ratio that was chosen while it ran stays where nothing else changes; the text says what becomes of it,
    and is empty where there is none. Raises DeployError for a change while a canary runs.
    """
    if not last_good or not last_good["applications"]:
        return config, ""
    live, *canary = last_good["applications"]
    app = in_slot(config["applications"][0], slot_of(live))
    same = declared(live) == declared(app)
    if canary and same:
        return {**config, "applications": last_good["applications"]}, ""
    if canary:
        raise DeployError(
            f"{canary[0]['name']} runs as a canary beside {live['name']}, so nothing was deployed; decide "
            "first: `splitrail canary promote` or `splitrail canary abort`"
        )
    if live.get("deployments") is None or ratio(live) == ratio(app):
        return {**config, "applications": [live if same else app]}, ""
    chosen, topology = (
        ", ".join(f"{count} {pool}" for pool, count in ratio(one).items()) for one in (live, app)
    )
    if same:
        return {**config, "applications": [live]}, (
            f"{live['name']} keeps the ratio that was chosen while it ran ({chosen}); its topology says "
            f"{topology}, and `splitrail rebalance` goes back to that"
        )
    return {**config, "applications": [app]}, (
        f"{live['name']} goes back to the ratio of its topology ({topology}), from the one that was chosen "
        f"while it ran ({chosen}): more than the ratio changes"
    )


def compare(actual: Config, config: Config, last_good: Config | None) -> Json:
    """What runs and what is declared, as texts whose lines can be compared.

    Declared is the live application alone: a canary and a ratio that was chosen while it ran are differences.
    """
    live = (last_good or {}).get("applications", [])[:1]
    wanted = in_slot(config["applications"][0], slot_of(live[0])) if live else config["applications"][0]
    texts = [
        json.dumps({**listen(one), "applications": by_name(one)}, indent=2, sort_keys=True) + "\n"
        for one in (actual, {**config, "applications": [wanted]})
    ]
    return {"runs": texts[0], "declared": texts[1]}


def settle(module: AnsibleModule, head: Head) -> Json:
    """Do what the module was asked for, and return what it reports."""
    wanted = module.params
    path, timeout_s = Path(wanted["last_good"]), wanted["timeout_s"]
    answer = head.request("GET", API)
    if wanted["state"] == "absent":
        return take_away(module, head, answer, path)

    actual, last_good = running_config(answer), read(path)
    if wanted["state"] == "compared":
        return {"changed": False, "difference": compare(actual, wanted["config"], last_good)}
    config, kept_ratio = aim(wanted["config"], last_good)
    if kept_ratio:
        module.warn(kept_ratio)
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
    if last_good and last_good != config:
        keep(path.with_name("previous.yaml"), last_good)
    keep(path, config)
    return {**changed, "applications": statuses(answer)}


def main() -> None:
    """Entry point of the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["deployed", "absent", "compared"], "default": "deployed"},
            "url": {"type": "str", "required": True},
            "token_path": {"type": "path", "required": True, "no_log": False},
            "config": {"type": "dict"},
            "last_good": {"type": "path", "required": True},
            "names": {"type": "list", "elements": "str", "default": []},
            "validate": {"type": "list", "elements": "str", "default": []},
            "timeout_s": {"type": "int", "default": 1800},
        },
        required_if=[("state", "deployed", ["config"]), ("state", "compared", ["config"])],
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
