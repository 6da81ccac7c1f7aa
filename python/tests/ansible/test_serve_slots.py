"""Canary, way back and ratio against a Serve that keeps state: what runs stays, what fails is taken back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.splitrail_ray import Head
from ansible.module_utils.splitrail_serve import (
    SIDE_CHANNEL,
    DeployError,
    engines,
    in_slot,
    lacking,
    ratio,
    read,
)

from splitrail.ansible.modules import splitrail_serve_app, splitrail_serve_slots

from .fake_serve import Params, Serve, running

Json = dict[str, Any]


def llm(pool: str, replicas: int, **engine: Any) -> Json:
    """An engine's LLMConfig, as far as the modules look into it."""
    return {
        "placement_group_config": {"bundles": [{"CPU": 0.5, pool: 1}]},
        "deployment_config": {"num_replicas": replicas},
        "experimental_configs": {SIDE_CHANNEL: {"prefill": 20000, "decode": 22000}[pool]},
        "engine_kwargs": engine,
    }


def config(prefill: int = 1, decode: int = 1, name: str = "llm-a", **engine: Any) -> Json:
    """A whole Serve config as it is rendered, for slot a."""
    arguments = {
        "prefill_config": llm("prefill", prefill, **engine),
        "decode_config": llm("decode", decode, **engine),
    }
    return {
        "proxy_location": "HeadOnly",
        "http_options": {"host": "127.0.0.1", "port": 8001},
        "applications": [
            {"name": name, "route_prefix": "/a", "import_path": "ray.serve.llm:x", "args": arguments}
        ],
    }


class Bench:
    """Both modules on one head."""

    def __init__(self, serve: Serve, url: str, folder: Path) -> None:
        self.serve, self.folder = serve, folder
        self.head = Head(url, str(folder / "token"))
        self.warnings: list[str] = []
        serve.nodes = [{"resources_total": {"CPU": 4, "prefill": 2, "decode": 2}}]

    def run(self, what: str, *, check_mode: bool = False, **given: Any) -> Json:
        """Serve a config, or do one of the other things."""
        params = {"last_good": str(self.folder / "current.yaml"), "timeout_s": 5, "validate": [], "names": []}
        self.serve.calls.clear()
        key = "state" if what in ("deployed", "absent", "compared") else "action"
        module: Any = Params(check_mode, **{**params, **given, key: what})
        settle = splitrail_serve_app.settle if key == "state" else splitrail_serve_slots.settle
        done: Json = settle(module, self.head)
        self.warnings = module.warnings
        return done

    def serving(self, **given: Any) -> Json:
        return self.run("deployed", config=config(**given))

    @property
    def running(self) -> dict[str, Json]:
        return {name: app["config"] for name, app in self.serve.apps.items() if app["status"] == "RUNNING"}

    @property
    def actors(self) -> dict[str, list[str]]:
        """Actor ids of each application and pool."""
        return {f"{n} {d}": ids for n, app in self.serve.apps.items() for d, ids in app["actors"].items()}

    def kept(self, name: str = "current") -> list[str]:
        """Names of the applications of a file on the head."""
        found = read(self.folder / f"{name}.yaml")
        return [app["name"] for app in found["applications"]] if found else []

    def changes(self) -> list[str]:
        return [call for call in self.serve.calls if call != "GET"]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """A head on which nothing is served yet."""
    with running(Serve(), tmp_path, monkeypatch) as (serve, url):
        yield Bench(serve, url, tmp_path)


def test_a_slot_has_its_own_name_route_and_ports() -> None:
    app = config()["applications"][0]
    moved = in_slot(app, "b")
    assert (moved["name"], moved["route_prefix"]) == ("llm-b", "/b")
    ports = [one["experimental_configs"][SIDE_CHANNEL] for _, one in engines(moved)]
    assert ports == [24000, 26000]
    assert in_slot(moved, "a") == app
    assert in_slot(app, "a") == app
    assert app == config()["applications"][0]


def test_nothing_works_before_something_is_served(bench: Bench) -> None:
    for action in ("described", "canary", "promoted", "aborted", "previous", "scaled"):
        with pytest.raises(DeployError, match="nothing is served yet; run `splitrail serve` first"):
            bench.run(action, config=config(), ratio={"prefill": 1, "decode": 2})


def test_a_canary_runs_beside_the_live_application(bench: Bench) -> None:
    bench.serving()
    before = bench.actors
    done = bench.run("canary", config=config(max_num_seqs=8))
    assert done["changed"] is True
    assert (done["live"]["name"], done["canary"]["name"]) == ("llm-a", "llm-b")
    assert list(bench.running) == ["llm-a", "llm-b"]
    assert bench.running["llm-b"]["args"]["decode_config"]["engine_kwargs"] == {"max_num_seqs": 8}
    assert before.items() <= bench.actors.items()
    assert bench.kept() == ["llm-a", "llm-b"]
    assert bench.run("canary", config=config(max_num_seqs=8))["changed"] is False


