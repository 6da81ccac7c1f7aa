"""From bare nodes to proven serving, and back.

The tests build on one another and run in the order they stand.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import yaml

from tests.site.leaks import leaks

if TYPE_CHECKING:
    from tests.site.conftest import Site

pytestmark = [pytest.mark.site]

ROOT = Path(__file__).resolve().parents[3]
NODES = ("lab-head", "lab-prefill", "lab-decode")
HEAD = "10.87.0.11"
# ray_cluster_uid of inventories/lab
RAY_UID = 60700
PROMPT = "the quick brown fox jumps over the lazy dog " * 30


def events(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The event log of a run, from the run record that its report names."""
    return [json.loads(line) for line in (Path(report["record"]) / "events.jsonl").read_text().splitlines()]


def messages(report: dict[str, Any]) -> str:
    """All failures of a run as one text."""
    return "\n".join(f"{failure['host']}: {failure['message']}" for failure in report["run"]["failures"])


def checks(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The checks of a run's verdict by name; of several of one name, a failed one."""
    found: dict[str, dict[str, Any]] = {}
    for one in report["verdict"]["checks"]:
        if one["name"] not in found or not one["ok"]:
            found[one["name"]] = one
    return found


@pytest.fixture(scope="module")
def answers() -> dict[str, list[int]]:
    """What prefill-decode answered, for the comparison with aggregated serving."""
    return {}


def test_check_mode_on_bare_nodes(site: Site) -> None:
    code, report = site.verb("up", "--check")
    assert code == 0, messages(report)
    assert not site.host("lab-head").exists("podman")


def test_an_unreachable_node_is_named_before_anything_changes(site: Site) -> None:
    site.lab("power", "off", "lab-decode")
    code, report = site.verb("up")
    assert code in (1, 2)
    assert "lab-decode" in messages(report)
    assert not site.host("lab-head").exists("podman")
    site.lab("power", "on", "lab-decode")


def test_a_port_in_use_is_named_with_its_holder(site: Site) -> None:
    head = site.host("lab-head")
    head.check_output("systemd-run --unit=squatter python3 -m http.server 8265 --bind 0.0.0.0")
    try:
        deadline = time.monotonic() + 20
        while not head.socket("tcp://0.0.0.0:8265").is_listening and time.monotonic() < deadline:
            pass
        code, report = site.verb("up")
    finally:
        head.check_output("systemctl stop squatter")
    assert code == 1
    found = messages(report)
    assert "lab-head" in found
    assert "8265" in found
    assert "squatter" in found
    assert not head.exists("podman")


def test_a_full_disk_is_named_before_anything_changes(site: Site) -> None:
    head = site.host("lab-head")
    head.check_output("mount -t tmpfs -o size=16m tmpfs /tmp")
    try:
        code, report = site.verb("up")
    finally:
        head.check_output("umount /tmp")
    assert code == 1
    assert "/tmp" in messages(report)
    assert not head.exists("podman")


def test_up(site: Site) -> None:
    code, report = site.verb("up", "--resume")
    assert code == 0, messages(report)
    found = checks(report)
    assert all(one["ok"] for one in found.values())
    for proof in ("smoke.same_answer", "smoke.kv_tokens", "smoke.kv_bytes", "smoke.kv_wire"):
        assert proof in found
    assert "tcp (declared)" in found["smoke.kv_wire"]["subject"]


def test_a_second_run_changes_nothing(site: Site) -> None:
    code, report = site.verb("up")
    assert code == 0, messages(report)
    assert [event for event in events(report) if event["changed"]] == []


def test_status(site: Site) -> None:
    code, report = site.verb("status")
    assert code == 0
    deployments = {one["name"]: one for one in report["serving"]["applications"][0]["deployments"]}
    assert deployments["Prefill:lab-qwen3"]["nodes"] != deployments["Decode:lab-qwen3"]["nodes"]
    assert all(one["running"] == one["wanted"] == 1 for one in deployments.values())


def test_the_token_is_asked_for_and_is_ray_s_alone(site: Site) -> None:
    assert httpx.get(f"http://{HEAD}:8265/api/v0/nodes", trust_env=False).status_code == 401
    for name in NODES:
        file = site.host(name).file("/etc/ray/token")
        assert (file.uid, file.gid, file.mode) == (RAY_UID, RAY_UID, 0o600)


def test_ray_and_the_engines_run_without_root(site: Site) -> None:
    for name, wanted in zip(NODES, ("raylet", "VLLM::Worker", "VLLM::Worker"), strict=True):
        lines = site.host(name).check_output("ps -e -o uid=,comm=").splitlines()
        found = {comm: int(uid) for uid, comm in (line.split(maxsplit=1) for line in lines)}
        assert found[wanted] == RAY_UID, name
        assert not [comm for comm, uid in found.items() if comm.startswith(("ray", "VLLM")) and not uid], name


def test_the_entrance_wants_a_key_and_serve_cannot_be_reached_past_it(site: Site) -> None:
    url = f"http://{HEAD}:8000/v1/models"
    assert httpx.get(url, trust_env=False).status_code == 401
    answer = httpx.get(url, headers={"Authorization": f"Bearer {site.key}"}, trust_env=False)
    assert answer.json()["data"][0]["id"] == "lab-qwen3"
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://{HEAD}:8001/a/v1/models", trust_env=False)


def test_the_dashboard_listens_on_the_management_address_only(site: Site) -> None:
    listening = site.host("lab-head").check_output("ss --listening --tcp --numeric --no-header")
    addresses = [line.split()[3] for line in listening.splitlines()]
    assert f"{HEAD}:8265" in addresses
    assert "0.0.0.0:8265" not in addresses


def test_a_misspelt_key_deploys_nothing(site: Site, tmp_path: Path) -> None:
    before = site.verb("status")[1]["serving"]
    topology = yaml.safe_load((ROOT / "inventories/topologies/lab-1p1d.yml").read_text())
    topology["engine"]["max_model_length"] = topology["engine"].pop("max_model_len")
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps({"llm_serve_topology": topology}))
    code, report = site.verb("serve", "-e", f"@{bad}")
    assert code == 1
    found = messages(report)
    assert "lab-head" in found
    assert "max_model_length" in found
    assert "'max_model_len'" in found
    assert site.verb("status")[1]["serving"] == before

    topology["pols"] = topology.pop("pools")
    bad.write_text(json.dumps({"llm_serve_topology": topology}))
    code, report = site.verb("serve", "-e", f"@{bad}")
    assert code == 1
    assert "do you mean pools" in messages(report)


