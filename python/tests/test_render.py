"""What `splitrail render` writes: the reviewed files of the reference cluster, and no secret."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml

from splitrail.project import Project
from splitrail.render import INDEX, RenderError, Rendering, place, render
from splitrail.run.playbook import CannotRun, Options
from splitrail.topology import load

ROOT = Path(__file__).parents[2]
PROJECT = Project(ROOT)
# Reviewed by people. After a change on purpose: make golden, and review the difference.
GOLDEN = Path(__file__).parent / "golden/mi325x"
RELEASE = yaml.safe_load((ROOT / "inventories/releases/mi325x-rocm7.0.yml").read_text())
GPUS_PER_NODE = 8
CONTAINERFILE = ROOT / "templates/containerfiles/mi325x/Containerfile.j2"


def options(inventory: str, **extra_vars: Any) -> Options:
    given = (json.dumps(extra_vars),) if extra_vars else ()
    return Options(inventory=PROJECT.inventory(str(ROOT / "inventories" / inventory)), extra_vars=given)


def tree(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A marker that appears when anything runs ssh."""
    folder = tmp_path_factory.mktemp("path")
    marker = folder / "ssh-was-run"
    (folder / "ssh").write_text(f"#!/bin/sh\ntouch {marker}\nexit 255\n")
    (folder / "ssh").chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(folder), prepend=":")
        yield marker


@pytest.fixture(scope="module")
def mi325x(tmp_path_factory: pytest.TempPathFactory, guarded: Path) -> Rendering:
    """The reference cluster, rendered over a former rendering with a file that no role places any more."""
    out = tmp_path_factory.mktemp("render") / "out"
    (out / "mi325x-9/etc").mkdir(parents=True)
    (out / "mi325x-9/etc/stale.conf").write_text("stale\n")
    (out / INDEX).write_text("{}\n")
    secrets = ROOT / ".secrets/mi325x"
    had_secrets = secrets.exists()
    done = render(PROJECT, options("mi325x"), out)
    assert secrets.exists() == had_secrets, "render looked up a secret"
    assert not guarded.exists(), "render ran ssh"
    return done


def app(rendering: Rendering) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(
        (rendering.folder / "mi325x-1/etc/splitrail/serve/app.yaml").read_text()
    )
    return config


def test_equals_the_reviewed_files(mi325x: Rendering) -> None:
    made, reviewed = tree(mi325x.folder), tree(GOLDEN)
    assert sorted(made) == sorted(reviewed), "run `make golden` and review the difference"
    for path in sorted(reviewed):
        assert made[path] == reviewed[path], f"{path} changed: run `make golden` and review the difference"


def test_the_index_lists_every_file(mi325x: Rendering) -> None:
    listed = {f"{file['host']}{file['path']}" for file in mi325x.index["files"]}
    assert listed | {INDEX} == set(tree(mi325x.folder))
    assert mi325x.index == json.loads((mi325x.folder / INDEX).read_text())


def test_no_secret_is_rendered(mi325x: Rendering) -> None:
    paths = {file["path"] for file in mi325x.index["files"]}
    assert "/etc/ray/token" not in paths
    # Ray's token has 64 hexadecimal digits, in the inventory and in the place-holder of the playbook.
    assert not re.search(r"\b[0-9a-f]{64}\b", "".join(tree(mi325x.folder / "mi325x-1").values()))


def test_no_path_of_this_machine_is_rendered(mi325x: Rendering) -> None:
    for path, text in tree(mi325x.folder).items():
        assert str(ROOT) not in text, path
        assert str(Path.home()) + "/" not in text, path


def test_kv_caches_cannot_fall_back_to_tcp(mi325x: Rendering) -> None:
    for host in ("mi325x-1", "mi325x-4"):
        lines = (mi325x.folder / host / "etc/ray/ray.env").read_text().splitlines()
        environment = dict(line.split("=", 1) for line in lines if line.startswith("UCX_"))
        assert environment["UCX_TLS"] == "rc,sm,self,rocm_copy,rocm_ipc"
        # What RDMA device a rail has is found on the node.
        assert environment["UCX_NET_DEVICES"].split(",") == [f"<rail{number}>:1" for number in range(8)]
        assert environment["UCX_ROCM_COPY_DMABUF"] == "yes"
    # Nor does the application say otherwise for its engines.
    arguments = app(mi325x)["applications"][0]["args"]
    for side in ("prefill_config", "decode_config"):
        assert not [key for key in arguments[side]["runtime_env"]["env_vars"] if key.startswith("UCX_")]


