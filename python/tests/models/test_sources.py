"""Every kind of source lists the same files, and says what is wrong with it."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import pytest

from splitrail.ansible.module_utils.splitrail_models.manifest import File, Manifest, ManifestError, digest_of
from splitrail.ansible.module_utils.splitrail_models.sources import (
    Folder,
    Http,
    Hub,
    Source,
    SourceError,
    make_source,
)
from tests.models.conftest import HUB_TOKEN, PATTERNS
from tests.models.hub import Hub as Server


def write_sums(folder: Path) -> None:
    """SHA256SUMS, as sha256sum writes it of ``*`` and of ``find .``."""
    lines = []
    for number, path in enumerate(sorted(path for path in folder.iterdir() if path.name != "SHA256SUMS")):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        lines.append(f"{digest}  {'./' if number % 2 else ''}{path.name}\n")
    (folder / "SHA256SUMS").write_text("".join(lines))


@pytest.fixture(params=["hub", "http", "copy"])
def source(request: pytest.FixtureRequest, hub: Server, model: Path) -> Source:
    write_sums(model)
    said = {
        "hub": {"kind": "hub", "url": hub.url, "repository": hub.repository, "revision": hub.revision},
        "http": {"kind": "http", "url": f"{hub.url}/files"},
        "copy": {"kind": "copy", "from": str(model)},
    }[request.param]
    return make_source(said, HUB_TOKEN)


def test_it_lists_what_is_wanted_with_right_digests(source: Source, model: Path) -> None:
    files = source.manifest(PATTERNS).files
    names = ["config.json", "empty.json", "model-1.safetensors", "model-2.safetensors"]
    assert [file.path for file in files] == names
    assert [file.size for file in files] == [(model / name).stat().st_size for name in names]
    assert all(digest_of(model / file.path, file.digest) == file.digest for file in files)


def test_it_gives_ranges(source: Source, model: Path) -> None:
    file = source.manifest(PATTERNS).files[2]
    content = (model / file.path).read_bytes()
    for offset, length in ((0, file.size), (0, 10), (1000, 5000), (file.size - 7, 7)):
        assert b"".join(source.read(file, offset, length)) == content[offset : offset + length]


def test_a_file_that_grew_since_is_an_error(source: Source, model: Path) -> None:
    file = source.manifest(PATTERNS).files[2]
    (model / file.path).write_bytes(b"short")
    with pytest.raises(SourceError, match=file.path):
        b"".join(source.read(file, 100, 1000))


@pytest.mark.parametrize("revision", ["", "main", "v1.0", 39 * "a", 40 * "A"])
def test_a_hub_wants_a_commit(revision: str) -> None:
    with pytest.raises(SourceError, match="model_store_revision"):
        Hub("https://hub.example", "owner/name", revision)


@pytest.mark.parametrize(
    ("token", "revision", "says"),
    [("", 40 * "a", "401.*model_store_hub_token"), (HUB_TOKEN, 40 * "b", "404.*revision")],
)
def test_a_hub_that_refuses_is_named_with_the_cure(hub: Server, token: str, revision: str, says: str) -> None:
    with pytest.raises(SourceError, match=says) as error:
        Hub(hub.url, hub.repository, revision, token=token).manifest(PATTERNS)
    assert HUB_TOKEN not in str(error.value)


def test_what_is_not_there_is_named(hub: Server, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="cannot be reached"):
        Http("http://127.0.0.1:9/x").manifest(PATTERNS)
    with pytest.raises(SourceError, match="404"):
        Http(f"{hub.url}/files").manifest(PATTERNS)  # no SHA256SUMS
    with pytest.raises(SourceError, match=r"SHA256SUMS: not there\. Make the sums"):
        Folder(str(tmp_path)).manifest(PATTERNS)
    with pytest.raises(SourceError, match="no file of it is wanted"):
        Hub(hub.url, hub.repository, hub.revision, token=HUB_TOKEN).manifest(["*.gguf"])


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Http("ftp://x/y"), "model_store_url"),
        (lambda: Http(""), "model_store_url is empty"),
        (lambda: Folder("models/x"), "model_store_from"),
    ],
)
def test_addresses_that_cannot_be(make: object, says: str) -> None:
    with pytest.raises(SourceError, match=says):
        make()  # type: ignore[operator]


def test_sums_that_are_none_are_named_with_their_line(model: Path) -> None:
    write_sums(model)
    sums = model / "SHA256SUMS"
    sums.write_text(sums.read_text() + "what is this\n")
    with pytest.raises(SourceError, match="line 6"):
        Folder(str(model)).manifest(PATTERNS)


@pytest.mark.parametrize(
    "file",
    [
        {"path": "../x", "size": 1},
        {"path": "/etc/passwd", "size": 1},
        {"path": "", "size": 1},
        {"path": "a\nb", "size": 1},
        {"path": "x", "size": -1},
        {"path": "x", "size": 1, "digest": "md5:00"},
    ],
)
def test_files_that_a_manifest_must_not_name(file: dict[str, object]) -> None:
    with pytest.raises(ManifestError):
        Manifest.from_dict({"identity": "x", "files": [{"digest": f"sha256:{64 * '0'}", **file}]})


def test_a_hubs_storage_never_sees_the_token(hub: Server, model: Path) -> None:
    """The storage of the stand-in answers 400 to whoever brings one, both times."""
    source = Hub(hub.url, hub.repository, hub.revision, token=HUB_TOKEN)
    file = source.manifest(PATTERNS).files[2]
    for _ in range(2):
        assert b"".join(source.read(file, 0, 10)) == (model / file.path).read_bytes()[:10]
    asked = hub.asked
    b"".join(source.read(file, 0, 10))
    assert hub.asked == asked + 1  # the storage's address is remembered


def test_ranges_that_a_server_does_not_give_are_an_error(model: Path) -> None:
    file = File("model-1.safetensors", (model / "model-1.safetensors").stat().st_size, f"sha256:{64 * '0'}")
    write_sums(model)
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer  # noqa: PLC0415

    class Plain(SimpleHTTPRequestHandler):
        def __init__(self, *given: object) -> None:
            super().__init__(*given, directory=str(model))  # type: ignore[arg-type]

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Plain) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        source = Http(f"http://127.0.0.1:{server.server_address[1]}")
        with pytest.raises(SourceError, match="ranges are needed"):
            b"".join(source.read(file, 10, 10))
        server.shutdown()
