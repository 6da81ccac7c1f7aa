"""splitrail_serve_app against a Serve that keeps state, as the real one's REST interface does."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.splitrail_ray import Head, RayError
from ansible.module_utils.splitrail_serve import (
    DeployError,
    covers,
    keep,
    lacking,
    read,
    running_config,
    validate,
)
from hypothesis import given
from hypothesis import strategies as st

from splitrail.ansible.modules.splitrail_serve_app import settle

from .fake_serve import Params, Serve, running

Json = dict[str, Any]


def llm(replicas: int = 1, **engine: Any) -> Json:
    """An engine's LLMConfig, as far as the module looks into it."""
    return {
        "placement_group_config": {"bundles": [{"CPU": 0.5, "decode": 1}]},
        "deployment_config": {"num_replicas": replicas},
        "engine_kwargs": engine,
    }


def config(name: str = "llm-a", port: int = 8000, replicas: int = 1, **engine: Any) -> Json:
    """A whole Serve config."""
    application = {
        "name": name,
        "route_prefix": "/a",
        "import_path": "ray.serve.llm:build_openai_app",
        "args": {"llm_configs": [llm(replicas, **engine)]},
    }
    return {
        "proxy_location": "HeadOnly",
        "http_options": {"host": "10.0.0.11", "port": port},
        "applications": [application],
    }


class Bench:
    """A Serve behind a real socket, and the module's settings."""

    def __init__(self, serve: Serve, url: str, folder: Path) -> None:
        self.serve, self.url, self.folder = serve, url, folder
        self.last_good = folder / "current.yaml"
        self.token = folder / "token"
        self.token.write_text("5ec7e7")

    def run(self, wanted: Json | None = None, *, check_mode: bool = False, **changed: Any) -> Json:
        """Apply the module with a config, or ``absent`` without one."""
        params = {
            "state": "deployed" if wanted else "absent",
            "config": wanted,
            "last_good": str(self.last_good),
            "names": ["llm-a"],
            "validate": [],
            "timeout_s": 5,
        }
        self.serve.calls.clear()
        module: Any = Params(check_mode, **{**params, **changed})
        done: Json = settle(module, Head(self.url, str(self.token)))
        return done

    @property
    def running(self) -> dict[str, Json]:
        """The config of each application that runs."""
        return {name: app["config"] for name, app in self.serve.apps.items() if app["status"] == "RUNNING"}

    def changes(self) -> list[str]:
        """The requests of the last run that could change something."""
        return [call for call in self.serve.calls if call != "GET"]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """The module against a Serve that never was started."""
    with running(Serve(), tmp_path, monkeypatch) as (serve, url):
        yield Bench(serve, url, tmp_path)


def test_a_first_deploy_runs_and_is_kept(bench: Bench) -> None:
    result = bench.run(config())
    assert result["changed"] is True
    assert result["applications"]["llm-a"]["status"] == "RUNNING"
    assert json.loads(result["diff"]["before"])["applications"] == []
    assert json.loads(result["diff"]["after"]) == config()
    assert json.loads(bench.last_good.read_text()) == config()
    assert bench.last_good.stat().st_mode & 0o777 == 0o600


def test_a_second_run_changes_nothing(bench: Bench) -> None:
    bench.run(config())
    for check_mode in (True, False):
        assert bench.run(config(), check_mode=check_mode)["changed"] is False
        assert bench.changes() == []


def test_check_mode_predicts_and_sends_nothing(bench: Bench) -> None:
    result = bench.run(config(), check_mode=True)
    assert result["changed"] is True
    assert bench.changes() == []
    assert not bench.last_good.exists()
    bench.run(config())
    assert bench.run(config(max_model_len=1), check_mode=True)["changed"] is True
    assert bench.running == {"llm-a": config()["applications"][0]}


@pytest.mark.parametrize(
    "after",
    [config(), config(max_num_seqs=8, enforce_eager=False), config(max_num_seqs=8, enforce_eager=True, x=1)],
)
def test_an_argument_taken_out_changed_or_added_is_deployed(bench: Bench, after: Json) -> None:
    bench.run(config(max_num_seqs=8, enforce_eager=True))
    assert bench.run(after)["changed"] is True
    assert bench.running["llm-a"] == after["applications"][0]


def test_a_config_that_runs_but_was_not_kept_is_waited_for_and_kept(bench: Bench) -> None:
    bench.run(config())
    bench.last_good.unlink()
    assert bench.run(config())["changed"] is True
    assert bench.changes() == []
    assert read(bench.last_good) == config()


