"""What a bundle holds, and for what: the content of ``manifest.json``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

FORMAT = 1
NAME = "manifest.json"
SIGNATURE = "manifest.json.sig"
KEY = "key.asc"

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Kind = Literal["deb", "apt-index", "wheel", "git", "image", "model"]


class BundleError(Exception):
    """Nothing was done, or not all of it; ``str()`` holds a line a fault, each with its cure.

    ``code`` is the exit code: 1 where something that was looked for is missing or wrong, 2 where nothing
    could be looked for.
    """

    def __init__(self, faults: str | list[str], code: int = 2) -> None:
        self.faults = [faults] if isinstance(faults, str) else faults
        self.code = code
        super().__init__("\n".join(self.faults))


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Artifact(_Strict):
    """One file of the bundle."""

    kind: Kind
    # What a release or role calls it: project of a wheel, package of a deb, URL of a repository.
    name: str = Field(min_length=1)
    version: str = ""
    # Where the server shows it; relative, because the server's address is not known here.
    path: str = Field(pattern=r"^[A-Za-z0-9@][^\s\\?#]*$")
    sha256: Sha256
    bytes: int = Field(ge=0)
    source: str


class Manifest(_Strict):
    """A bundle: for which release, system and key it was made, and every file."""

    format: Literal[1] = 1
    release: str = Field(min_length=1)
    # Of the release's content, so that a bundle of another release of the same name is told from this one.
    release_sha256: Sha256
    suite: str
    architecture: str = "amd64"
    created: str
    artifacts: list[Artifact]

    def of(self, kind: Kind) -> list[Artifact]:
        """The artifacts of one kind, in the manifest's order."""
        return [artifact for artifact in self.artifacts if artifact.kind == kind]


def load(folder: Path) -> Manifest:
    """Read a bundle's manifest. Raises BundleError naming the file, the key at fault and the cure."""
    path = folder / NAME
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise BundleError(
            f"{folder}: no {NAME}, so this is no bundle, or one that `bundle create` did not finish: "
            "run `splitrail bundle create` on it"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{path}: cannot be read: {error}") from error
    try:
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        faults = [
            f"{'.'.join(map(str, fault['loc'])) or 'the file'}: {fault['msg']}" for fault in error.errors()
        ]
        raise BundleError(
            f"{path}: not a bundle's manifest ({'; '.join(faults[:5])}): take it from where it was made", 1
        ) from error
    paths = [artifact.path for artifact in manifest.artifacts]
    if (
        twice := sorted({path for path in paths if paths.count(path) > 1})
        if len(set(paths)) != len(paths)
        else []
    ):
        raise BundleError(f"{path}: {', '.join(twice)} is there twice: make the bundle anew", 1)
    if bad := [one for one in paths if ".." in one.split("/")]:
        raise BundleError(f"{path}: {', '.join(bad)} leaves the bundle: make the bundle anew", 1)
    return manifest
