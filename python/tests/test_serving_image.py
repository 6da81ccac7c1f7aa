"""What a serving image must prove before it is published, the list of what is in it, and how it is built."""

from __future__ import annotations

import copy
import ctypes.util
import importlib.util
import json
import re
import stat
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import jinja2
import pytest
import yaml
from ansible.plugins.filter.urlsplit import split_url
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from splitrail.ansible.filter.splitrail_provenance import FilterModule

ROOT = Path(__file__).parents[2]
ROCM, UPSTREAM = "mi325x-rocm7.0", "mi325x-upstream"
# Lines of `ucx_info -c -a`, UCX 1.13.1 of Debian 12 on a machine without an RDMA device.
UCX_SETTINGS = """\
#
# UCX global configuration
#
UCX_NET_DEVICES=all
UCX_TLS=all
UCX_IB_REG_METHODS=rcache,odp,direct
UCX_RC_VERBS_MAX_NUM_EPS=256
UCX_RC_MLX5_TX_MAX_BB=-1
UCX_TCP_TX_SEG_SIZE=8K
"""


def program(path: str) -> ModuleType:
    """A program that no package has, as a module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def image_test() -> ModuleType:
    return program("roles/serving_image/files/image_test.py")


@pytest.fixture
def sbom() -> ModuleType:
    return program("roles/serving_image/files/sbom.py")


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``command("ucx_info", text, code)`` puts a program first on PATH that prints this and ends so."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=":")

    def make(name: str, text: str, code: int = 0) -> None:
        (folder / f"{name}.txt").write_text(text)
        file = folder / name
        file.write_text(f'#!/bin/sh\ncat "$0.txt"\nexit {code}\n')
        file.chmod(file.stat().st_mode | stat.S_IXUSR)

    return make


def distributions(folder: Path, *named: str) -> Any:
    """A replacement of importlib.metadata.distributions that finds these, written as name==version."""
    for each in named:
        name, _, version = each.partition("==")
        info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return lambda: metadata.Distribution.discover(path=[str(folder)])


# The image test. Each check is seen to pass and to fail.


def test_transports_are_read_from_the_settings_of_loaded_modules(
    image_test: ModuleType, command: Any
) -> None:
    command("ucx_info", UCX_SETTINGS)
    found = image_test.ucx_checks(["rc_verbs", "rc_mlx5", "rocm_copy"])
    assert [(each["subject"], each["ok"], each["measured"]) for each in found] == [
        ("rc_verbs", True, "loads"),
        ("rc_mlx5", True, "loads"),
        ("rocm_copy", False, "absent"),
    ]


def test_a_ucx_info_that_fails_or_is_missing_is_not_ok(
    image_test: ModuleType, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    command("ucx_info", "", 3)
    (found,) = image_test.ucx_checks(["rc_verbs"])
    assert not found["ok"]
    assert "ucx_info -c -a ended with 3" in found["measured"]
    monkeypatch.setenv("PATH", "/nowhere")
    (found,) = image_test.ucx_checks(["rc_verbs"])
    assert found["measured"].startswith("FileNotFoundError")


def test_a_provider_must_be_registered_and_its_library_must_load(
    image_test: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_test, "PROVIDERS", tmp_path)
    monkeypatch.setattr(image_test, "PROVIDER_LIBRARIES", [tmp_path])

    def measured() -> str:
        found: str = image_test.outcome(lambda: image_test.provider("mlx5"))
        return found

    assert measured() == f"LookupError: {tmp_path}/mlx5.driver is missing"
    (tmp_path / "mlx5.driver").write_text("driver mlx5\n")
    assert measured() == f"LookupError: {tmp_path}/mlx5.driver names mlx5, and libmlx5-rdmav*.so is nowhere"
    library = tmp_path / "libmlx5-rdmav34.so"
    library.write_text("half a download")
    assert measured().startswith("OSError: ")
    library.unlink()
    found = ctypes.util.find_library("c")
    assert found
    library.symlink_to(
        next(
            Path(line.split()[-1])
            for line in Path("/proc/self/maps").read_text().splitlines()
            if line.endswith(found)
        )
    )
    assert measured() == "loads"


@pytest.mark.parametrize(
    "slipped",
    [
        "nvidia-cublas-cu12==12.8.4.1",
        "torch==2.9.1+cu128",
        "nixl==1.0.0",
        "nixl-cu13==1.0.0",
        "NIXL-cu12==1.0.0",
    ],
)
def test_a_cuda_wheel_is_found(
    image_test: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slipped: str
) -> None:
    good = ["torch==2.9.1+rocm7.0", "vllm==0.18.0+rocm700", "nixl-rocm==1.4.0", "nvidia-ml-py==13.580.82"]
    monkeypatch.setattr(metadata, "distributions", distributions(tmp_path / "good", *good))
    assert image_test.cuda_wheels() == "none"
    monkeypatch.setattr(metadata, "distributions", distributions(tmp_path / "bad", *good, slipped))
    assert image_test.cuda_wheels() == slipped


@pytest.mark.parametrize(("hip", "ok"), [("7.0.51831", True), (None, False)])
def test_torch_must_be_built_for_hip(
    image_test: ModuleType, monkeypatch: pytest.MonkeyPatch, hip: str | None, ok: bool
) -> None:
    torch = SimpleNamespace(version=SimpleNamespace(hip=hip), __version__="2.9.1")
    monkeypatch.setitem(sys.modules, "torch", torch)
    assert (image_test.outcome(image_test.hip_build) == "loads") is ok


class Agent:
    """NIXL's interface as far as the test uses it: one plugin, whose library is missing or not."""

    loads = True

    def __init__(self, name: str, config: list[str]) -> None:
        assert (name, config) == ("image-test", [])

    def get_plugin_list(self) -> list[str]:
        return ["UCX"]

    def get_plugin_mem_types(self, plugin: str) -> list[str]:
        # NIXL only warns of a plugin that it cannot load.
        return ["DRAM"] if plugin == "UCX" and self.loads else []