def test_a_deploy_that_was_left_behind_is_waited_for(bench: Bench) -> None:
    bench.serve.put(config())
    assert bench.run(config())["applications"]["llm-a"]["status"] == "RUNNING"
    assert bench.changes() == []


def test_a_deploy_that_was_left_behind_and_fails_is_taken_back(bench: Bench) -> None:
    bench.run(config())
    bench.serve.broken = lambda app: app == config(bad=1)["applications"][0]
    bench.serve.put(config(bad=1))
    result = bench.run(config(bad=1))
    assert (result["failed"], result["rolled_back"]) == (True, True)
    assert bench.running["llm-a"] == config()["applications"][0]


def test_a_failed_deploy_says_why_and_goes_back(bench: Bench) -> None:
    bench.run(config())
    bench.serve.broken = lambda app: app == config(bad=1)["applications"][0]
    result = bench.run(config(bad=1))
    assert (result["failed"], result["rolled_back"]) == (True, True)
    for said in (
        "application llm-a is DEPLOY_FAILED: Failed to update the deployments ['Decode'].",
        "LLMServer:m is DEPLOY_FAILED: the replica failed to start 3 times",
        "10.0.0.13: ValueError: no such layout",
        "The last good config runs again.",
    ):
        assert said in result["msg"]
    assert bench.running["llm-a"] == config()["applications"][0]
    assert read(bench.last_good) == config()


def test_a_first_deploy_that_fails_leaves_nothing_behind(bench: Bench) -> None:
    bench.serve.broken = lambda _: True
    result = bench.run(config())
    assert (result["failed"], result["rolled_back"]) == (True, False)
    assert "There is no other config to go back to" in result["msg"]
    assert bench.serve.apps == {}
    assert not bench.last_good.exists()


def test_a_rollback_that_fails_too_says_both(bench: Bench) -> None:
    bench.run(config())
    bench.serve.broken = lambda _: True
    result = bench.run(config(bad=1))
    assert result["rolled_back"] is False
    said = "The last good config did not come back either: application llm-a is DEPLOY_FAILED"
    assert said in result["msg"]
    assert read(bench.last_good) == config()


def test_the_last_good_config_is_not_tried_twice_when_it_is_what_failed(bench: Bench) -> None:
    bench.run(config())
    bench.serve.broken = lambda _: True
    bench.serve.apps["llm-a"]["status"] = "DEPLOY_FAILED"
    result = bench.run(config())
    assert bench.changes() == ["DELETE", "PUT", "DELETE"]
    assert "There is no other config to go back to" in result["msg"]
    assert read(bench.last_good) == config()


def test_a_deploy_that_does_not_come_to_run_ends_in_time(bench: Bench) -> None:
    bench.run(config())
    bench.serve.never = lambda app: app == config(slow=1)["applications"][0]
    result = bench.run(config(slow=1))
    assert "not running after 5 s. application llm-a is DEPLOYING" in result["msg"]
    assert result["rolled_back"] is True


def test_a_failed_application_is_taken_away_before_the_same_config_is_sent(bench: Bench) -> None:
    bench.serve.broken = lambda _: True
    bench.serve.put(config())
    bench.serve.get()
    bench.serve.get()
    assert bench.serve.apps["llm-a"]["status"] == "DEPLOY_FAILED"
    bench.serve.broken = lambda _: False
    assert bench.run(config())["applications"]["llm-a"]["status"] == "RUNNING"
    assert bench.changes() == ["DELETE", "PUT"]


@pytest.mark.parametrize("proxy", ["UNHEALTHY", "STARTING"])
def test_an_application_behind_a_dead_proxy_does_not_run(bench: Bench, proxy: str) -> None:
    bench.serve.proxies["10.0.0.12"] = proxy
    result = bench.run(config())
    assert f"the HTTP proxy on 10.0.0.12 is {proxy}: is its port free?" in result["msg"]
    assert "10.0.0.11" not in result["msg"]


def test_an_application_without_any_proxy_does_not_run(bench: Bench) -> None:
    bench.serve.proxies = {"10.0.0.11": "DRAINING"}
    assert "not running after 5 s" in bench.run(config())["msg"]


