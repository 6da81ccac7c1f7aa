"""Another ratio of elastic engines: nothing restarts, what cannot be is refused, it outlives a serve."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.splitrail_ray import Head
from ansible.module_utils.splitrail_serve import DeployError, in_slot, lacking, ratio, read

from splitrail.ansible.modules import splitrail_serve_app, splitrail_serve_slots

from .fake_serve import Params, Serve, running

Json = dict[str, Any]


def config(prefill: int = 1, decode: int = 2, engines: int = 3, spare: int | None = None) -> Json:
    """A Serve config of elastic engines, as far as the modules look into it."""
    one = {
        "placement_group_config": {"bundles": [{"CPU": 0.5, "engine": 1}]},
        "deployment_config": {"num_replicas": engines},
        "experimental_configs": {"NIXL_SIDE_CHANNEL_PORT_BASE": 20000},
        "engine_kwargs": {"tensor_parallel_size": 1},
    }
    roles = {"prefill": prefill, "decode": decode, "aggregated_below_osl": 8}
    roles |= {} if spare is None else {"spare": spare}
    application = {
        "name": "llm-a",
        "route_prefix": "/a",
        "import_path": "splitrail_elastic.app:build_elastic_app",
        "args": {"llm_config": one},
        "deployments": [{"name": "ElasticIngress", "user_config": roles}],
    }
    return {
        "proxy_location": "HeadOnly",
        "http_options": {"host": "127.0.0.1", "port": 8001},
        "applications": [application],
    }


class Bench:
    """Both modules on one head, with elastic engines served."""

    def __init__(self, serve: Serve, url: str, folder: Path) -> None:
        self.serve, self.folder = serve, folder
        self.head = Head(url, str(folder / "token"))
        self.warnings: list[str] = []
        serve.nodes = [{"resources_total": {"CPU": 8, "engine": 6}}]
        self.serving()

    def serving(self, check_mode: bool = False, **given: Any) -> Json:
        """Serve a config."""
        return self._run(splitrail_serve_app, check_mode, state="deployed", config=config(**given), names=[])

    def scaled(self, wanted: Json, *, check_mode: bool = False, timeout_s: int = 5) -> Json:
        """Change the ratio."""
        return self._run(
            splitrail_serve_slots, check_mode, action="scaled", ratio=wanted, timeout_s=timeout_s
        )

    def _run(self, program: Any, check_mode: bool, **given: Any) -> Json:
        shared = {"last_good": str(self.folder / "current.yaml"), "timeout_s": 5, "validate": []}
        self.serve.calls.clear()
        module: Any = Params(check_mode, **{**shared, **given})
        done: Json = program.settle(module, self.head)
        self.warnings = module.warnings
        return done

    @property
    def roles(self) -> Json:
        """What Serve has of the ingress's ``user_config``."""
        found: Json = self.serve.apps["llm-a"]["config"]["deployments"][0]["user_config"]
        return found


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    with running(Serve(), tmp_path, monkeypatch) as (serve, url):
        yield Bench(serve, url, tmp_path)


def test_the_roles_change_and_no_replica_does(bench: Bench) -> None:
    done = bench.scaled({"prefill": 2, "decode": 1})
    assert done["changed"] is True
    assert done["actors"]["after"] == done["actors"]["before"]
    assert len(done["actors"]["before"]) == 4
    assert bench.roles == {"prefill": 2, "decode": 1, "aggregated_below_osl": 8}
    assert done["live"]["ratio"] == {"prefill": 2, "decode": 1}
    assert done["in_effect_s"] >= 0
    kept = read(bench.folder / "current.yaml")
    assert kept is not None
    assert kept["applications"][0]["deployments"][0]["user_config"] == bench.roles


def test_the_arguments_stay_as_they_were(bench: Bench) -> None:
    """Other arguments would restart every replica."""
    before = json.dumps(bench.serve.apps["llm-a"]["config"]["args"])
    bench.scaled({"prefill": 2, "decode": 1})
    assert json.dumps(bench.serve.apps["llm-a"]["config"]["args"]) == before