def test_a_plugin_must_be_there_and_load(image_test: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    api = SimpleNamespace(nixl_agent=Agent, nixl_agent_config=lambda backends: backends)
    monkeypatch.setitem(sys.modules, "rixl", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "rixl._api", api)

    def measured(plugin: str) -> str:
        found: str = image_test.outcome(lambda: image_test.nixl_plugin("rixl._api", plugin))
        return found

    assert measured("UCX") == "loads"
    assert measured("GDS") == "LookupError: no plugin GDS among ['UCX']"
    monkeypatch.setattr(Agent, "loads", False)
    assert measured("UCX").startswith("LookupError: plugin UCX does not load")


def test_what_was_built_must_be_what_the_release_names(
    image_test: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_test, "SHARE", tmp_path)
    (tmp_path / "ucx.commit").write_text("a" * 40 + "\n")
    (tmp_path / "triton.commit").write_text("f9e5bf54" + "0" * 32)
    (tmp_path / "archive.commit").write_text(f"sha256:{'c' * 64}\n")
    sources = {
        "ucx": {"commit": "a" * 40},
        "triton": {"commit": "f9e5bf54"},
        "archive": {"sha256": "c" * 64},
        "other": {"commit": "b" * 40},
    }
    found = image_test.source_checks(sources)
    assert [each["ok"] for each in found] == [True, True, True, False]
    assert found[3]["measured"].startswith("FileNotFoundError")
    (tmp_path / "ucx.commit").write_text("b" * 40)
    assert image_test.source_checks({"ucx": sources["ucx"]})[0]["measured"] == "b" * 40


VALIDATORS = {
    "print('{\"faults\": []}')": ["Ray and vLLM take it"],
    'print(\'{"faults": ["x: no", "y: no"]}\'); raise SystemExit(1)': ["x: no", "y: no"],
    "import no_such_module": ["No module named 'no_such_module'"],
    "print('{\"faults\": []}'); raise SystemExit(2)": ["ended with 2"],
}


@pytest.mark.parametrize("text", VALIDATORS)
def test_ray_and_vllm_must_take_the_serve_config(image_test: ModuleType, tmp_path: Path, text: str) -> None:
    validator = tmp_path / "validator.py"
    validator.write_text(text)
    found = image_test.config_checks("applications: []", str(validator))
    assert all(says in each["measured"] for each, says in zip(found, VALIDATORS[text], strict=True))
    assert all(each["ok"] for each in found) is (VALIDATORS[text] == ["Ray and vLLM take it"])


def test_a_release_asks_for_every_check_that_it_names(
    image_test: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(image_test, "PROVIDERS", Path("/nowhere"))
    release = yaml.safe_load((ROOT / f"inventories/releases/{ROCM}.yml").read_text())
    found = image_test.examine(release)
    # Nothing of all this is here, so all but this Python's own version must fail.
    assert {each["name"].removeprefix("serving_image.") for each in found if not each["ok"]} >= {
        *("version", "import", "nixl_plugin", "verbs_provider", "ucx_transport", "source", "hip"),
    }
    assert "serving_image.cuda_wheels" in {each["name"] for each in found}
    assert not any("cuda" in each["name"] for each in image_test.examine({**release, "rocm": ""}))


# The bill of materials.


@pytest.fixture
def share(sbom: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Any) -> Path:
    """An image as the program sees it: two wheels, two packages, one of them removed, and a source."""
    folder = tmp_path / "share"
    folder.mkdir()
    monkeypatch.setattr(sbom, "SHARE", folder)
    system = {"ID": "ubuntu", "VERSION_ID": "22.04"}
    monkeypatch.setattr(sbom.platform, "freedesktop_os_release", lambda: system)
    wheels = distributions(tmp_path / "site", "vLLM==0.18.0+rocm700", "typing_extensions==4.16.0")
    monkeypatch.setattr(metadata, "distributions", wheels)
    command("dpkg-query", "installed\tlibnuma1\t1:2.0.14-3ubuntu2\tamd64\nconfig-files\told\t1\tamd64\n")
    (folder / "ucx.commit").write_text("a" * 40 + "\n")
    provenance = {
        "release": "small",
        "base_image": {"source": "registry", "ref": f"docker.io/rocm/x@sha256:{'d' * 64}"},
        "sources": {"ucx": {"url": "https://example.org/ucx.git", "configure": ["--with-verbs"]}},
    }
    (folder / "provenance.json").write_text(json.dumps(provenance))
    return folder


def test_the_bill_meets_the_official_schema_and_names_every_part(sbom: ModuleType, share: Path) -> None:
    sbom.main()
    text = (share / "sbom.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    parts = [part["bom-ref"] for part in json.loads(text)["components"]]
    assert parts == [
        "base-image",
        "pkg:deb/ubuntu/libnuma1@1%3A2.0.14-3ubuntu2?arch=amd64&distro=ubuntu-22.04",
        f"pkg:generic/cpython@{sys.version.split()[0]}",
        f"pkg:generic/ucx@{'a' * 40}",
        "pkg:pypi/typing-extensions@4.16.0",
        "pkg:pypi/vllm@0.18.0+rocm700",
    ]
    sbom.main()
    assert (share / "sbom.json").read_text() == text


def test_the_schema_would_refuse_another_form(sbom: ModuleType, share: Path) -> None:
    provenance = json.loads((share / "provenance.json").read_text())
    bill = sbom.document(provenance)
    bill["components"][0]["kind"] = "wheel"
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(bill)) is not None


def test_a_bill_without_a_sources_commit_is_not_written(sbom: ModuleType, share: Path) -> None:
    (share / "ucx.commit").unlink()
    with pytest.raises(FileNotFoundError, match=r"ucx\.commit"):
        sbom.main()
    assert not (share / "sbom.json").exists()


def test_a_bill_without_packages_is_not_written(sbom: ModuleType, share: Path, command: Any) -> None:
    command("dpkg-query", "", 2)
    with pytest.raises(sbom.subprocess.CalledProcessError):
        sbom.main()
    assert not (share / "sbom.json").exists()


# Where a build fetches from.

PLACES = {"git": "", "wheels": "", "apt": "", "registry": "", "python": ""}
SIMPLE = "http://10.0.0.1:8090/simple"


def configuration(name: str, **places: str) -> str:
    """A file of configuration that is mounted over a build, without its head line."""
    environment = jinja2.Environment(trim_blocks=True, undefined=jinja2.StrictUndefined, autoescape=False)  # noqa: S701
    environment.filters["urlsplit"] = split_url
    text = (ROOT / f"roles/serving_image/templates/{name}.j2").read_text(encoding="utf-8")
    image = {"source": "registry", "ref": "docker.io/rocm/dev-ubuntu-22.04:7.0-complete"}
    said = environment.from_string(text).render(
        __serving_image_place=PLACES | places, serving_image_release={"base_image": image}
    )
    return said.partition("\n")[2].strip()


@pytest.mark.parametrize(
    ("name", "places", "says"),
    [
        ("gitconfig", {"git": "http://h/git/"}, '[url "http://h/git/"]\n    insteadOf = https://'),
        ("pip.conf", {"wheels": SIMPLE}, f"[global]\nindex-url = {SIMPLE}\ntrusted-host = 10.0.0.1"),
        ("pip.conf", {"wheels": "https://h/simple"}, "[global]\nindex-url = https://h/simple"),
        ("uv.toml", {"wheels": SIMPLE}, f'[[index]]\nurl = "{SIMPLE}"\ndefault = true'),
        ("uv.toml", {"python": "http://h/python"}, 'python-install-mirror = "http://h/python"'),
        ("uv.toml", {"python": "http://h/l.json"}, 'python-downloads-json-url = "/etc/uv/downloads.json"'),
        ("sources.list", {"apt": "http://h/apt"}, "deb [trusted=yes] http://h/apt ./"),
        (
            "sources.list",
            {"apt": "deb [signed-by=/k] http://h/u jammy main\n"},
            "deb [signed-by=/k] http://h/u jammy main",
        ),
        (
            "registries.conf",
            {"registry": "10.0.0.1:8090"},
            '[[registry]]\nlocation = "docker.io"\n\n'
            '[[registry.mirror]]\nlocation = "10.0.0.1:8090"\ninsecure = true',
        ),
    ],
)
def test_another_place_is_said_in_each_tools_own_words(name: str, places: dict[str, str], says: str) -> None:
    assert configuration(name, **places) == says
    assert configuration(name) == ""


# The Containerfile of the platform mi325x.


def rendered(release: dict[str, Any]) -> dict[str, str]:
    """The stages of a release's Containerfile, by name."""
    text = (ROOT / "templates/containerfiles" / release["containerfile"]).read_text(encoding="utf-8")
    environment = jinja2.Environment(trim_blocks=True, undefined=jinja2.StrictUndefined, autoescape=False)  # noqa: S701
    whole = environment.from_string(text).render(release=release).replace("\\\n", " ")
    stages = re.split(r"^(?=FROM )", whole, flags=re.MULTILINE)[1:]
    return {stage.splitlines()[0].split()[-1]: stage for stage in stages}


@pytest.fixture
def rocm() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / f"inventories/releases/{ROCM}.yml").read_text())
    return loaded


