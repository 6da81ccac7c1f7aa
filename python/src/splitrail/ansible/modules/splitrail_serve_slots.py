#!/usr/bin/python
"""Change what is served without interrupting it: a canary beside what is live, a way back, the ratio."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.splitrail_ray import Head, RayError
from ansible.module_utils.splitrail_serve import (
    API,
    DEPLOYMENTS,
    ELASTIC_INGRESS,
    PATIENCE_S,
    Config,
    DeployError,
    Json,
    engines,
    in_slot,
    keep,
    lacking,
    other_slot,
    ranks,
    ratio,
    read,
    refuse_strangers,
    slot_of,
    validate,
    wait,
)

DOCUMENTATION = r"""
module: splitrail_serve_slots
short_description: Change what Ray Serve serves without interrupting it
description:
  - Works on the application that M(splitrail_serve_app) deployed, which is live in one of two slots. Serve
    leaves an application alone whose config does not change, so all of this leaves the live one running.
  - C(described) tells what runs in which slot, and changes nothing.
  - C(canary) deploys C(config) in the other slot, beside the live application.
  - C(promoted) takes the live application away and makes the canary the live one; C(aborted) takes the
    canary away. Send the requests to the one that stays first.
  - C(previous) deploys what ran before the last change, as a canary where there is room for both, else in
    place.
  - C(scaled) changes how many engines each pool has. Engines that stay are not touched, those that go drain
    first. Of elastic engines it changes which do what, from the next request on; none is touched.
  - What does not come to run is taken back. Exact in check mode.
