"""Serve a bundle over HTTP: packages, wheels, git, images, models. Only what the manifest names.

    python3 server.py DIR --address A --port P

One file and the standard library: on a cluster it runs on the head, before anything can be installed there.
`git` is needed only for who asks for git.

    /manifest.json(.sig), /key.asc     what is here
    /apt/...                           a repository for APT, signed
    /simple/, /wheels/...              an index for pip and uv (PEP 503), with digests
    /git/HOST/PATH                     a repository for each source, with the release's commit
    /v2/...                            a registry for podman and buildah (OCI distribution, pull only)
    /models/NAME/...                   files of a model
"""

from __future__ import annotations

import argparse
import errno
import gzip
import html
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from email.utils import formatdate
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar
from urllib.parse import quote, unquote, urlsplit

PLAIN = ("manifest.json", "manifest.json.sig", "key.asc")
_RANGE = re.compile(r"^bytes=(\d*)-(\d*)$")
_GIT = re.compile(r"^git/(?P<place>.+?)/(?P<what>info/refs|git-upload-pack)$")
_CHUNK = 1 << 20
# A client that says nothing for so long is gone, in seconds.
_SILENCE = 120
# What a client may send at most: the list of commits that it has.
_REQUEST = 16 << 20


class CannotServe(Exception):
    """The bundle cannot be served; the message names what is wrong and the cure."""


class Bundle:
    """What is served: files by path, an index of wheels, repositories."""

    def __init__(self, root: Path, work: Path) -> None:
        self.root = root
        try:
            manifest: dict[str, Any] = json.loads((root / PLAIN[0]).read_text(encoding="utf-8"))
            artifacts: list[dict[str, Any]] = manifest["artifacts"]
            self.release = str(manifest["release"])
        except FileNotFoundError as error:
            raise CannotServe(f"{root}: no {PLAIN[0]}: no bundle, or one that is not finished") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CannotServe(f"{root / PLAIN[0]}: not a bundle's manifest: {error}") from error
        self.files = {
            unquote(one["path"]): (root / "blobs/sha256" / one["sha256"][:2] / one["sha256"], one)
            for one in artifacts
        }
        self._refuse_gaps()
        self.projects: dict[str, list[dict[str, Any]]] = {}
        self.images: set[str] = set()
        for one in artifacts:
            if one["kind"] == "wheel":
                self.projects.setdefault(one["name"], []).append(one)
            elif one["kind"] == "image":
                self.images.add(unquote(one["path"]).split("/manifests/")[0].split("/blobs/")[0])
        self.repositories = self._lay_out(work)

    def _refuse_gaps(self) -> None:
        gaps = []
        for path, (blob, one) in sorted(self.files.items()):
            length = blob.stat().st_size if blob.is_file() else -1
            if length != one["bytes"]:
                gaps.append(f"{path}: " + ("missing" if length < 0 else f"{length} bytes of {one['bytes']}"))
        if gaps:
            raise CannotServe(
                f"{self.root}: {len(gaps)} files are not whole:\n  "
                + "\n  ".join(gaps)
                + "\nRun `splitrail bundle verify`, then `create` again where there is a network"
            )

    def _lay_out(self, work: Path) -> dict[str, Path]:
        """A bare repository for each source, of links to its packs."""
        found: dict[str, Path] = {}
        for path, (blob, one) in self.files.items():
            if one["kind"] != "git":
                continue
            place, commit, name = path.removeprefix("git/").rsplit("/", 2)
            folder = found.setdefault(place, work / str(len(found)))
            for part in ("objects/pack", "refs/heads"):
                (folder / part).mkdir(parents=True, exist_ok=True)
            (folder / "refs/heads/bundle").write_text(f"{commit}\n", encoding="ascii")
            (folder / "HEAD").write_text("ref: refs/heads/bundle\n", encoding="ascii")
            (folder / "config").write_text(
                "[core]\n\trepositoryformatversion = 0\n\tbare = true\n"
                "[uploadpack]\n\tallowAnySHA1InWant = true\n",
                encoding="ascii",
            )
            if name != "shallow":
                (folder / "objects/pack" / name).symlink_to(blob.resolve())
            elif one["bytes"]:
                shutil.copyfile(blob, folder / "shallow")
        return found

    def page(self, path: str) -> str | None:
        """A page of the wheels' index, or None."""
        if path == "simple":
            return _links([(name, f"{name}/") for name in sorted(self.projects)])
        project = self.projects.get(re.sub(r"[-_.]+", "-", path.removeprefix("simple/")).lower())
        if not project or not path.startswith("simple/"):
            return None
        return _links(
            [
                (
                    unquote(one["path"]).rpartition("/")[2],
                    f"../../{quote(one['path'])}#sha256={one['sha256']}",
                )
                for one in sorted(project, key=lambda one: str(one["path"]))
            ]
        )