def test_the_stages_stand_on_each_other(rocm: dict[str, Any]) -> None:
    upstream = yaml.safe_load((ROOT / f"inventories/releases/{UPSTREAM}.yml").read_text())
    on = {name: stage.split()[1] for name, stage in rendered(rocm).items()}
    on.pop("base")
    assert on == {
        **{"tools": "base", "ucx": "tools", "rixl": "ucx"},
        **{"triton": "tools", "wheels": "base", "final": "wheels"},
    }
    # vLLM's later wheels bring a Triton for ROCm.
    assert list(rendered(upstream)) == ["base", "tools", "ucx", "nixl", "wheels", "final"]


@pytest.mark.parametrize(
    ("place", "value", "changes"),
    [
        (("sources", "ucx", "commit"), "a" * 40, {"ucx"}),
        (("sources", "ucx", "configure"), ["--with-rocm=/opt/rocm", "--with-verbs"], {"ucx"}),
        (("sources", "rixl", "commit"), "a" * 40, {"rixl"}),
        (("sources", "rixl", "meson"), ["-Dbuild_tests=false"], {"rixl"}),
        (("build_tools", "rixl"), ["meson==1.12.1"], {"rixl"}),
        (("glibc",), "manylinux_2_34_x86_64", {"rixl"}),
        (("sources", "triton", "commit"), "a" * 40, {"triton"}),
        (("build_tools", "triton"), ["cmake==4.2.0"], {"triton"}),
        (("ray",), "2.56.1", {"wheels"}),
        (("wheel_index",), "https://example.org/simple", {"wheels"}),
        (("wheels_locked",), True, {"wheels"}),
        (("python_full",), "3.12.13", {"base"}),
        (("uv",), "0.9.10", {"base"}),
        (("base_image", "ref"), "docker.io/rocm/x:1", {"base"}),
    ],
    ids=lambda value: ".".join(value) if isinstance(value, tuple) else None,
)
def test_a_changed_pin_changes_one_stage(
    rocm: dict[str, Any], place: tuple[str, ...], value: Any, changes: set[str]
) -> None:
    other = copy.deepcopy(rocm)
    at = other
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = value
    before, after = rendered(rocm), rendered(other)
    assert {name for name in before if before[name] != after[name]} == changes