@pytest.mark.parametrize(
    "trap",
    [
        "load_format",  # dummy weights
        "VLLM_MOE_ROUTING_SIMULATION_STRATEGY",
        "UCX_MEM_MMAP_HOOK_MODE",  # none crashes on ROCm
        "VLLM_NIXL_SIDE_CHANNEL_PORT",  # Ray gives each replica its own
        "ROCR_VISIBLE_DEVICES",  # alone, Ray refuses to start
        "UCX_IB_GID_INDEX",  # found, never fixed
    ],
)
def test_known_traps_are_absent(mi325x: Rendering, trap: str) -> None:
    for path, text in tree(mi325x.folder).items():
        assert trap not in text, path


def test_the_pools_have_the_servers_they_need(mi325x: Rendering) -> None:
    arguments = app(mi325x)["applications"][0]["args"]
    for host in mi325x.per_host():
        unit = (mi325x.folder / host / "etc/systemd/system/ray.service").read_text()
        for needed in (
            "/dev/kfd",
            "/dev/dri",
            "/dev/infiniband",
            "/boot:/boot:ro",
            "IPC_LOCK",
            "memlock=-1:-1",
        ):
            assert needed in unit, host
    asked = 0
    for pool in ("prefill", "decode"):
        config = arguments[f"{pool}_config"]
        bundles = config["placement_group_config"]["bundles"]
        assert bundles == [{"GPU": 1}] * config["engine_kwargs"]["tensor_parallel_size"]
        asked += len(bundles) * config["deployment_config"]["num_replicas"]
    assert asked == GPUS_PER_NODE * len(mi325x.per_host())


def test_every_rail_has_an_address_of_its_own(mi325x: Rendering) -> None:
    found: dict[str, str] = {}
    for host in mi325x.per_host():
        for file in (mi325x.folder / host / "etc/systemd/network").glob("*.network"):
            addresses = re.findall(r"^Address=(.*)$", file.read_text(), re.MULTILINE)
            assert len(addresses) == 1
            assert addresses[0] not in found, f"{host} and {found[addresses[0]]}"
            found[addresses[0]] = host
    assert len(found) == 4 * 8


# The Containerfile, without a rendering.


def stages(release: dict[str, Any]) -> dict[str, str]:
    """The instructions of each stage, without comments, by its name."""
    environment = jinja2.Environment(trim_blocks=True, undefined=jinja2.StrictUndefined, autoescape=False)  # noqa: S701
    text = environment.from_string(CONTAINERFILE.read_text()).render(release=release)
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    found: dict[str, str] = {}
    for line in lines:
        if start := re.match(r"FROM \S+ AS (\S+)$", line):
            name = start[1]
            found[name] = ""
        found[name] += line + "\n"
    return found


def with_pin(change: dict[str, Any]) -> dict[str, Any]:
    release: dict[str, Any] = json.loads(json.dumps(RELEASE))
    for place_, value in change.items():
        *parents, last = place_.split(".")
        entry = release
        for parent in parents:
            entry = entry[parent]
        entry[last] = value
    return release