def _links(targets: list[tuple[str, str]]) -> str:
    rows = "".join(f'<a href="{html.escape(href)}">{html.escape(text)}</a><br>\n' for text, href in targets)
    meta = '<meta name="pypi:repository-version" content="1.0">'
    return f"<!DOCTYPE html>\n<html><head>{meta}</head><body>\n{rows}</body></html>\n"


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server_version = "splitrail-bundle"
    sys_version = ""
    timeout = _SILENCE
    bundle: ClassVar[Bundle]

    def do_GET(self) -> None:  # http.server's name
        """Send a file or a page."""
        path = unquote(urlsplit(self.path).path).strip("/")
        if match := _GIT.match(path):
            self._advertise(match["place"], match["what"])
        elif path in PLAIN:
            self._file(self.bundle.root / path, "", "application/octet-stream")
        elif path == "v2":
            self._text("{}", "application/json")
        elif path.startswith("v2/"):
            self._registry(path)
        elif path in self.bundle.files:
            blob, one = self.bundle.files[path]
            self._file(blob, str(one["sha256"]), "application/octet-stream")
        elif (page := self.bundle.page(path)) is not None:
            self._text(page, "text/html; charset=utf-8")
        elif not path:
            self._text(f"bundle of release {self.bundle.release}\n", "text/plain; charset=utf-8")
        else:
            self._refuse(HTTPStatus.NOT_FOUND, f"this bundle has no {path}\n")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        """Answer git; nothing can be changed here."""
        match = _GIT.match(unquote(urlsplit(self.path).path).strip("/"))
        if match and match["what"] == "git-upload-pack":
            body = self._body()
            if body is not None:
                self._git(match["place"], body)
        else:
            self._refuse(HTTPStatus.METHOD_NOT_ALLOWED, "a bundle is only read\n")

    do_PUT = do_PATCH = do_DELETE = do_POST

    # Files

    def _file(self, path: Path, sha256: str, kind: str, extra: dict[str, str] | None = None) -> None:
        with path.open("rb") as stream:
            whole = os.fstat(stream.fileno()).st_size
            begin, end = 0, whole
            asked = _RANGE.match(self.headers.get("Range", ""))
            if self.headers.get("If-Range", f'"{sha256}"') != f'"{sha256}"':
                asked = None
            if asked and (asked[1] or asked[2]):
                if asked[1]:
                    begin, end = int(asked[1]), min(int(asked[2] or whole - 1) + 1, whole)
                else:
                    begin = max(whole - int(asked[2]), 0)
                if begin >= end:
                    self._refuse(
                        HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, "", {"Content-Range": f"bytes */{whole}"}
                    )
                    return
                self.send_response(HTTPStatus.PARTIAL_CONTENT)
                self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{whole}")
            else:
                self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(end - begin))
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Last-Modified", formatdate(path.stat().st_mtime, usegmt=True))
            if sha256:
                self.send_header("ETag", f'"{sha256}"')
            for name, value in (extra or {}).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                stream.seek(begin)
                left = end - begin
                while left and (block := stream.read(min(_CHUNK, left))):
                    self.wfile.write(block)
                    left -= len(block)

    def _text(self, text: str, kind: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        content = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _refuse(self, status: HTTPStatus, text: str, extra: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (extra or {}).items():
            self.send_header(name, value)
        content = text.encode()
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        # What a refused request brought along was not read.
        self.send_header("Connection", "close")
        self.close_connection = True
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    # Images

    def _registry(self, path: str) -> None:
        """Manifests by digest or any tag, and blobs. A mirror is asked without the name of the registry."""
        name, _, rest = path.removeprefix("v2/").partition("/manifests/")
        what = "manifests"
        if not rest:
            name, _, rest = path.removeprefix("v2/").partition("/blobs/")
            what = "blobs"
        known = [
            one
            for one in self.bundle.images
            if one == f"v2/{name}" or one.partition("/")[2].partition("/")[2] == name
        ]
        for image in known:
            wanted = (
                [p for p in self.bundle.files if p.startswith(f"{image}/manifests/")]
                if what == "manifests"
                else []
            )
            full = (
                f"{image}/{what}/{rest}"
                if rest.startswith("sha256:")
                else (wanted[0] if len(wanted) == 1 else "")
            )
            if full in self.bundle.files:
                blob, one = self.bundle.files[full]
                kind = "application/octet-stream"
                if what == "manifests":
                    kind = str(
                        json.loads(blob.read_text(encoding="utf-8")).get(
                            "mediaType", "application/vnd.oci.image.manifest.v1+json"
                        )
                    )
                self._file(
                    blob, str(one["sha256"]), kind, {"Docker-Content-Digest": f"sha256:{one['sha256']}"}
                )
                return
        code = "MANIFEST_UNKNOWN" if what == "manifests" else "BLOB_UNKNOWN"
        answer = {"errors": [{"code": code, "message": f"this bundle has no {path}"}]}
        self._text(json.dumps(answer), "application/json", HTTPStatus.NOT_FOUND)

    # Git (its "smart" protocol, of which upload-pack does the work)

    def _advertise(self, place: str, what: str) -> None:
        if what != "info/refs" or "service=git-upload-pack" not in urlsplit(self.path).query:
            self._refuse(HTTPStatus.FORBIDDEN, "a bundle is only read, by git 1.6.6 or later\n")
            return
        done = self._upload_pack(place, ["--http-backend-info-refs"], b"")
        if done is not None:
            head = (
                b""
                if "version=2" in self.headers.get("Git-Protocol", "")
                else b"001e# service=git-upload-pack\n0000"
            )
            self._answer(head + done, "application/x-git-upload-pack-advertisement")

    def _git(self, place: str, body: bytes) -> None:
        done = self._upload_pack(place, [], body)
        if done is not None:
            self._answer(done, "application/x-git-upload-pack-result")

    def _upload_pack(self, place: str, options: list[str], body: bytes) -> bytes | None:
        folder = self.bundle.repositories.get(place) or self.bundle.repositories.get(f"{place}.git")
        if folder is None:
            self._refuse(HTTPStatus.NOT_FOUND, f"this bundle has no source git/{place}\n")
            return None
        if shutil.which("git") is None:
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "git is not installed where this bundle is served\n")
            return None
        environment = {
            **os.environ,
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "safe.directory",
            "GIT_CONFIG_VALUE_0": "*",
        }
        if protocol := self.headers.get("Git-Protocol"):
            environment["GIT_PROTOCOL"] = protocol
        done = subprocess.run(
            ["git", "upload-pack", "--strict", "--stateless-rpc", *options, str(folder)],
            input=body,
            capture_output=True,
            env=environment,
            check=False,
        )
        if done.returncode and not done.stdout:
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, done.stderr.decode("utf-8", "replace"))
            return None
        return done.stdout

    def _answer(self, content: bytes, kind: str) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-cache")
        self.end_headers()
        self.wfile.write(content)

    def _body(self) -> bytes | None:
        """What the client sent, or None after it was refused."""
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            body = b""
            while (length := int(self.rfile.readline().split(b";")[0], 16)) and len(
                body
            ) + length <= _REQUEST:
                body += self.rfile.read(length)
                self.rfile.readline()
            self.rfile.readline()
        else:
            length = int(self.headers.get("Content-Length", 0))
            if length > _REQUEST:
                self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too long\n")
                return None
            body = self.rfile.read(length)
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Only what was refused: a build asks for hundreds of files."""
        if int(code) >= HTTPStatus.BAD_REQUEST:
            super().log_request(code, size)


class Server(ThreadingHTTPServer):
    """A thread a connection; a client that hangs up is nothing to report."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """See socketserver."""
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


def listen(bundle: Bundle, address: str, port: int) -> Server:
    """A server, bound and not yet serving; port 0 takes any. Raises CannotServe: a port that is taken."""
    handler = type("BoundHandler", (Handler,), {"bundle": bundle})
    try:
        return Server((address, port), handler)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise CannotServe(
                f"{address}:{port} is taken by another program (`ss -ltnp 'sport = :{port}'` names it): "
                "stop that, or name another --port"
            ) from error
        if error.errno == errno.EADDRNOTAVAIL:
            raise CannotServe(f"{address} is no address of this machine: name one with --address") from error
        raise CannotServe(f"{address}:{port}: {error.strerror or error}") from error


def serve(root: Path, address: str, port: int) -> None:
    """Serve until SIGTERM or Ctrl-C. Raises CannotServe before the first request is taken."""
    with tempfile.TemporaryDirectory(prefix="splitrail-bundle-") as work:
        bundle = Bundle(root, Path(work))
        server = listen(bundle, address, port)

        def stop(_number: int, _frame: FrameType | None) -> None:
            # Not from this thread, which serves: it would wait for itself.
            threading.Thread(target=server.shutdown).start()

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        host, bound = server.server_address[:2]
        sys.stderr.write(f"serving {root} (release {bundle.release}) on http://{host!s}:{bound}\n")
        sys.stderr.flush()
        with server:
            server.serve_forever(poll_interval=0.2)


def main() -> int:
    """The program that runs on a head node."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--address", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8090)
    arguments = parser.parse_args()
    try:
        serve(arguments.folder, arguments.address, arguments.port)
    except CannotServe as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
