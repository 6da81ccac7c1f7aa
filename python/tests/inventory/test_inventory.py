"""Reading an inventory as Ansible does, what is filled in, what each kind of fault says, the schema."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from jsonschema_rs import Draft202012Validator, meta
from typer.testing import CliRunner

from splitrail.cli import app
from splitrail.inventory.check import check
from splitrail.inventory.fault import InventoryError
from splitrail.inventory.foreign import parse as parse_foreign
from splitrail.inventory.model import ANSIBLE, Connection
from splitrail.inventory.reader import expand, load
from splitrail.inventory.resolve import Fleet, Unknown, Wrong
from splitrail.inventory.vocabulary import document, from_spec
from splitrail.inventory.vocabulary import load as load_vocabulary
from splitrail.project import Project

ROOT = Path(__file__).parents[3]
PROJECT = Project(ROOT)
GOOD = """
all:
  vars: {cluster_name: c}
  children:
    head: {hosts: {n1: {ansible_host: 10.0.0.1}}}
    workers: {hosts: {n2: {ansible_host: 10.0.0.2}}}
"""


def write(folder: Path, **files: str) -> Path:
    """An inventory: hosts.yml, and group_vars/all.yml and the like with __ for /."""
    for name, text in {"hosts": GOOD, **files}.items():
        path = folder / (name.replace("__", "/") + ".yml")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def faults(folder: Path, **files: str) -> list[str]:
    try:
        check(PROJECT, str(write(folder, **files)))
    except InventoryError as error:
        return [str(fault).removeprefix(f"{folder}/") for fault in error.faults]
    return []


@pytest.mark.parametrize("name", ["lab", "mi325x", "lab-fabric", "h200"])
def test_the_same_values_win_as_with_ansible(name: str) -> None:
    source = ROOT / "inventories" / name
    done = subprocess.run(
        ["ansible-inventory", "-i", str(source), "--list"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        cwd=ROOT,
    )
    theirs = json.loads(done.stdout)["_meta"]["hostvars"]
    inventory = load(source)
    ours = {host: {k: v.value for k, v in inventory.of(host).items()} for host in inventory.hosts}
    for values in theirs.values():
        values.pop("ansible_local", None)  # a fact, which it adds by itself
    assert ours == theirs


def test_deeper_groups_and_hosts_win_and_files_over_inline(tmp_path: Path) -> None:
    hosts = """
    all:
      vars: {a: all, b: all, c: all, d: all}
      children:
        outer:
          vars: {b: outer, c: outer}
          children: {inner: {hosts: {n1: {d: host}}, vars: {c: inner}}}
    """
    folder = write(tmp_path, hosts=hosts, group_vars__all="a: file", host_vars__n1="d: file")
    inventory = load(folder)
    assert {key: one.value for key, one in inventory.of("n1").items()} == {
        "a": "file",
        "b": "outer",
        "c": "inner",
        "d": "file",
    }
    assert inventory.of("n1")["c"].scope == "group inner"
    assert inventory.of("n1")["a"].line() == 1


def test_ranges_of_hosts() -> None:
    assert expand("n[08:10]") == ["n08", "n09", "n10"]
    assert expand("r[a:b]-n[1:3:2]") == ["ra-n1", "ra-n3", "rb-n1", "rb-n3"]


def test_templates_are_filled_in_as_far_as_the_inventory_goes(tmp_path: Path) -> None:
    text = """
    size: 8
    name: "{{ inventory_hostname }}-{{ size }}"
    same: "{{ size }}"
    others: "{{ groups['all'] | length }}"
    far: "{{ hostvars['n2'].ansible_host }}"
    fact: "{{ ansible_facts['os_family'] }}"
    secret: "{{ lookup('ansible.builtin.password', '/dev/null') }}"
    circle: "{{ circle }}"
    gone: "{{ lookup('ansible.builtin.file', inventory_dir ~ '/gone') }}"
    """
    values = Fleet(load(write(tmp_path, group_vars__all=text)))["n1"]
    assert (values["name"], values["same"], values["others"], values["far"]) == ("n1-8", 8, 2, "10.0.0.2")
    for unknown in ("fact", "secret", "circle"):
        with pytest.raises(Unknown):
            values[unknown]
    with pytest.raises(Wrong, match="gone"):
        values["gone"]


SAID = [
    ("preflight_ram: 4\n", "group_vars/all.yml:1: preflight_ram: is no variable"),
    ("llm_serve_mdoe: pd\n", "did you mean llm_serve_mode?"),
    (
        "ray_cluster_port: many\n",
        'ray_cluster_port: is "many"; allowed: a whole number from 1 to 65535',
    ),
    ("ray_cluster_port: 70000\n", "is 70000; allowed: a whole number from 1 to 65535"),
    ("preflight_memory_gib: -2\n", "is -2; allowed: a number from 0 on"),
    ("preflight_memlock_mib: -5\npreflight_nofile: x\n", ':2: preflight_nofile: is "x"'),
    ("gpu_health_level: fast\n", 'is "fast"; allowed: one of quick, burn; cure: write one of quick, burn'),
    ("rdma_fabric_transport: rmda\n", "did you mean rdma?"),
    ("preflight_kernel_min: 5.10\n", "is 5.1; allowed: a text; cure: put it in quotes"),
    ("ray_cluster_volumes: /a:/b\n", "allowed: a list"),
    ("ray_cluster_env: [A]\n", "allowed: a mapping"),
    (
        "preflight_disk: [{path: /, free_gb: 1}]\n",
        "preflight_disk[0].free_gb: free_gb is no key of it; allowed: path",
    ),
    ("preflight_disk: [{path: /}]\n", "preflight_disk[0]: lacks free_gib; cure: add free_gib"),
    ("preflight_ports: [{port: 0}]\n", "preflight_ports[0].port: is 0; allowed: a whole number from 1"),
    ("preflight_shm_gib:\n", "is null; allowed: a number from 0 on; cure: write a number"),
    (
        'preflight_shm_gib: "{{ preflight_shm }}"\n',
        "reads preflight_shm, which nobody declares; did you mean",
    ),
    ("preflight_shm_gib: \"{{ 'a' ~ 'b' }}\"\n", 'preflight_shm_gib on n1, n2: is "ab"'),
    ('preflight_shm_gib: "{{ 1 "\n', "is no template"),
    ("preflight_shm_gib: 1\npreflight_shm_gib: 2\n", "stands here and in line 1"),
    ("ray_cluster_token: abcdef\n", "is a secret in plain text; cure: write what `ansible-vault"),
    ("ansible_port: 0\n", "ansible_port: is 0; allowed: a whole number from 1 to 65535"),
    ("lab_network: 10.0.0.0/8x\n", 'lab_network: is "10.0.0.0/8x"; allowed: a text that is an ipv4network'),
    (
        "lab_network: 10.9.0.0/24\n",
        "ansible_host on n1: is 10.0.0.1; allowed: an address of lab_",
    ),
    (
        "topology: \"{{ 'x-1p1d' | splitrail_topology_named('/no') }}\"\n",
        "topology on n1, n2: no topology",
    ),
    ("a: {b: [1, 2}\n", "not YAML"),
]


@pytest.mark.parametrize(("text", "said"), SAID, ids=[said[:40] for _, said in SAID])
def test_what_is_wrong_is_said(tmp_path: Path, text: str, said: str) -> None:
    assert faults(tmp_path / "good") == []
    found = faults(tmp_path / "bad", group_vars__all=text)
    assert any(said in fault for fault in found), found


def test_a_secret_is_not_shown(tmp_path: Path) -> None:
    found = faults(tmp_path, group_vars__all="ray_cluster_token: [hunter2]\nray_cluster_port: x\n")
    assert any("(hidden)" in fault for fault in found)
    assert "hunter2" not in "".join(found)


def test_encrypted_values_and_files_are_passed_over(tmp_path: Path) -> None:
    text = "ray_cluster_token: !vault |\n  $ANSIBLE_VAULT;1.1;AES256\n  3438\n"
    text += 'preflight_shm_gib: "{{ hidden_one }}"\n'
    assert any("hidden_one" in fault for fault in faults(tmp_path / "a", group_vars__all=text))
    encrypted = "$ANSIBLE_VAULT;1.1;AES256\n3438\n"
    assert faults(tmp_path / "b", group_vars__all__a=text, group_vars__all__vault=encrypted) == []


def test_dates_and_encrypted_parts_are_texts(tmp_path: Path) -> None:
    text = "ray_cluster_env:\n  A: !vault |\n    $ANSIBLE_VAULT;1.1;AES256\n    34\n  1: 2026-01-01\n"
    assert faults(tmp_path / "a", group_vars__all=text) == []
    found = faults(tmp_path / "b", group_vars__all="preflight_shm_gib: 2026-01-01\n")
    assert any('is "2026-01-01"; allowed: a number' in fault for fault in found)


def test_helpers_of_an_inventory_are_known_by_being_read(tmp_path: Path) -> None:
    assert faults(tmp_path / "a", group_vars__all='mine: 4\npreflight_shm_gib: "{{ mine }}"\n') == []
    found = faults(tmp_path / "b", group_vars__all='mine: 4\npreflight_shm_gib: "{{ mime }}"\n')
    assert any("mine: is no variable" in fault and "did you mean mime?" in fault for fault in found)
    assert any("reads mime, which nobody declares; did you mean mine?" in fault for fault in found)


RAILS = "roce_nic_rails: [{{rail: 0, pci: '0000:01:00.0', address: {address}{more}}}]\n"


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        (("10.1.0.1/24", ""), ("10.1.0.2/24", ""), ""),
        (("10.1.0.0/31", ", gateway: 10.1.0.1"), ("10.1.0.2/31", ", gateway: 10.1.0.3"), ""),
        (("10.1.0.1/24", ""), ("10.1.0.1/24", ""), "has the address 10.1.0.1, which is that of rail 0"),
        (
            ("10.1.0.1/24", ""),
            ("10.2.0.2/24", ""),
            "is on 10.2.0.0/24 without a gateway; allowed: 10.1",
        ),
        (
            ("10.1.0.1/24", ""),
            ("10.1.0.2/16", ", gateway: 10.1.9.9"),
            "overlaps with 10.1.0.0/16 of rail 0",
        ),
        (("10.0.0.8/24", ""), ("10.0.0.9/24", ""), "is 10.0.0.1, in the network 10.0.0.0/24 of rail 0"),
        (("10.1.0.1/24", ", gateway: 10.9.0.1"), ("10.1.0.2/24", ""), "gateway 10.9.0.1 is not on the link"),
        (("10.1.0.1/24", ", speed: 400"), ("10.1.0.2/24", ""), "speed is no key of it; allowed: rail, pci"),
    ],
)
def test_rails(tmp_path: Path, one: tuple[str, str], other: tuple[str, str], said: str) -> None:
    n1, n2 = (RAILS.format(address=address, more=more) for address, more in (one, other))
    found = faults(tmp_path, host_vars__n1=n1, host_vars__n2=n2)
    assert any(said in fault for fault in found) if said else found == []


def test_a_host_with_fewer_rails_is_named(tmp_path: Path) -> None:
    (found,) = faults(tmp_path, host_vars__n1=RAILS.format(address="10.1.0.1/24", more=""))
    assert "roce_nic_rails on n2: has the rails none; allowed: those of the other hosts, 0" in found


def test_many_hosts_are_counted_not_listed(tmp_path: Path) -> None:
    hosts = "all: {vars: {cluster_name: c}, hosts: {'n[1:9]': {}}, children: {head: {hosts: {n1: }}}}"
    found = faults(tmp_path, hosts=hosts, group_vars__all="preflight_shm_gib: \"{{ 'x' }}\"\n")
    assert any("on n1, n2, n3 and 6 more" in fault for fault in found)


def test_another_kind_of_inventory_is_read_through_ansible(tmp_path: Path) -> None:
    source = tmp_path / "hosts"
    source.write_text("[head]\nn1 ansible_host=10.0.0.1 preflight_shm_gib=x\n[all:vars]\ncluster_name=c\n")
    with pytest.raises(InventoryError, match=r'preflight_shm_gib on n1: is "x"; allowed: a number'):
        check(PROJECT, str(source))
    source.write_text(source.read_text().replace("=x", "=2"))
    assert list(check(PROJECT, str(source)).hosts) == ["n1"]


def test_what_ansible_inventory_printed_is_an_inventory() -> None:
    data: dict[str, Any] = {
        "_meta": {"hostvars": {"n1": {"a": 1}}},
        "all": {"children": ["head"]},
        "head": {"hosts": ["n1"]},
    }
    inventory = parse_foreign("x", data)
    assert inventory.members("all") == ["n1"]
    assert inventory.of("n1")["a"].value == 1


def test_the_names_of_ansible_s_own_variables_are_those_of_its_plugins() -> None:
    known = ANSIBLE | set(Connection.model_fields)
    done = subprocess.run(
        ["ansible-doc", "-t", "connection", "--json", "ssh", "local"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    for plugin in json.loads(done.stdout).values():
        for option in plugin["doc"]["options"].values():
            for variable in option.get("vars", []):
                name = variable["name"]
                assert name in known or name == "inventory_hostname" or "[" in name, name


def test_the_schema_is_a_schema_and_takes_templates() -> None:
    schema = document(load_vocabulary(ROOT))
    assert meta.is_valid(schema)
    judge = Draft202012Validator(schema)
    assert judge.is_valid({"ray_cluster_port": 6379, "cluster_name": "c"})
    assert judge.is_valid({"ray_cluster_port": "{{ port }}", "ray_cluster_volumes": ["{{ a }}"]})
    assert not judge.is_valid({"ray_cluster_port": "many"})
    assert schema["properties"]["lab_kind"]["anyOf"][0]["enum"] == ["container", "vm"]


@pytest.mark.parametrize(
    ("spec", "good", "bad"),
    [
        ({"type": "str"}, ["a", 5], [5.1, True, None, ["a"]]),
        ({"type": "str", "default": None}, ["a", None], [1.5]),
        ({"type": "bool"}, [True], ["yes", 1]),
        ({"type": "int"}, [1], ["1", 1.5, True]),
        ({"type": "float"}, [1, 1.5], ["1"]),
        ({"type": "list", "elements": "int"}, [[1]], ["1,2", ["a"]]),
        (
            {"type": "dict", "options": {"a": {"type": "int", "required": True}}},
            [{"a": 1}],
            [{}, {"a": 1, "b": 2}],
        ),
        ({"type": "str", "choices": ["a"]}, ["a"], ["b"]),
        ({"type": "raw"}, [1, "a", None], []),
    ],
)
def test_types_of_specs(spec: dict[str, Any], good: list[Any], bad: list[Any]) -> None:
    judge = Draft202012Validator(from_spec("x", spec))
    assert all(judge.is_valid(value) for value in good)
    assert not any(judge.is_valid(value) for value in bad)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    run = CliRunner().invoke
    done = run(app, ["inventory", "check", "-i", "inventories/lab"])
    assert (done.exit_code, done.stdout) == (0, "ok   inventories/lab: 3 hosts\n")
    folder = write(tmp_path, group_vars__all="ray_cluster_prot: 1\n")
    done = run(app, ["inventory", "check", "-i", str(folder), "--json"])
    (fault,) = json.loads(done.stdout)["faults"]
    assert done.exit_code == 1
    assert (fault["key"], fault["line"]) == ("ray_cluster_prot", 1)
    assert "did you mean ray_cluster_port?" in fault["said"]
    assert json.loads(run(app, ["inventory", "schema"]).stdout)["title"]
    assert run(app, ["inventory", "check", "-i", "gone"]).exit_code == 2