options:
  action: {description: What to do., type: str, required: true,
           choices: [described, canary, promoted, aborted, previous, scaled]}
  url: {description: Ray's dashboard on the head., type: str, required: true}
  token_path: {description: File with Ray's token., type: path, required: true}
  config: {description: "For C(canary), a Serve config of one application, written for slot a.", type: dict}
  ratio: {description: "For C(scaled), engines by pool, such as C({prefill: 1, decode: 2}); for elastic
          engines that, or C({aggregated: 3}), and all of them.", type: dict}
  last_good: {description: File that holds the last config that ran., type: path, required: true}
  validate: {description: As for M(splitrail_serve_app)., type: list, elements: str, default: []}
  timeout_s: {description: Longest wait in seconds until what was asked for runs., type: int, default: 1800}
author: The splitrail authors
"""

EXAMPLES = r"""
- splitrail_serve_slots:
    action: scaled
    ratio: {prefill: 1, decode: 2}
    url: http://10.0.0.11:8265
    token_path: /etc/ray/token
    last_good: /etc/splitrail/serve/current.yaml
"""

RETURN = r"""
live: {description: "Name, slot and ratio of the live application.", type: dict, returned: success}
canary: {description: The same of the canary; null without one., type: dict, returned: success}
previous: {description: Whether there is a config to go back to., type: bool, returned: success}
since: {description: "When the config was last changed, in seconds since the epoch.", type: float,
        returned: success}
beside: {description: Whether the previous config runs as a canary., type: bool, returned: for previous}
actors: {description: "Replicas' actor ids before and after, by deployment.", type: dict,
         returned: for scaled}
in_effect_s: {description: Seconds from sending a config until it ran., type: float, returned: changed}
seconds: {description: How long it took., type: float, returned: always}
"""


class Slots:
    """What runs in which slot, by the files on the head, and the ways to change it."""

    def __init__(self, module: AnsibleModule, head: Head) -> None:
        self.params = module.params
        self.check_mode: bool = module.check_mode
        self.head = head
        self.current = Path(module.params["last_good"])
        self.former = self.current.with_name("previous.yaml")
        config = read(self.current)
        if config is None or not config["applications"]:
            raise DeployError(f"{self.current}: nothing is served yet; run `splitrail serve` first")
        self.config: Config = config
        self.live: Json = config["applications"][0]
        self.beside: Json | None = next(iter(config["applications"][1:]), None)

    def describe(self) -> Json:
        """What every action returns."""

        def line(app: Json) -> Json:
            return {"name": app["name"], "slot": slot_of(app), "ratio": ratio(app)}

        return {
            "live": line(self.live),
            "canary": line(self.beside) if self.beside else None,
            "previous": read(self.former) is not None,
            "since": self.current.stat().st_mtime,
        }

    def with_applications(self, *apps: Json) -> Config:
        """The config that runs, with these applications in place of its own."""
        return {**self.config, "applications": list(apps)}

    def canary(self) -> Json:
        """Deploy the wanted config in the other slot."""
        app = in_slot(self.params["config"]["applications"][0], other_slot(slot_of(self.live)))
        if self.beside == app:
            if not self.check_mode:
                wait(self.head, self.config, self.params["timeout_s"])
            return {"changed": False}
        self.refuse_a_second("a canary")
        both = self.with_applications(self.live, app)
        if self.params["validate"]:
            validate(self.params["validate"], self.with_applications(app))
        short = lacking(both, self.head.nodes())
        if short:
            raise DeployError(
                "nothing was deployed: there is no room for both: "
                + "; ".join(short)
                + ". Lower the replicas of "
                "one of them, or deploy in its place: `splitrail serve`."
            )
        return self.bring(both)

    def previous(self) -> Json:
        """Deploy the config before, beside the live application where there is room."""
        self.refuse_a_second("the config before")
        former = read(self.former)
        if former is None:
            raise DeployError(f"{self.former}: there is no config before the one that runs")
        app, slot = former["applications"][0], slot_of(self.live)
        both = self.with_applications(self.live, in_slot(app, other_slot(slot)))
        if not lacking(both, self.head.nodes()):
            return {**self.bring(both), "beside": True}
        alone = self.with_applications(in_slot(app, slot))
        before = self.config
        done = self.bring(alone)
        if not self.check_mode:
            keep(self.former, before)
        return {**done, "beside": False}

    def promote(self) -> Json:
        """Take the live application away."""
        before = self.with_applications(self.live)
        done = self.bring(self.with_applications(self.needed_canary()))
        if not self.check_mode:
            keep(self.former, before)
        return done

    def abort(self) -> Json:
        """Take the canary away."""
        self.needed_canary()
        return self.bring(self.with_applications(self.live))

    def scale(self) -> Json:
        """Change the number of engines of each pool."""
        self.refuse_a_second("another ratio")
        wanted, have = self.params["ratio"], ratio(self.live)
        if [pool for pool, _ in engines(self.live)] == ["elastic"]:
            return self.change_roles(wanted)
        if set(wanted) != set(have) or any(type(count) is not int or count < 1 for count in wanted.values()):
            raise DeployError(
                f"{self.live['name']} has the pools {', '.join(have)}, and each needs one engine or more: "
                f"{json.dumps(wanted)} cannot be its ratio"
            )
        if wanted == have:
            return {"changed": False}
        before = self.actors()
        named = {pool: next((n for n in before if n.startswith(DEPLOYMENTS[pool])), "") for pool in wanted}
        if not all(named.values()):
            raise DeployError(
                f"{self.live['name']} runs {', '.join(before)}, which are not its pools' engines"
            )
        app = {
            **self.live,
            "deployments": [
                {"name": named[pool], "num_replicas": wanted[pool] * ranks(one)}
                for pool, one in engines(self.live)
            ],
        }
        config = self.with_applications(app)
        short = lacking(config, self.head.nodes())
        if short:
            raise DeployError("the ratio was not changed: " + "; ".join(short))
        done = self.bring(config)
        return {**done, "actors": {"before": before, "after": before if self.check_mode else self.actors()}}

    def change_roles(self, wanted: Json) -> Json:
        """Change which elastic engines do what: the ``user_config`` that Serve hands to the ingress."""
        ((_, one),) = engines(self.live)
        count = one["deployment_config"]["num_replicas"]
        pools = set(wanted) in ({"prefill", "decode"}, {"aggregated"})
        if not pools or any(type(n) is not int or n < 1 for n in wanted.values()):
            raise DeployError(
                f"{self.live['name']} has elastic engines: {json.dumps(wanted)} cannot be their ratio; write "
                "prefill and decode, one or more of each, or aggregated"
            )
        said = {d["name"]: d["user_config"] for d in self.live.get("deployments", [])}.get(
            ELASTIC_INGRESS, {}
        )
        spare = count - sum(wanted.values())
        if spare < 0 or (spare and "spare" not in said):
            raise DeployError(
                f"{self.live['name']} has {count} elastic engines and {json.dumps(wanted)} speaks of "
                f"{sum(wanted.values())}: "
                + (
                    "write no more than there are"
                    if "spare" in said
                    else "each needs a role, so the sum must be the same"
                )
            )
        roles = {role: wanted.get(role, 0) for role in ("prefill", "decode")}
        # Where the topology keeps engines back, those that the ratio leaves over are spare.
        roles |= {"spare": spare} if "spare" in said else {}
        if {**said, **roles} == said:
            return {"changed": False}
        before = self.actors()
        override = {"name": ELASTIC_INGRESS, "user_config": {**said, **roles}}
        done = self.bring(self.with_applications({**self.live, "deployments": [override]}), pace_s=0.05)
        return {**done, "actors": {"before": before, "after": before if self.check_mode else self.actors()}}

    def actors(self) -> Json:
        """Actor ids of the live application's replicas, by deployment."""
        answer = self.head.request("GET", API)
        deployments = answer["applications"].get(self.live["name"], {}).get("deployments", {})
        return {
            name: sorted(str(replica["actor_id"]) for replica in one["replicas"])
            for name, one in deployments.items()
        }

    def bring(self, config: Config, *, pace_s: float = 1.0) -> Json:
        """Send a config and wait until it runs; what ran before is sent again when it does not."""
        before, after = (json.dumps(one, indent=2) + "\n" for one in (self.config, config))
        changed = {"changed": True, "diff": {"before": before, "after": after}}
        known = {app["name"] for one in (self.config, config) for app in one["applications"]}
        refuse_strangers(self.head.request("GET", API), known)
        if self.check_mode:
            return changed
        began = time.monotonic()
        try:
            self.send(config, pace_s)
        except (DeployError, RayError) as error:
            words = "What ran before runs on."
            try:
                self.send(self.config)
            except (DeployError, RayError) as worse:
                words = f"What ran before did not come back either: {worse}"
            raise DeployError(f"{error}\n{words}") from error
        changed["in_effect_s"] = round(time.monotonic() - began, 3)
        keep(self.current, config)
        self.config, self.live = config, config["applications"][0]
        self.beside = next(iter(config["applications"][1:]), None)
        return changed

    def send(self, config: Config, pace_s: float = 1.0) -> None:
        self.head.request("PUT", API, config, timeout_s=PATIENCE_S)
        wait(self.head, config, self.params["timeout_s"], pace_s=pace_s)

    def needed_canary(self) -> Json:
        if self.beside is None:
            raise DeployError(
                f"no canary runs beside {self.live['name']}; `splitrail canary start` starts one"
            )
        return self.beside

    def refuse_a_second(self, what: str) -> None:
        if self.beside is not None:
            raise DeployError(
                f"{self.beside['name']} runs as a canary beside {self.live['name']}, so {what} has to wait; "
                "decide first: `splitrail canary promote` or `splitrail canary abort`"
            )


def settle(module: AnsibleModule, head: Head) -> Json:
    """Do what the module was asked for, and return what it reports."""
    slots = Slots(module, head)
    actions: dict[str, Callable[[], Json]] = {
        "described": lambda: {"changed": False},
        "canary": slots.canary,
        "promoted": slots.promote,
        "aborted": slots.abort,
        "previous": slots.previous,
        "scaled": slots.scale,
    }
    done = actions[module.params["action"]]()
    return {**slots.describe(), **done}


def main() -> None:
    """Entry point of the module."""
    choices = ["described", "canary", "promoted", "aborted", "previous", "scaled"]
    module = AnsibleModule(
        argument_spec={
            "action": {"type": "str", "required": True, "choices": choices},
            "url": {"type": "str", "required": True},
            "token_path": {"type": "path", "required": True, "no_log": False},
            "config": {"type": "dict"},
            "ratio": {"type": "dict"},
            "last_good": {"type": "path", "required": True},
            "validate": {"type": "list", "elements": "str", "default": []},
            "timeout_s": {"type": "int", "default": 1800},
        },
        required_if=[("action", "canary", ["config"]), ("action", "scaled", ["ratio"])],
        supports_check_mode=True,
    )
    started = time.monotonic()
    try:
        result = settle(module, Head(module.params["url"], module.params["token_path"]))
    except (DeployError, RayError, OSError) as error:
        module.fail_json(msg=str(error), seconds=round(time.monotonic() - started, 1))
    module.exit_json(**result, seconds=round(time.monotonic() - started, 1))


if __name__ == "__main__":
    main()