def test_each_flag_of_ucx_has_its_module_looked_for(rocm: dict[str, Any]) -> None:
    for flags, modules in (
        (["--with-verbs", "--with-rocm=/opt/rocm"], {"libuct_ib.so", "libuct_rocm.so"}),
        (["--with-verbs"], {"libuct_ib.so"}),
        (["--enable-mt"], set()),
    ):
        rocm["sources"]["ucx"]["configure"] = flags
        assert set(re.findall(r"libuct_\w+\.so", rendered(rocm)["ucx"])) == modules


def test_upstreams_wheel_is_built_with_the_releases_options() -> None:
    release = yaml.safe_load((ROOT / f"inventories/releases/{UPSTREAM}.yml").read_text())
    stage = rendered(release)["nixl"]
    for option in release["sources"]["nixl"]["meson"]:
        assert f" {option} " in stage
        assert f"--config-setting=setup-args={option}" in stage


def test_an_archive_is_checked_before_it_is_unpacked(rocm: dict[str, Any]) -> None:
    archive = {"url": "https://example.org/ucx.tar.gz", "sha256": "b" * 64}
    rocm["sources"]["ucx"] |= archive
    del rocm["sources"]["ucx"]["commit"]
    stage = rendered(rocm)["ucx"]
    assert stage.index(archive["url"]) < stage.index(archive["sha256"]) < stage.index("tar --extract")