def test_check_mode_tells_and_sends_nothing(bench: Bench) -> None:
    bench.serving()
    wanted: list[tuple[str, Json]] = [
        ("canary", {"config": config(x=1)}),
        ("scaled", {"ratio": {"prefill": 1, "decode": 2}}),
    ]
    for action, given in wanted:
        assert bench.run(action, check_mode=True, **given)["changed"] is True
        assert bench.changes() == []
    bench.run("canary", config=config(x=1))
    for action in ("promoted", "aborted"):
        assert bench.run(action, check_mode=True)["changed"] is True
        assert bench.changes() == []
    assert bench.kept() == ["llm-a", "llm-b"]


def test_a_canary_without_room_is_refused_with_what_lacks(bench: Bench) -> None:
    bench.serving(decode=2)
    with pytest.raises(DeployError, match=r"no room for both: .* reserve 3 decode, the 1 live nodes offer 2"):
        bench.run("canary", config=config())
    assert bench.changes() == []


def test_a_canary_that_does_not_come_to_run_is_taken_away(bench: Bench) -> None:
    bench.serving()
    before = bench.actors
    bench.serve.broken = lambda app: app["name"] == "llm-b"
    with pytest.raises(DeployError, match=r"(?s)llm-b is DEPLOY_FAILED.*What ran before runs on\."):
        bench.run("canary", config=config(bad=1))
    assert (list(bench.running), bench.kept(), bench.actors) == (["llm-a"], ["llm-a"], before)
    assert "DELETE" not in bench.changes()  # which would end the live application too


def test_a_config_with_faults_is_no_canary(bench: Bench) -> None:
    bench.serving()
    with pytest.raises(DeployError, match="could not be checked"):
        bench.run("canary", config=config(bad=1), validate=["/no/such/podman"])
    assert bench.changes() == []


def test_a_promoted_canary_is_the_live_application(bench: Bench) -> None:
    bench.serving()
    bench.run("canary", config=config(max_num_seqs=8))
    before = bench.actors
    done = bench.run("promoted")
    assert (done["live"]["name"], done["canary"], done["previous"]) == ("llm-b", None, True)
    assert list(bench.running) == ["llm-b"]
    assert bench.actors.items() <= before.items()
    assert (bench.kept(), bench.kept("previous")) == (["llm-b"], ["llm-a"])
    # The same config, deployed again as it is rendered, for slot a, changes nothing.
    assert bench.serving(max_num_seqs=8)["changed"] is False
    assert bench.changes() == []
    # A change in place stays in its slot; the next canary takes the other.
    bench.serving(max_num_seqs=4)
    assert list(bench.running) == ["llm-b"]
    assert bench.run("canary", config=config())["canary"]["slot"] == "a"


def test_an_aborted_canary_leaves_the_live_application(bench: Bench) -> None:
    bench.serving()
    before = bench.actors
    bench.run("canary", config=config(max_num_seqs=8))
    assert bench.run("aborted")["canary"] is None
    assert (list(bench.running), bench.actors) == (["llm-a"], before)
    assert (bench.kept(), bench.kept("previous")) == (["llm-a"], [])


@pytest.mark.parametrize("action", ["promoted", "aborted"])
def test_without_a_canary_there_is_nothing_to_decide(bench: Bench, action: str) -> None:
    bench.serving()
    with pytest.raises(DeployError, match="no canary runs beside llm-a"):
        bench.run(action)


def test_while_a_canary_runs_nothing_else_is_changed(bench: Bench) -> None:
    bench.serving()
    bench.run("canary", config=config(max_num_seqs=8))
    assert bench.serving()["changed"] is False
    refused = r"llm-b runs as a canary beside llm-a, so .* `splitrail canary promote`"
    with pytest.raises(DeployError, match=refused):
        bench.serving(max_num_seqs=4)
    more: list[tuple[str, Json]] = [
        ("canary", {"config": config(max_num_seqs=4)}),
        ("previous", {}),
        ("scaled", {"ratio": {"prefill": 1, "decode": 2}}),
    ]
    for action, given in more:
        with pytest.raises(DeployError, match=refused):
            bench.run(action, **given)
        assert bench.changes() == []


def test_the_config_before_comes_back_beside_the_live_one(bench: Bench) -> None:
    bench.serving()
    bench.serving(max_num_seqs=8)
    done = bench.run("previous")
    assert (done["beside"], done["live"]["name"], done["canary"]["name"]) == (True, "llm-a", "llm-b")
    bench.run("promoted")
    assert bench.running["llm-b"]["args"]["decode_config"]["engine_kwargs"] == {}
    # And forward again: what was left is the config before now.
    bench.run("previous")
    bench.run("promoted")
    assert bench.running["llm-a"]["args"]["decode_config"]["engine_kwargs"] == {"max_num_seqs": 8}


def test_the_config_before_comes_back_in_place_where_there_is_no_room(bench: Bench) -> None:
    bench.serving(decode=2)
    bench.serving(decode=2, max_num_seqs=8)
    done = bench.run("previous")
    assert (done["beside"], done["canary"], list(bench.running)) == (False, None, ["llm-a"])
    assert bench.running["llm-a"]["args"]["decode_config"]["engine_kwargs"] == {}
    former = read(bench.folder / "previous.yaml")
    assert former is not None
    assert former["applications"][0]["args"]["decode_config"]["engine_kwargs"] == {"max_num_seqs": 8}


