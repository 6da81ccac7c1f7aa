"""The endpoint streams, and what the head keeps as the last good config is what runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import testinfra
from testinfra.host import Host

ENDPOINT = "http://10.88.0.11:8000/a/v1/completions"
CURRENT = "/etc/splitrail/serve/current.yaml"
# Prints each line of a streamed completion; a status other than 200 ends it with 1.
STREAM = f"""
import json, urllib.request
body = {{"model": "lab-qwen3", "prompt": "the quick brown fox", "max_tokens": 16}}
body |= {{"ignore_eos": True, "stream": True}}
# More than the one token that the prefill engine makes.
body["min_tokens"] = 16
headers = {{"Content-Type": "application/json"}}
request = urllib.request.Request("{ENDPOINT}", json.dumps(body).encode(), headers)
for line in urllib.request.urlopen(request, timeout=120):
    print(line.decode().strip())
"""
# Prints the config of each application that Serve runs.
RUNNING = """
import json, urllib.request
token = open("/etc/ray/token").read()
url = "http://10.88.0.11:8265/api/serve/applications/"
request = urllib.request.Request(url, headers={"Authorization": "Bearer " + token})
answer = json.load(urllib.request.urlopen(request, timeout=60))
print(json.dumps({name: app["deployed_app_config"] for name, app in answer["applications"].items()}))
"""


@pytest.fixture
def head(request: pytest.FixtureRequest) -> Host:
    """Ray's head, where the role works."""
    return testinfra.get_host("ssh://mol-head", ssh_config=request.config.option.ssh_config, sudo=True)


@pytest.mark.broken
def test_the_endpoint_streams_a_completion_to_every_node(host: Host) -> None:
    answer = host.run("python3 -c %s", STREAM)
    assert answer.rc == 0, answer.stderr
    lines = [line.removeprefix("data: ") for line in answer.stdout.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    events: list[dict[str, Any]] = [json.loads(line) for line in lines[:-1]]
    assert sum(bool(choice["text"]) for event in events for choice in event["choices"]) > 1
    assert events[-1]["choices"][0]["finish_reason"] == "length"


@pytest.mark.broken
def test_what_runs_is_the_last_good_config(head: Host) -> None:
    kept = json.loads(head.file(CURRENT).content_string)
    running = json.loads(head.check_output("python3 -c %s", RUNNING))
    assert running == {app["name"]: app for app in kept["applications"]}


@pytest.mark.broken
def test_every_replica_had_answered_when_the_deploy_ended(
    head: Host, verdicts: Callable[[str, Host], dict[str, Any]]
) -> None:
    found = {one["name"]: one["measured"] for one in verdicts("serve", head)["checks"] if one["ok"]}
    assert found.get("serve.warm") == "3 of 3 replicas have answered"


def test_the_application_comes_back_with_ray(head: Host) -> None:
    assert head.service("llm-serve").is_enabled


def test_the_last_good_config_is_for_root_alone(head: Host) -> None:
    assert (head.file(CURRENT).user, head.file(CURRENT).mode) == ("root", 0o600)