@pytest.mark.parametrize(
    ("change", "rebuilt"),
    [
        ({"sources.ucx.commit": "a" * 40}, {"ucx"}),
        ({"sources.rixl.commit": "a" * 40}, {"rixl"}),
        ({"sources.triton.commit": "a" * 40}, {"triton"}),
        ({"build_tools.rixl": ["meson==1"]}, {"rixl"}),
        ({"build_tools.triton": ["cmake==3"]}, {"triton"}),
        ({"glibc": "manylinux_2_36_x86_64"}, {"rixl"}),
        ({"wheel_index": "https://example.org/simple"}, {"wheels"}),
        ({"uv": "1.0.0"}, {"base"}),
        ({"base_image.ref": "example.org/rocm@sha256:" + "0" * 64}, {"base"}),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_pin_stands_in_one_stage(change: dict[str, Any], rebuilt: set[str]) -> None:
    before, after = stages(RELEASE), stages(with_pin(change))
    # Labels close the image: they rebuild nothing.
    assert {name for name in before if unlabelled(before[name]) != unlabelled(after[name])} == rebuilt


def unlabelled(stage: str) -> str:
    return stage.partition("LABEL ")[0]


def test_sources_are_built_for_rocm_and_verbs() -> None:
    built = stages(RELEASE)
    for flag in ("--with-rocm=/opt/rocm", "--with-verbs", "--with-dm", "--enable-mt", "--disable-static"):
        assert flag in built["ucx"]
    for option in ("-Ducx_path=$UCX_HOME", "-Drocm_path=$ROCM_PATH"):
        assert option in built["rixl"]
    assert "_ucx_install_dir=$UCX_HOME ./contrib/build-wheel.sh" in built["rixl"]
    assert "ibverbs-providers" in built["wheels"], (
        "the final image stands on this stage and needs the mlx5 provider"
    )
    assert built["final"].startswith("FROM wheels")


def test_a_full_lock_resolves_nothing() -> None:
    assert "--no-deps" in stages(with_pin({"wheels_locked": True}))["wheels"]
    assert "ray[llm]" not in stages(with_pin({"wheels_locked": True}))["wheels"]


def test_the_release_says_what_it_has_not_pinned() -> None:
    """A pin that can move is named as such; nothing else is."""
    loose = {
        f"sources.{name}.commit" for name, source in RELEASE["sources"].items() if len(source["commit"]) != 40
    }
    if "@sha256:" not in RELEASE["base_image"]["ref"]:
        loose.add("base_image.ref")
    if not RELEASE["wheels_locked"]:
        loose.add("wheels")
    if any("==" not in tool for tools in RELEASE["build_tools"].values() for tool in tools):
        loose.add("build_tools")
    named = {entry["part"] for entry in RELEASE["unpinned"]}
    assert loose <= named
    assert named - loose <= {"APT packages of the image"}
    assert all(entry["why"] and entry["cure"] for entry in RELEASE["unpinned"])


def test_the_keys_of_every_release_are_there() -> None:
    common = yaml.safe_load((ROOT / "inventories/releases/cpu.yml").read_text()).keys()
    assert common - {"torch"} <= RELEASE.keys()  # vLLM's ROCm wheel brings a torch of its own


# Other inventories, and bad ones.


def test_the_lab_renders(tmp_path: Path) -> None:
    done = render(PROJECT, options("lab"), tmp_path / "out")
    assert set(done.per_host()) == {"lab-head", "lab-prefill", "lab-decode"}
    assert not [file for file in done.index["files"] if file["role"] == "roce_nic"], (
        "the lab declares no rails"
    )


def test_one_host_of_h200_renders(tmp_path: Path, guarded: Path) -> None:
    # As text, which is how `-e key=value` gives it.
    done = render(PROJECT, options("h200", llm_serve_bench="false", gpus_per_node="4"), tmp_path / "out")
    assert set(done.per_host()) == {"h200-1"}
    assert done.index["release"] == "h200"
    env = (done.folder / "h200-1/etc/ray/ray.env").read_text().splitlines()
    # KV caches go over the host's NVLink, which UCX finds by itself.
    assert "HF_HUB_OFFLINE=1" in env
    assert not [line for line in env if line.startswith("UCX_")]
    config = yaml.safe_load((done.folder / "h200-1/etc/splitrail/serve/app.yaml").read_text())
    assert config["applications"][0]["name"] == "llm-a"
    arguments = config["applications"][0]["args"]
    assert "load_format" not in arguments["decode_config"]["engine_kwargs"]
    assert arguments["decode_config"]["deployment_config"]["num_replicas"] == 3
    assert arguments["decode_config"]["placement_group_config"]["bundles"] == [{"GPU": 1}]
    assert not guarded.exists(), "render ran ssh"


def test_a_topology_is_chosen_by_its_name_and_a_benchmark_shows_by_its_own(tmp_path: Path) -> None:
    chosen = options("mi325x", topology_name="deepseek-v3-1p1d", llm_serve_bench=True, llm_serve_nodes={})
    done = render(PROJECT, chosen, tmp_path / "out")
    assert done.index["topology"] == "deepseek-v3-1p1d"
    application = app(done)["applications"][0]
    assert application["name"] == "llm-bench-a"
    assert application["args"]["prefill_config"]["model_loading_config"] == {
        "model_id": "deepseek-v3",
        "model_source": "/srv/models/DeepSeek-V3-0324",
    }


def test_what_does_not_fit_the_cluster_is_refused_with_every_reason(tmp_path: Path) -> None:
    wrong = options("mi325x", topology_name="qwen3-235b-3p2d", ray_cluster_volumes=[])
    with pytest.raises(RenderError) as error:
        render(PROJECT, wrong, tmp_path / "out")
    assert "pools.decode: 2 times 8 GPU are asked for and the nodes have room for 1" in str(error.value)
    assert "UCX_ROCM_COPY_DMABUF yes without /boot in the containers" in str(error.value)


def test_a_bad_inventory_leaves_the_former_rendering(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / INDEX).write_text("{}\n")
    rail = {"rail": 0, "pci": "0000:0c:00.0", "address": "10.30.0.0/31", "gateway": "10.30.0.9"}
    with pytest.raises(
        CannotRun, match=r"mi325x-1, .*rail 0: gateway 10\.30\.0\.9 is not on the link 10\.30\.0\.0/31"
    ):
        render(PROJECT, options("mi325x", roce_nic_rails=[rail]), out)
    assert tree(out) == {INDEX: "{}\n"}
    assert list(tmp_path.iterdir()) == [out]


def test_one_address_on_two_nodes_is_refused(tmp_path: Path) -> None:
    rail = {"rail": 0, "pci": "0000:0c:00.0", "address": "10.30.0.0/31"}
    with pytest.raises(CannotRun, match=r"mi325x-2, .*rail 0 has the address .* that of rail 0 of mi325x-1"):
        render(PROJECT, options("mi325x", roce_nic_rails=[rail]), tmp_path / "out")


def test_a_misspelt_topology_is_refused(tmp_path: Path) -> None:
    bad = load("qwen3-235b-1p3d", ROOT / "inventories/topologies")
    bad["pools"]["decode"]["replica"] = bad["pools"]["decode"].pop("replicas")
    with pytest.raises(
        RenderError, match=r"pools\.decode\.replica is not a key of a topology, do you mean replicas"
    ):
        render(PROJECT, options("mi325x", llm_serve_topology=bad), tmp_path / "out")


def test_a_folder_that_is_no_rendering_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work\n")
    with pytest.raises(RenderError, match=f"{tmp_path} holds no index.json, so it is no former rendering"):
        render(PROJECT, options("mi325x"), tmp_path)
    with pytest.raises(RenderError, match="is not a folder"):
        render(PROJECT, options("mi325x"), tmp_path / "thesis.tex")
    assert tree(tmp_path) == {"thesis.tex": "years of work\n"}


@pytest.mark.parametrize("dest", ["etc/x", "/etc/../../x", ""])
def test_a_file_stays_in_its_hosts_folder(tmp_path: Path, dest: str) -> None:
    with pytest.raises(RenderError, match="write an absolute path without"):
        place(tmp_path, "n1", dest, role="r", mode="0644", content="")


@pytest.mark.parametrize("host", ["..", "a/b", "", ".notes"])
def test_a_host_that_names_no_folder_is_refused(tmp_path: Path, host: str) -> None:
    with pytest.raises(RenderError, match="cannot name a folder"):
        place(tmp_path, host, "/etc/x", role="r", mode="0644", content="")


def test_two_roles_cannot_place_one_file(tmp_path: Path) -> None:
    place(tmp_path, "n1", "/etc/x", role="one", mode="0644", content="1")
    with pytest.raises(RenderError, match="n1: two would place /etc/x, which another role places already"):
        place(tmp_path, "n1", "/etc/x", role="two", mode="0644", content="2")


# Every file that a role templates is rendered.


def template_tasks(tasks: Any) -> Iterator[dict[str, Any]]:
    for task in tasks or []:
        for nested in ("block", "rescue", "always"):
            yield from template_tasks(task.get(nested))
        if "ansible.builtin.template" in task:
            yield task


# Roles whose templates are not files of a host as it is declared, with the reason.
NOT_RENDERED = {
    "package_mirror": "written only where a bundle is served, whose server says what the archive is called",
    "serving_image": "configuration of tools during a build; the build's own files are rendered",
}
ROLES = [
    role.name
    for role in sorted((ROOT / "roles").iterdir())
    if any(role.glob("templates/*")) and role.name not in NOT_RENDERED
]


@pytest.mark.parametrize("role", ROLES)
def test_a_role_renders_what_it_templates(role: str) -> None:
    """Either the task takes the list that is rendered or a part of it, or its file is in it as it is."""
    folder = ROOT / "roles" / role
    assert (folder / "tasks/render.yml").is_file()
    assert f"__{role}_files" in (folder / "tasks/render.yml").read_text()
    assert re.search(rf"\b{role}\b", (ROOT / "playbooks/render.yml").read_text())
    listed = (folder / "vars/main.yml").read_text()
    parts = str(yaml.safe_load(listed)[f"__{role}_files"])
    for path in sorted((folder / "tasks").glob("*.yml")):
        for task in template_tasks(yaml.safe_load(path.read_text())):
            given = task["ansible.builtin.template"]
            taken = re.match(rf"{{{{ (__{role}_\w+)", str(task.get("loop", given["src"])))
            if taken and (taken[1] == f"__{role}_files" or re.search(rf"\b{taken[1]}\b", parts)):
                continue
            entry = f'{{src: {given["src"]}, dest: {given["dest"]}, mode: "{given["mode"]}"}}'
            assert entry in listed, f"{path}: {task['name']}"