def test_there_may_be_no_config_before(bench: Bench) -> None:
    bench.serving()
    with pytest.raises(DeployError, match="there is no config before the one that runs"):
        bench.run("previous")


def test_a_changed_ratio_leaves_the_engines_that_stay(bench: Bench) -> None:
    bench.serving()
    before = bench.actors
    done = bench.run("scaled", ratio={"prefill": 1, "decode": 2})
    assert done["live"]["ratio"] == {"prefill": 1, "decode": 2}
    after = bench.actors
    assert after["llm-a Prefill:m"] == before["llm-a Prefill:m"]
    assert after["llm-a Decode:m"][:1] == before["llm-a Decode:m"]
    assert len(after["llm-a Decode:m"]) == 2
    assert done["actors"]["after"]["Decode:m"] == sorted(after["llm-a Decode:m"])
    assert bench.running["llm-a"]["args"] == config()["applications"][0]["args"]
    assert bench.run("scaled", ratio={"prefill": 1, "decode": 2})["changed"] is False
    bench.run("scaled", ratio={"prefill": 1, "decode": 1})
    assert bench.actors == before


def test_a_changed_ratio_survives_and_is_said(bench: Bench) -> None:
    bench.serving()
    bench.run("scaled", ratio={"prefill": 1, "decode": 2})
    kept = read(bench.folder / "current.yaml")
    assert kept is not None
    assert ratio(kept["applications"][0]) == {"prefill": 1, "decode": 2}
    assert bench.serving()["changed"] is False
    assert "keeps the ratio that was chosen while it ran (1 prefill, 2 decode)" in bench.warnings[0]
    told = bench.run("compared", config=config())["difference"]
    assert '"num_replicas": 2' in told["runs"]
    assert told["runs"] != told["declared"]
    # Any other change brings the topology's own ratio back.
    bench.serving(max_num_seqs=8)
    assert "deployments" not in bench.running["llm-a"]
    assert "goes back to the ratio of its topology (1 prefill, 1 decode)" in bench.warnings[0]
    assert bench.run("scaled", ratio={"prefill": 2, "decode": 1})["live"]["ratio"]["prefill"] == 2


def test_a_ratio_that_does_not_fit_changes_nothing(bench: Bench) -> None:
    bench.serving()
    with pytest.raises(DeployError, match="the ratio was not changed: the engines reserve 3 decode"):
        bench.run("scaled", ratio={"prefill": 1, "decode": 3})
    assert bench.changes() == []


@pytest.mark.parametrize(
    "wanted", [{"prefill": 1}, {"prefill": 0, "decode": 1}, {"prefill": 1, "decode": "2"}, {"aggregated": 2}]
)
def test_a_ratio_that_is_none_is_refused(bench: Bench, wanted: Json) -> None:
    bench.serving()
    with pytest.raises(DeployError, match="llm-a has the pools prefill, decode, and each needs one engine"):
        bench.run("scaled", ratio=wanted)


def test_a_ratio_that_does_not_come_to_run_is_taken_back(bench: Bench) -> None:
    bench.serving()
    bench.serve.never = lambda app: bool(app.get("deployments"))
    with pytest.raises(DeployError, match=r"(?s)not running after 5 s.*What ran before runs on\."):
        bench.run("scaled", ratio={"prefill": 1, "decode": 2})
    assert ratio(bench.running["llm-a"]) == {"prefill": 1, "decode": 1}
    assert bench.kept() == ["llm-a"]


def test_a_stranger_stops_every_change(bench: Bench) -> None:
    bench.serving()
    theirs = config(name="theirs-a")["applications"]
    bench.serve.put({**config(), "applications": [*config()["applications"], *theirs]})
    with pytest.raises(DeployError, match="the cluster also runs theirs-a"):
        bench.run("canary", config=config(max_num_seqs=8))
    assert bench.changes() == []


def test_data_parallel_ranks_are_counted_as_replicas() -> None:
    app = config(data_parallel_size=2)["applications"][0]
    assert ratio(app) == {"prefill": 1, "decode": 1}
    app["deployments"] = [{"name": "Decode:m", "num_replicas": 4}]
    assert ratio(app) == {"prefill": 1, "decode": 2}
    short = lacking({"applications": [app]}, [{"resources_total": {"CPU": 9, "prefill": 2, "decode": 3}}])
    assert short == ["the engines reserve 4 decode, the 1 live nodes offer 3"]


def test_both_slots_come_back_with_the_head(bench: Bench) -> None:
    bench.serving()
    bench.run("canary", config=config(max_num_seqs=8))
    sent = json.loads((bench.folder / "current.yaml").read_text())
    assert [app["name"] for app in sent["applications"]] == ["llm-a", "llm-b"]
    assert sent["applications"] == list(bench.running.values())