def test_a_label_names_the_source_and_the_version_of_this_suite() -> None:
    filters = FilterModule().filters()
    assert filters["splitrail_version"]({}) == metadata.version("splitrail")
    assert filters["splitrail_source_id"]({"commit": "a" * 40, "sha256": ""}) == "a" * 40
    assert filters["splitrail_source_id"]({"sha256": "b" * 64}) == f"sha256:{'b' * 64}"
    with pytest.raises(KeyError):
        filters["splitrail_source_id"]({})


@pytest.mark.parametrize(
    ("change", "found"), [(True, "loads"), (False, "LookupError: .*dictConfig closes it")]
)
def test_serves_log_outlives_a_library_that_sets_up_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: bool, found: str
) -> None:
    stands_in: dict[str, str] = program("molecule/serving_image_rocm/files/make_sources.py").RAY
    for name, text in stands_in.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    if change:
        template = (ROOT / "templates/containerfiles/cpu/Containerfile.j2").read_text()
        (edit,) = re.findall(r"sed -i ('[^']*memory_handler[^']*') \"\$file\"", template)
        log = tmp_path / "ray/serve/_private/logging_utils.py"
        subprocess.run(["sh", "-c", f"sed -i {edit} {log}"], check=True)
    # In a process of its own: dictConfig closes pytest's handlers too.
    code = "import image_test; print(image_test.outcome(image_test.serve_log))"
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}/roles/serving_image/files")
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert re.fullmatch(found, done.stdout.strip())