@pytest.mark.parametrize("check_mode", [True, False])
def test_a_running_application_is_not_moved(bench: Bench, check_mode: bool) -> None:
    bench.run(config())
    with pytest.raises(DeployError, match=r"cannot change http_options.port from 8000 to 9000 while it runs"):
        bench.run(config(port=9000), check_mode=check_mode)
    assert bench.changes() == []


def test_a_serve_that_runs_nothing_is_moved(bench: Bench) -> None:
    bench.serve.put({**config(), "applications": []})
    bench.run(config(port=9000))
    assert bench.changes() == ["DELETE", "PUT"]
    assert bench.serve.get()["http_options"]["port"] == 9000


@pytest.mark.parametrize("check_mode", [True, False])
@pytest.mark.parametrize("state", ["deployed", "absent"])
def test_a_stranger_s_application_is_named_and_left_alone(bench: Bench, state: str, check_mode: bool) -> None:
    bench.run(config())
    other = {**config(), "applications": [*config()["applications"], *config(name="theirs")["applications"]]}
    bench.serve.put(other)
    with pytest.raises(DeployError, match="the cluster also runs theirs, which"):
        bench.run(config(max_num_seqs=1) if state == "deployed" else None, check_mode=check_mode)
    assert bench.changes() == []


def test_what_ran_before_is_kept(bench: Bench) -> None:
    bench.run(config())
    former = bench.last_good.with_name("previous.yaml")
    assert not former.exists()
    bench.run(config(max_num_seqs=1))
    bench.run(config(max_num_seqs=1))
    assert (read(former), former.stat().st_mode & 0o777) == (config(), 0o600)
    bench.run()
    assert not former.exists()


def test_the_difference_is_told_and_nothing_else_looked_at(bench: Bench) -> None:
    bench.run(config())
    same = bench.run(config(), state="compared")["difference"]
    assert same["runs"] == same["declared"]
    # Neither would pass the checks of a deploy.
    told = bench.run(config(replicas=9), state="compared", validate=["/no/such/podman"])["difference"]
    assert '"num_replicas": 9' in told["declared"]
    assert '"num_replicas": 1' in told["runs"]
    assert bench.changes() == []


def test_our_application_by_its_former_name_is_no_stranger(bench: Bench) -> None:
    bench.run(config())
    bench.run(config(name="renamed-a"))
    assert list(bench.running) == ["renamed-a"]
    assert bench.run(names=[])["changed"] is True
    assert bench.serve.apps == {}


def test_absent_takes_all_away_once(bench: Bench) -> None:
    bench.run(config())
    assert bench.run(check_mode=True)["changed"] is True
    assert bench.changes() == []
    assert bench.run()["changed"] is True
    assert bench.serve.http is None  # Serve itself has ended: a config that is sent next is not dropped
    assert not bench.last_good.exists()
    assert bench.run()["changed"] is False


def test_absent_takes_away_what_failed_before_it_was_ever_kept(bench: Bench) -> None:
    bench.serve.put(config())
    assert bench.run(names=["llm-a"])["changed"] is True
    assert bench.serve.apps == {}


def test_faults_of_the_config_deploy_nothing(bench: Bench) -> None:
    bench.run(config())
    report = json.dumps({"ok": False, "faults": ["a: wrong", "b: wrong"]})
    command = [sys.executable, "-c", f"print('noise'); print({report!r}); raise SystemExit(1)"]
    with pytest.raises(DeployError, match="nothing was deployed; correct the topology: a: wrong; b: wrong"):
        bench.run(config(bad=1), validate=command)
    assert bench.changes() == []


def test_a_good_config_passes_its_check(bench: Bench) -> None:
    code = "import json, sys; print(json.dumps({'ok': 'applications' in json.load(sys.stdin), 'faults': []}))"
    assert bench.run(config(), validate=[sys.executable, "-c", code])["changed"] is True


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("raise SystemExit('no such image')", "could not be checked: .* ended with 1: no such image"),
        ("print('no json')", "could not be checked: .* ended with 0"),
        ("print('[]')", "could not be checked: .* ended with 0"),
        ("print('{}')", "could not be checked: .* ended with 0"),
        ("print('{\"ok\": 1, \"faults\": [\"f\"]}')", "the config is wrong"),
        ("print('{\"ok\": true, \"faults\": []}'); raise SystemExit(1)", "the config is wrong"),
        ("print('{\"ok\": false, \"faults\": [\"no vllm\"]}'); exit(2)", "nothing was deployed: no vllm$"),
    ],
)  # fmt: skip
def test_a_check_that_did_not_pass_is_no_pass(code: str, says: str) -> None:
    with pytest.raises(DeployError, match=says):
        validate([sys.executable, "-c", code], config())