def test_too_many_replicas_deploy_nothing(site: Site, tmp_path: Path) -> None:
    topology = yaml.safe_load((ROOT / "inventories/topologies/lab-1p1d.yml").read_text())
    topology["pools"]["decode"]["replicas"] = 3
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps({"llm_serve_topology": topology}))
    code, report = site.verb("serve", "-e", f"@{bad}")
    assert code == 1
    assert "reserve 3 decode" in messages(report)
    assert site.verb("status")[0] == 1  # the last run failed ...
    assert site.verb("status")[1]["serving"]["ok"]  # ... and what served before serves on


def test_another_ratio_stays_and_restarts_nothing(site: Site) -> None:
    def engines() -> dict[str, set[str]]:
        applications = site.verb("status")[1]["serving"]["applications"]
        return {one["name"]: set(one["actors"]) for one in applications[0]["deployments"]}

    # A deploy that was refused left its config for review; this one writes the right one again.
    assert site.verb("serve")[0] == 0
    assert site.verb("diff")[0] == 0
    before = engines()
    code, report = site.verb("rebalance", "--to", "1P2D")
    assert code == 0, messages(report)
    after = engines()
    assert after["Prefill:lab-qwen3"] == before["Prefill:lab-qwen3"]
    assert after["Decode:lab-qwen3"] > before["Decode:lab-qwen3"]
    code, report = site.verb("diff")
    assert code == 1
    assert '"num_replicas": 2' in report["diff"]
    code, report = site.verb("serve")  # keeps it
    assert (code, [event for event in events(report) if event["changed"]]) == (0, [])
    assert engines() == after
    code, report = site.verb("rebalance", "--to", "1P1D")
    assert code == 0, messages(report)
    last = engines()
    assert last["Prefill:lab-qwen3"] == before["Prefill:lab-qwen3"]
    assert last["Decode:lab-qwen3"] < after["Decode:lab-qwen3"]


def test_a_wrong_token_is_named_by_its_host_and_healed(site: Site, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.json"
    wrong.write_text(json.dumps({"ray_cluster_token": "0" * 64}))
    ray = ("--limit", "lab-prefill", "--tags", "ray_cluster_configure,ray_cluster_verify")
    code, report = site.verb("up", *ray, "-e", f"@{wrong}")
    assert code == 1
    assert "lab-prefill" in messages(report)
    assert "refuses the token" in messages(report)
    code, report = site.verb("up", *ray)
    assert code == 0, messages(report)


def test_aggregated_answers_the_same_by_one_variable(site: Site, answers: dict[str, list[int]]) -> None:
    answers["pd"] = site.ask(PROMPT)
    code, report = site.verb("serve", "-e", "llm_serve_mode=aggregated")
    assert code == 0, messages(report)
    assert site.ask(PROMPT) == answers["pd"]
    code, report = site.verb("smoke", "-e", "llm_serve_mode=aggregated")
    assert code == 0, messages(report)


def test_the_smoke_test_fails_where_nothing_moves(site: Site) -> None:
    """Aggregated serving, asked to prove prefill-decode, must not pass."""
    code, report = site.verb("smoke")
    assert code == 1
    assert "llm_serve_mode" in messages(report)


def test_back_to_prefill_decode(site: Site, answers: dict[str, list[int]]) -> None:
    code, report = site.verb("serve")
    assert code == 0, messages(report)
    assert site.ask(PROMPT) == answers["pd"]


def test_a_killed_decode_engine_comes_back(site: Site, answers: dict[str, list[int]]) -> None:
    site.host("lab-decode").check_output("pkill -KILL -f ^VLLM::Worker")
    deadline = time.monotonic() + 300
    while True:
        try:
            answer = site.ask(PROMPT)
            break
        except (httpx.HTTPError, KeyError):
            assert time.monotonic() < deadline, "the endpoint did not come back within 300 s"
            time.sleep(1)  # the pace of a client that tries again
    assert answer == answers["pd"]


def test_no_secret_shows_after_all_of_this(site: Site) -> None:
    """In run records and steps' logs; on each node in processes, units, containers, journal and files."""
    secrets = {file.name: file.read_text() for file in (ROOT / ".secrets/lab").iterdir() if file.is_file()}
    assert secrets.keys() >= {"ray_token", "api_key"}
    here = [ROOT / "runs", ROOT / "build"]
    assert leaks(secrets, proc=Path("/proc"), folders=here, outputs={}) == []
    for name in NODES:
        assert site.leaks(name, secrets) == [], name


def test_down(site: Site) -> None:
    code, report = site.verb("down")
    assert code == 0, messages(report)
    for name in NODES:
        node = site.host(name)
        assert not node.service("ray").is_running
        assert not node.service("ray").is_enabled
        assert node.check_output("podman ps --quiet") == ""
    code, report = site.verb("down")
    assert code == 0
    assert [event for event in events(report) if event["changed"]] == []