def test_all_may_do_both_and_go_back(bench: Bench) -> None:
    bench.scaled({"aggregated": 3})
    assert (bench.roles["prefill"], bench.roles["decode"]) == (0, 0)
    bench.scaled({"prefill": 1, "decode": 2})
    assert (bench.roles["prefill"], bench.roles["decode"]) == (1, 2)


def test_the_same_ratio_changes_nothing(bench: Bench) -> None:
    assert bench.scaled({"prefill": 1, "decode": 2})["changed"] is False
    assert "PUT" not in bench.serve.calls


def test_check_mode_says_it_and_sends_nothing(bench: Bench) -> None:
    done = bench.scaled({"prefill": 2, "decode": 1}, check_mode=True)
    assert done["changed"] is True
    assert '"prefill": 2' in done["diff"]["after"]
    assert "PUT" not in bench.serve.calls
    assert bench.roles["prefill"] == 1


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ({"prefill": 1, "decode": 1}, "has 3 elastic engines and .* speaks of 2"),
        ({"aggregated": 4}, "has 3 elastic engines and .* speaks of 4"),
        ({"prefill": 3, "decode": 0}, "cannot be their ratio; write prefill and decode, one or more of each"),
        ({"prefill": 3}, "cannot be their ratio"),
        ({}, "cannot be their ratio"),
    ],
)
def test_a_ratio_that_cannot_be_is_refused_before_anything_is_sent(
    bench: Bench, wanted: Json, says: str
) -> None:
    with pytest.raises(DeployError, match=says):
        bench.scaled(wanted)
    assert "PUT" not in bench.serve.calls


def test_what_a_ratio_leaves_over_is_spare_where_the_topology_keeps_engines_back(bench: Bench) -> None:
    bench.serving(engines=4, spare=1)
    bench.scaled({"prefill": 2, "decode": 2})
    assert bench.roles == {"prefill": 2, "decode": 2, "aggregated_below_osl": 8, "spare": 0}
    bench.scaled({"prefill": 1, "decode": 1})
    assert bench.roles["spare"] == 2
    bench.scaled({"aggregated": 3})
    assert (bench.roles["prefill"], bench.roles["decode"], bench.roles["spare"]) == (0, 0, 1)
    with pytest.raises(DeployError, match=r"has 4 elastic engines and .* speaks of 5: write no more than"):
        bench.scaled({"prefill": 2, "decode": 3})


def test_a_ratio_that_does_not_come_into_effect_is_taken_back(bench: Bench) -> None:
    bench.serve.never = lambda app: app["deployments"][0]["user_config"]["prefill"] == 2
    with pytest.raises(DeployError, match="What ran before runs on"):
        bench.scaled({"prefill": 2, "decode": 1}, timeout_s=1)
    assert bench.roles["prefill"] == 1
    kept = read(bench.folder / "current.yaml")
    assert kept is not None
    assert kept["applications"][0]["deployments"][0]["user_config"]["prefill"] == 1


def test_a_later_serve_keeps_the_chosen_ratio_and_says_so(bench: Bench) -> None:
    bench.scaled({"prefill": 2, "decode": 1})
    assert bench.serving()["changed"] is False
    assert bench.roles["prefill"] == 2
    assert "keeps the ratio that was chosen while it ran (2 prefill, 1 decode)" in bench.warnings[0]


def test_engines_are_counted_against_what_nodes_offer() -> None:
    nodes = [{"resources_total": {"CPU": 8, "engine": 2}}]
    assert lacking(config(), nodes) == ["the engines reserve 3 engine, the 1 live nodes offer 2"]
    assert not lacking(config(engines=2), nodes)


def test_a_slot_has_ports_of_its_own() -> None:
    moved = in_slot(config()["applications"][0], "b")
    assert moved["args"]["llm_config"]["experimental_configs"]["NIXL_SIDE_CHANNEL_PORT_BASE"] == 24000
    assert ratio(moved) == {"prefill": 1, "decode": 2}