def test_a_check_that_cannot_start_is_no_pass() -> None:
    with pytest.raises(DeployError, match=r"could not be checked: .*No such file"):
        validate(["/no/such/podman"], config())


def test_lack_of_resources_deploys_nothing(bench: Bench) -> None:
    bench.run(config())
    with pytest.raises(DeployError, match="reserve 3 decode, the 1 live nodes offer 2"):
        bench.run(config(replicas=3))
    assert bench.changes() == []


def test_each_bundle_must_fit_on_one_node() -> None:
    apart = [{"resources_total": {"CPU": 8}}, {"resources_total": {"decode": 8}}]
    (short,) = lacking(config(), apart)
    assert short == 'an engine worker reserves {"CPU": 0.5, "decode": 1}, which no live node offers alone'
    assert lacking(config(), [*apart, {"resources_total": {"CPU": 1, "decode": 1}}]) == []


def test_each_rank_of_a_data_parallel_engine_counts() -> None:
    spread = config()
    spread["applications"][0]["args"] = {
        "llm_configs": [{**llm(1), "engine_kwargs": {"data_parallel_size": 3}}]
    }
    offer = {"CPU": 8, "decode": 3}
    assert lacking(spread, [{"resources_total": offer}]) == []
    assert lacking(spread, [{"resources_total": {**offer, "decode": 2}}]) == [
        "the engines reserve 3 decode, the 1 live nodes offer 2"
    ]


def test_both_pools_count_and_rounding_does_not() -> None:
    both = config()
    both["applications"][0]["args"] = {"prefill_config": llm(2), "decode_config": llm(1)}
    offer = {"CPU": 1.5, "decode": 3}
    assert lacking(both, [{"resources_total": offer}]) == []
    assert lacking(both, [{"resources_total": {**offer, "decode": 2}}]) == [
        "the engines reserve 3 decode, the 1 live nodes offer 2"
    ]
    tenths = config(replicas=3)
    tenths["applications"][0]["args"]["llm_configs"][0]["placement_group_config"]["bundles"] = [{"CPU": 0.1}]
    assert lacking(tenths, [{"resources_total": {"CPU": 0.3}}]) == []


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"applications": 1}', '{"applications": [{}]}'])
def test_a_corrupt_last_good_config_is_none(tmp_path: Path, content: str) -> None:
    path = tmp_path / "current.yaml"
    path.write_text(content)
    assert read(path) is None


def test_the_last_good_config_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "current.yaml"
    (tmp_path / ".current.yaml.new").write_text("left by a run that was killed")
    keep(path, config())
    broken: Any = {**config(), "x": object()}
    with pytest.raises(TypeError):
        keep(path, broken)
    assert read(path) == config()
    assert [one.name for one in tmp_path.iterdir()] == ["current.yaml"]


def test_a_last_good_config_that_cannot_be_written_is_told(bench: Bench) -> None:
    with pytest.raises(DeployError, match=r"the application runs, but .* could not be written"):
        bench.run(config(), last_good=str(bench.folder / "none/current.yaml"))


def test_a_head_that_is_down_is_an_error_and_no_prediction(bench: Bench) -> None:
    module: Any = Params(True, state="deployed", config=config(), last_good=str(bench.last_good), timeout_s=1)
    with pytest.raises(RayError, match="does not answer"):
        settle(module, Head("http://127.0.0.1:1", str(bench.token)))


def test_a_serve_that_was_never_started_runs_nothing() -> None:
    assert running_config({"applications": {}}) == {
        "proxy_location": None,
        "http_options": {"host": None, "port": None},
        "applications": [],
    }


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=2),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=5,
)


@given(one=VALUES, other=VALUES)
def test_what_runs_covers_a_config_only_when_every_argument_is_equal(one: Any, other: Any) -> None:
    serve, wanted = Serve(), config(x=one)
    serve.put(wanted)
    actual = running_config(serve.get())
    assert covers(actual, wanted)
    assert covers(actual, config(x=other)) == (one == other)
    assert not covers(actual, config(x=one, y=other))
    assert not covers(running_config({"applications": {}}), wanted)
    assert not covers(actual, config(port=9000, x=one))
    assert not covers(actual, {**wanted, "proxy_location": "EveryNode"})
