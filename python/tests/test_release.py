"""Releases that can work, and every reason why one cannot."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml
from ansible.errors import AnsibleFilterError
from typer.testing import CliRunner

from splitrail import release_rules
from splitrail.ansible.filter.splitrail_release import splitrail_release, splitrail_releases_agree
from splitrail.cli import app
from splitrail.release import ReleaseError, load, parse, together

ROOT = Path(__file__).parents[2]
RELEASES = ROOT / "inventories/releases"
OWN = ["cpu", "h200", "mi325x-rocm7.0", "mi325x-upstream"]
Raw = dict[str, Any]
DROP = object()


def raw(name: str) -> Raw:
    loaded: Raw = yaml.safe_load((RELEASES / f"{name}.yml").read_text(encoding="utf-8"))
    return loaded


def changed(release: Raw, changes: dict[str, Any]) -> Raw:
    """A copy with the keys at dotted places set, or dropped; ``+`` at the end of a place adds to a list."""
    copied = copy.deepcopy(release)
    for place, value in changes.items():
        *folders, last = place.removesuffix("+").split(".")
        at: Any = copied
        for folder in folders:
            at = at[int(folder) if isinstance(at, list) else folder]
        key: Any = int(last) if isinstance(at, list) else last
        if value is DROP:
            at.pop(key)
        elif place.endswith("+"):
            at[key].append(value)
        else:
            at[key] = value
    return copied


@pytest.mark.parametrize("name", OWN)
def test_the_releases_that_come_along_are_good(name: str) -> None:
    assert load(RELEASES / f"{name}.yml").name == name


ROCM = "mi325x-rocm7.0"
UPSTREAM = "mi325x-upstream"
COMMIT = "da3fac2afcb55df7605f619ee19b37f4505bd4e4"


# Each of these was a release that somebody could have written. (release, changes, what the refusal says)
BAD: list[tuple[str, dict[str, Any], str]] = [
    # Wheels of a variant are there for one Python and some versions.
    (
        ROCM,
        {"python": "3.11", "python_full": ""},
        "python: 3.11: wheels of the variant rocm700 exist for Python 3.12 only",
    ),
    (
        ROCM,
        {"vllm": "0.19.0+rocm700", "wheels": ["ray==2.55.1", "vllm==0.19.0+rocm700"]},
        "vllm: 0.19.0+rocm700: wheels of the variant rocm700 exist for 0.14.0 to 0.18.0 only",
    ),
    (
        ROCM,
        {"vllm": "0.13.0+rocm700", "wheels": ["ray==2.55.1"]},
        "vllm: 0.13.0+rocm700: wheels of the variant rocm700 exist for 0.14.0 to 0.18.0 only",
    ),
    (
        ROCM,
        {"vllm": "0.18.0", "wheels": ["ray==2.55.1", "vllm==0.18.0"]},
        "without a variant pip takes the CUDA wheel",
    ),
    (
        ROCM,
        {"rocm": "7.2.3", "driver": "30.30.3"},
        "rocm: 7.2.3: vLLM's variant rocm700 is built for ROCm 7.0.0, 7.0.1, 7.0.2",
    ),
    (
        ROCM,
        {"wheel_index": "https://wheels.vllm.ai/rocm/0.17.0/rocm700"},
        "set it to https://wheels.vllm.ai/rocm/0.18.0/rocm700",
    ),
    (ROCM, {"wheel_index": ""}, "wheel_index is missing: PyPI has no wheel of 0.18.0+rocm700"),
    ("cpu", {"vllm": "0.29.0+rocm723"}, "is a wheel for ROCm, and the release has no rocm"),
    (ROCM, {"python_full": "3.11.9"}, "python_full: 3.11.9 is no Python 3.12"),
    # Driver and ROCm.
    (ROCM, {"driver": "30.10.1"}, "driver: 30.10.1 does not go with ROCm 7.0.0: set it to 30.10"),
    (ROCM, {"rocm": "7.0.1"}, "driver: 30.10 does not go with ROCm 7.0.1: set it to 30.10.1"),
    (ROCM, {"rocm": "7.0.2"}, "driver: 30.10 does not go with ROCm 7.0.2: set it to 30.10.2"),
    (ROCM, {"rocm": "7.9.0"}, "rocm: 7.9.0: it is not known which driver goes with it"),
    (ROCM, {"driver": DROP}, "driver is missing: rocm and driver are a pair"),
    ("cpu", {"driver": "30.10"}, "rocm is missing: rocm and driver are a pair"),
    (ROCM, {"host": DROP}, "host is missing: on a ROCm platform"),
    (
        ROCM,
        {"host.driver_package": "1:6.14.14.30100100-2212064"},
        "host.driver_package: 1:6.14.14.30100100-2212064 is not amdgpu-dkms of the driver 30.10",
    ),
    (
        ROCM,
        {"host.repositories.0.url": "https://repo.radeon.com/amdgpu/30.10.1/ubuntu"},
        "host.repositories.amdgpu: https://repo.radeon.com/amdgpu/30.10.1/ubuntu is not of driver 30.10",
    ),
    (
        ROCM,
        {"host.repositories.1.url": "https://repo.radeon.com/rocm/apt/7.0.2"},
        "set it to https://repo.radeon.com/rocm/apt/7.0",
    ),
    (ROCM, {"host.repositories.0.name": "gpu"}, "host.repositories: none is named amdgpu"),
    (
        ROCM,
        {"host.kernels": {"ubuntu-24.04": ["6.17"]}},
        "host.kernels.ubuntu-24.04: 6.17: AMD does not support it with ROCm 7.0.0, but 6.8, 6.14",
    ),
    (ROCM, {"host.kernels.debian-12": ["6.1"]}, "host.kernels.debian-12: 6.1: AMD does not support it"),
    (ROCM, {"host.key.fingerprint": "9386B48A1A693C5C"}, "host.key.fingerprint: '9386B48A1A693C5C'"),
    # UCX.
    (
        ROCM,
        {"sources.ucx.configure": ["--with-verbs"]},
        "sources.ucx.configure: '--with-verbs' lacks --with-rocm: GPU memory would travel through",
    ),
    (ROCM, {"sources.ucx.configure": ["--with-rocm"]}, "lacks --with-verbs: KV caches would travel over TCP"),
    (ROCM, {"sources.ucx.configure+": "--without-rocm"}, "--without-rocm takes the transport out again"),
    (ROCM, {"sources.ucx": DROP}, "sources.ucx is missing"),
    # NIXL.
    (ROCM, {"sources.rixl": DROP}, "sources: neither rixl nor nixl"),
    (
        UPSTREAM,
        {"vllm": "0.26.0+rocm723", "ray": "2.58.1"},
        "sources.nixl: vLLM 0.26.0+rocm723 imports RIXL under the name rixl and knows no other",
    ),
    (ROCM, {"wheels+": "rixl==0.1.0"}, "rixl==0.1.0: PyPI's package of this name is not AMD's RIXL"),
    (ROCM, {"wheels+": "nixl-cu12==1.5.1"}, "nixl-cu12==1.5.1: a CUDA build"),
    ("cpu", {"wheels+": "RIXL==0.1.0"}, "RIXL==0.1.0: PyPI's package of this name is not AMD's RIXL"),
    # Ray and vLLM.
    (
        ROCM,
        {"ray": "2.60.0", "wheels.0": "ray==2.60.0"},
        "vllm: 0.18.0+rocm700 is too old for Ray 2.60.0, which takes 0.29.0 or later",
    ),
    (ROCM, {"ray": "2.54.0"}, "ray: 2.54.0: it is not known which vLLM goes with it: take one of 2.55.1"),
    ("h200", {"ray": "2.55.1", "wheels": ["nixl==1.3.1"]}, "Ray 2.55.1 was seen to fail beside vLLM 0.20.2"),
    (
        "h200",
        {"nixl": "1.3.0", "wheels": ["nixl==1.3.0"]},
        "nixl: 1.3.0 is too old for Ray 2.58.1, which takes 1.3.1 or later",
    ),
    # What may change by itself.
    (ROCM, {"sources.ucx.commit": "da3fac2a"}, "sources.ucx.commit: 'da3fac2a' is an abbreviated commit"),
    (ROCM, {"sources.rixl.commit": "develop"}, "sources.rixl.commit: 'develop' is a branch or tag"),
    (ROCM, {"sources.ucx.commit": DROP}, "sources.ucx.sha256: neither commit nor sha256"),
    (
        ROCM,
        {"sources.ucx.commit": DROP, "sources.ucx.sha256": "da3f"},
        "sources.ucx.sha256: 'da3f' is no SHA-256: write all 64 digits",
    ),
    (ROCM, {"unpinned.0": DROP}, "base_image.ref: 'docker.io/rocm/dev-ubuntu-22.04:7.0-complete' can be"),
    (ROCM, {"unpinned": []}, "wheels: not the whole lock, so the rest is resolved anew"),
    (ROCM, {"unpinned": []}, "build_tools: meson, ninja,"),
    ("cpu", {"unpinned": DROP}, "wheel_sha256: missing for"),
    (ROCM, {"sources.triton.commit": COMMIT}, "unpinned: sources.triton.commit is pinned, or not a part"),
    (ROCM, {"unpinned.0.why": ""}, "unpinned.0.why: '': String should have at least 1 character"),
    # The image.
    (
        ROCM,
        {"base_image.ref": "docker.io/rocm/dev-ubuntu-22.04:7.1-complete"},
        "base_image.ref: docker.io/rocm/dev-ubuntu-22.04:7.1-complete has not ROCm 7.0.0",
    ),
    (ROCM, {"glibc": "manylinux_2_39_x86_64"}, "glibc: manylinux_2_39_x86_64 is newer than glibc 2.35"),
    (ROCM, {"base_image.ref": ""}, "base_image.ref is missing"),
    ("cpu", {"base_image.packages": []}, "base_image.packages is empty"),
    ("cpu", {"containerfile": ""}, "an image needs a template"),
    ("h200", {"containerfile": "h200/Containerfile.j2"}, "a host needs none"),
    # The lock.
    ("cpu", {"wheels+": "idna>=3"}, "wheels: 'idna>=3' names no one version"),
    ("cpu", {"wheels+": "ray==2.59.0"}, "wheels: ray==2.59.0 and ray==2.60.0: keep one"),
    ("cpu", {"torch": "2.12.0+cpu"}, "wheels: torch==2.13.0+cpu, but torch is 2.12.0+cpu: make them agree"),
    ("cpu", {"image_test.versions.nixl": "1.5.0"}, "image_test.versions.nixl: 1.5.0, but wheels has nixl==1"),
    # The form.
    ("cpu", {"wheel": []}, "wheel is not a key of a release: do you mean wheels?"),
    (ROCM, {"sources.ucx.comit": COMMIT}, "sources.ucx.comit is not a key of a release: do you mean commit?"),
    ("cpu", {"image_test": DROP}, "image_test is missing: add it"),
    ("cpu", {"python": 3.11}, "python: 3.11 is no string: quote it"),
    ("cpu", {"name": "CPU only"}, "name: 'CPU only': does not look like one"),
    (ROCM, {"host.repositories.0.url": "repo.radeon.com"}, "host.repositories.0.url: 'repo.radeon.com'"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "changes", "says"), BAD, ids=[f"{n}: {says[:60]}" for n, _, says in BAD])
def test_each_fault_is_refused_by_name(name: str, changes: dict[str, Any], says: str) -> None:
    parse(raw(name))
    with pytest.raises(ReleaseError) as error:
        parse(changed(raw(name), changes), f"{name}.yml")
    assert says in str(error.value)
    assert all(line.startswith(f"release {name}.yml: ") for line in str(error.value).splitlines())


def test_all_faults_are_named_at_once() -> None:
    bad = changed(raw(ROCM), {"driver": "30.10.1", "ray": "2.54.0", "sources.ucx.configure": []})
    with pytest.raises(ReleaseError) as error:
        parse(bad)
    assert [fault.partition(":")[0] for fault in error.value.faults] == [
        *("wheels", "ray", "driver", "sources.ucx.configure", "sources.ucx.configure"),
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"sources.ucx": {"url": "https://example.org/ucx.tar.gz", "sha256": "0" * 64,
                         "configure": ["--with-rocm", "--with-verbs"]}},
        {"host.repositories.0.url": "http://10.0.0.1:8080/apt/amdgpu"},
        {"host.key.sha256": ""},
        {"host.key.url": "file:///srv/bundle/rocm.gpg.key"},
        {"wheel_index": "http://10.0.0.1:8080/simple"},
        {"host.kernels": {"ubuntu-24.04": ["6.8"]}},
        {"unpinned.4": DROP},
        {"vllm": "0.14.0+rocm700", "wheels": [], "wheel_index": "http://10.0.0.1/", "ray": DROP},
    ],
)  # fmt: skip
def test_a_mirror_or_a_narrower_choice_is_no_fault(changes: dict[str, Any]) -> None:
    bad = changed(raw(ROCM), changes)
    if "vllm" in changes:
        bad["image_test"]["versions"] = {}
    parse(bad)


@pytest.mark.parametrize(
    ("version", "is_"),
    [("0.18.0+rocm700", (0, 18, 0)), ("1.22.0-rc2", (1, 22, 0)), ("2.9", (2, 9)), ("x", ())],
)
def test_numbers_of_versions(version: str, is_: tuple[int, ...]) -> None:
    assert release_rules.number(version) == is_


def test_every_table_names_its_source() -> None:
    assert all(table["source"] for table in release_rules.tables().values())


def test_prefill_and_decode_run_one_release() -> None:
    one = parse(raw(ROCM))
    together({"mi325x-1": one, "mi325x-2": parse(raw(ROCM))})
    other = parse(changed(raw(ROCM), {"sources.ucx.commit": "a" * 40}))
    with pytest.raises(ReleaseError) as error:
        together({"mi325x-1": one, "mi325x-2": other})
    assert str(error.value) == (
        f"release mi325x-1 and mi325x-2: sources.ucx: {COMMIT} on mi325x-1, {'a' * 40} on mi325x-2: "
        "prefill and decode must run one release: give them the same"
    )
    with pytest.raises(
        ReleaseError, match=r"vllm: 0\.18\.0\+rocm700 on prefill, 0\.29\.0\+rocm723 on decode"
    ):
        together({"prefill": one, "decode": parse(raw(UPSTREAM))})


# The Containerfile builds UCX with exactly what the release says, whichever way it gets it.
def test_the_containerfile_builds_with_the_releases_flags() -> None:
    release = raw(ROCM)
    text = (ROOT / "templates/containerfiles" / release["containerfile"]).read_text(encoding="utf-8")
    environment = jinja2.Environment(trim_blocks=True, undefined=jinja2.StrictUndefined, autoescape=False)  # noqa: S701
    rendered = environment.from_string(text).render(release=release)
    call = rendered.partition("../configure ")[2].partition("&&")[0].replace("\\\n", " ").split()
    assert [flag for flag in call if not flag.startswith("--prefix=")] == release["sources"]["ucx"][
        "configure"
    ]


def test_the_filter_gives_back_what_it_got_and_names_what_is_loose(
    capsys: pytest.CaptureFixture[str],
) -> None:
    release = raw(ROCM)
    assert splitrail_release(release, "x.yml") is release
    said = " ".join(capsys.readouterr().err.split())
    assert "release mi325x-rocm7.0: NOT PINNED: sources.triton.commit: abbreviated" in said
    with pytest.raises(
        AnsibleFilterError, match=r"release x\.yml: driver: 30\.10\.1 does not go with ROCm 7\.0\.0"
    ):
        splitrail_release(changed(release, {"driver": "30.10.1"}), "x.yml")


def test_the_filter_compares_the_releases_of_hosts() -> None:
    assert splitrail_releases_agree({"a": raw(ROCM), "b": raw(ROCM)})
    with pytest.raises(AnsibleFilterError, match="platform: mi325x on a, cpu on b"):
        splitrail_releases_agree({"a": raw(ROCM), "b": raw("cpu")})


# The command.


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["release", "check", *arguments])


def test_check_names_what_is_not_pinned() -> None:
    done = run(str(RELEASES / "mi325x-rocm7.0.yml"))
    assert done.exit_code == 0
    assert "ok   mi325x-rocm7.0.yml: 5 parts not pinned" in done.output
    assert "not pinned: sources.triton.commit: abbreviated" in done.output


def test_check_refuses(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yml"
    bad.write_text(yaml.safe_dump(changed(raw(ROCM), {"driver": "30.10.1"})))
    broken = tmp_path / "broken.yml"
    broken.write_text("name: [")
    done = run(str(bad), str(broken), "--json")
    assert done.exit_code == 1
    document = json.loads(done.stdout)
    assert not document["ok"]
    assert document["faults"][0].startswith("release bad.yml: driver: 30.10.1 does not go with")
    assert document["faults"][1].startswith("release broken.yml: cannot be read: ")


def test_check_together() -> None:
    files = [str(RELEASES / f"{name}.yml") for name in ("cpu", "h200")]
    assert run(*files).exit_code == 0
    done = run(*files, "--together")
    assert done.exit_code == 1
    assert "FAIL release cpu.yml and h200.yml: platform: cpu on cpu.yml, h200 on h200.yml" in done.output


def test_check_outside_of_a_project(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "splitrail", "release", "check"],
        cwd=tmp_path, capture_output=True, text=True, check=False, env={**os.environ},
    )  # fmt: skip
    assert done.returncode == 2
    assert "splitrail release check: " in done.stderr
