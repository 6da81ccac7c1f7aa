"""A release: every pin that must agree, of one platform. Data of ``inventories/releases``.

``parse`` reads one and refuses what cannot work: keys that are missing or misspelt (here), and parts that do
not go together or may change by themselves (``release_rules``).
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from splitrail import release_rules

Version = Annotated[str, Field(pattern=r"^[0-9][0-9A-Za-z.+-]*$")]


class ReleaseError(ValueError):
    """A release that cannot be used; ``str()`` names the file, every key at fault, its value and the cure."""

    def __init__(self, where: str, faults: list[str]) -> None:
        super().__init__("\n".join(f"release {where}: {fault}" for fault in faults))
        self.where = where
        self.faults = faults


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class BaseImage(_Strict):
    """What the image stands on.

    ``apt``: bootstrapped from the build host's own sources; ``registry``: pulled; ``host``: no image is
    built, the wheels go beside the torch of a GPU host's own Python.
    """

    source: Literal["apt", "registry", "host"]
    packages: list[str] = []
    ref: str = ""


class Source(_Strict):
    """One thing that is built from source: a git repository at a commit, or an archive with its checksum."""

    url: str = Field(pattern=r"^(https?|git|ssh|file)://")
    commit: str = ""
    sha256: str = ""
    configure: list[str] = []
    meson: list[str] = []


class ImageTest(_Strict):
    """What the finished image must prove, on a host with neither GPU nor NIC."""

    versions: dict[str, str] = {}
    imports: list[str] = []
    # NIXL's Python interface; nixl._api when empty.
    nixl_module: str = Field(default="", pattern=r"^([A-Za-z_][\w.]*)?$")
    nixl_backends: list[str] = []
    nixl_plugins: list[str] = []
    ucx_transports: list[Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]] = []
    verbs_providers: list[Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]] = []


class AptKey(_Strict):
    """The key that signs the vendor's repositories. The fingerprint is what is trusted."""

    url: str = Field(pattern=r"^(https?|file)://")
    fingerprint: str = Field(pattern=r"^[0-9A-F]{40}$")
    sha256: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")


class AptRepository(_Strict):
    """One APT repository; its suite is the code name of the node's system."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    url: str = Field(pattern=r"^(https?|file)://")
    components: list[str] = ["main"]


class Host(_Strict):
    """What goes on the nodes themselves: the vendor's driver and tools."""

    key: AptKey
    # Origin in the repositories' own Release files; APT's pin is for it.
    origin: str = Field(min_length=1)
    repositories: list[AptRepository] = Field(min_length=1)
    driver_package: str = Field(min_length=1)
    packages: list[str] = []
    # Kernel series by system: {ubuntu-24.04: ["6.8", "6.14"]}.
    kernels: dict[str, list[str]] = Field(min_length=1)


class Unpinned(_Strict):
    """A part that does not yet say for good what it is, why, and how to pin it."""

    part: str = Field(min_length=1)
    why: str = Field(min_length=1)
    cure: str = Field(min_length=1)


class Release(_Strict):
    """The pins; the head of each file in ``inventories/releases`` explains the keys."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")
    platform: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    python: str = Field(pattern=r"^3\.\d+$")
    python_full: str = Field(default="", pattern=r"^(3\.\d+\.\d+)?$")
    glibc: str = Field(default="", pattern=r"^(manylinux_2_\d+_x86_64)?$")
    rocm: str = Field(default="", pattern=r"^(\d+\.\d+\.\d+)?$")
    driver: str = Field(default="", pattern=r"^(\d+(\.\d+)+)?$")
    ray: Version | None = None
    vllm: Version | None = None
    torch: Version | None = None
    nixl: Version | None = None
    base_image: BaseImage
    containerfile: str = ""
    uv: Version | None = None
    sources: dict[str, Source] = {}
    build_tools: dict[str, list[str]] = {}
    wheel_index: str = Field(default="", pattern=r"^((https?|file)://.*)?$")
    wheels_locked: bool = True
    wheels: list[str]
    wheel_sha256: dict[str, Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]] = {}
    image_test: ImageTest
    engine: dict[str, Any] = {}
    env: dict[str, str] = {}
    host: Host | None = None
    unpinned: list[Unpinned] = []


def parse(raw: object, where: str = "") -> Release:
    """Read a release from plain data; ``where`` is the file that messages name.

    Raises ReleaseError with everything that is wrong with it.
    """
    if not isinstance(raw, dict):
        raise ReleaseError(
            where or "?", [f"a release is a mapping, got {type(raw).__name__}: correct the file"]
        )
    name = where or str(raw.get("name", "without a name"))
    try:
        release = Release.model_validate(raw)
    except ValidationError as error:
        raise ReleaseError(name, [_explain(dict(fault)) for fault in error.errors()]) from error
    if faults := list(release_rules.faults(release)):
        raise ReleaseError(name, faults)
    return release


def load(path: Path) -> Release:
    """Read a release file. Raises ReleaseError, for a file that is no YAML too."""
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ReleaseError(
            path.name, [f"cannot be read: {' '.join(str(error).split())}: correct the file"]
        ) from error
    return parse(raw, path.name)


def together(releases: dict[str, Release]) -> None:
    """Check that engines of these releases can hand KV caches to each other; keys are hosts, pools or files.

    Raises ReleaseError naming each part that differs.
    """
    faults = release_rules.disagreements(releases)
    if faults:
        raise ReleaseError(" and ".join(releases), faults)


def _explain(fault: dict[str, Any]) -> str:
    place = ".".join(str(part) for part in fault["loc"]) or "the file"
    value = repr(fault["input"])
    if fault["type"] == "extra_forbidden":
        known = {field for model in _Strict.__subclasses__() for field in model.model_fields}
        near = get_close_matches(str(fault["loc"][-1]), known, n=1)
        return f"{place} is not a key of a release" + (f": do you mean {near[0]}?" if near else ": remove it")
    if fault["type"] == "missing":
        return f"{place} is missing: add it (cpu.yml explains the keys)"
    message = str(fault["msg"])
    if fault["type"] == "string_type":
        return f"{place}: {value} is no string: quote it"
    if fault["type"] == "string_pattern_mismatch":
        message = f"does not look like one (pattern {fault['ctx']['pattern']})"
    return f"{place}: {value}: {message}: correct it"
