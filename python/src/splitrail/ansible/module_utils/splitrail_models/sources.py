"""Where a model comes from: a hub, a folder on a web server, or one on a disk. Lists files, gives ranges."""

from __future__ import annotations

import json
import re
import ssl
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any, Protocol
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urljoin, urlsplit
from urllib.request import HTTPRedirectHandler, HTTPSHandler, ProxyHandler, Request, build_opener

from .manifest import BLOCK, File, Manifest, ManifestError, wanted

SUMS = "SHA256SUMS"
TIMEOUT_S = 30.0
# A hub answers a request for weights with a signed address of its storage, good for an hour or so.
ADDRESS_S = 600.0
PARTIAL, OK = 206, 200
_COMMIT = re.compile(r"^[0-9a-f]{40}$")
_SUM = re.compile(r"^([0-9a-f]{64}) [ *](?:\./)?(.+)$")
_NEXT = re.compile(r'<([^>]+)>\s*;\s*rel="?next"?')


class SourceError(Exception):
    """The source does not give what it should; the message names the address and the cure."""


class Source(Protocol):
    """What a model is taken from. identity: the source and its revision in words."""

    identity: str

    def manifest(self, patterns: Iterable[str]) -> Manifest:
        """The files that match, with their digests. Raises SourceError."""

    def read(self, file: File, offset: int, length: int) -> Iterator[bytes]:
        """A range of a file in blocks, never more than ``length`` bytes. Raises SourceError."""


def named(source: Source, patterns: Iterable[str]) -> str:
    """The identity of a manifest: two of one name list the same files, if the source keeps its revisions."""
    return f"{source.identity} [{' '.join(patterns)}]"


class _Redirect(HTTPRedirectHandler):
    """Follows, without taking the token to another host, which would refuse it, or learn it."""

    def redirect_request(  # noqa: PLR0917  the base class's
        self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Request | None:
        new = super().redirect_request(req, fp, code, msg, headers, newurl)
        if new is not None and urlsplit(newurl)[:2] != urlsplit(req.full_url)[:2]:
            new.remove_header("Authorization")
        return new


class Web:
    """GET with ranges, over a proxy if one is named. token: sent to the host of the first address only."""

    def __init__(self, token: str = "", proxy: str = "") -> None:
        self._headers = {"User-Agent": "splitrail"} | ({"Authorization": f"Bearer {token}"} if token else {})
        proxies = ProxyHandler({"http": proxy, "https": proxy} if proxy else {})
        self._opener = build_opener(proxies, _Redirect, HTTPSHandler(context=ssl.create_default_context()))

    def get(self, url: str, headers: Mapping[str, str] | None = None, *, plain: bool = False) -> HTTPResponse:
        """The answer. plain: without the token. Raises SourceError."""
        own = {key: value for key, value in self._headers.items() if not (plain and key == "Authorization")}
        try:
            request = Request(url, headers={**own, **(headers or {})})  # noqa: S310  the scheme is checked by Site
            answer: HTTPResponse = self._opener.open(request, timeout=TIMEOUT_S)
        except HTTPError as error:
            raise SourceError(f"{_shown(url)}: {error.code} {error.reason}{_cure(error.code)}") from error
        except (URLError, OSError, HTTPException, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise SourceError(f"{_shown(url)}: cannot be reached ({reason})") from error
        return answer


def _shown(url: str) -> str:
    """An address without its query: a signed one is a key."""
    return url.partition("?")[0]


def _cure(code: int) -> str:
    return {
        401: ": set model_store_hub_token to a token that may read it",
        403: ": the token may not read it; accept the model's terms on the hub with its account",
        404: ": correct the name, the revision or the address (private models look absent without a token)",
        429: ": too many requests; name a token, which may ask more often",
    }.get(code, "")


def _whole(url: str, answer: HTTPResponse) -> bytes:
    try:
        with answer:
            return answer.read()
    except (OSError, HTTPException) as error:
        raise SourceError(f"{_shown(url)}: broke off ({error})") from error


class _Remote:
    """Ranges of files over HTTP."""

    def __init__(self, web: Web) -> None:
        self._web = web
        self._lock = threading.Lock()
        self._addresses: dict[str, tuple[str, float]] = {}

    def address(self, path: str) -> str:
        """Where a file is asked for: each kind of source says it."""
        raise NotImplementedError

    def read(self, file: File, offset: int, length: int) -> Iterator[bytes]:
        """See Source."""
        url = self.address(file.path)
        headers = {"Range": f"bytes={offset}-{offset + length - 1}"}
        with self._lock:
            known, since = self._addresses.get(url, ("", 0.0))
        if known and time.monotonic() - since < ADDRESS_S:
            try:
                yield from self._take(known, self._web.get(known, headers, plain=True), file, offset, length)
                return
            except SourceError:
                with self._lock:
                    self._addresses.pop(url, None)
                raise
        answer = self._web.get(url, headers)
        if urlsplit(answer.geturl())[:2] != urlsplit(url)[:2]:
            with self._lock:
                self._addresses[url] = (answer.geturl(), time.monotonic())
        yield from self._take(url, answer, file, offset, length)

    @staticmethod
    def _take(url: str, answer: HTTPResponse, file: File, offset: int, length: int) -> Iterator[bytes]:
        with answer:
            total = (answer.headers.get("Content-Range") or "").rpartition("/")[2]
            if answer.status == OK and not (offset == 0 and length == file.size):
                raise SourceError(f"{_shown(url)}: gives whole files only, and ranges are needed")
            if answer.status == PARTIAL and total not in (str(file.size), "*"):
                raise SourceError(f"{_shown(url)}: has {total} bytes, and should have {file.size}")
            left = length
            try:
                while left:
                    data = answer.read(min(BLOCK, left))
                    if not data:
                        raise SourceError(f"{_shown(url)}: broke off {left} bytes early")
                    left -= len(data)
                    yield data
            except (OSError, HTTPException) as error:
                raise SourceError(f"{_shown(url)}: broke off ({error})") from error


class Hub(_Remote):
    """A repository of a Hugging Face hub, or of one that speaks its HTTP interface, at a commit.

    The interface: ``/api/models/ID/tree/COMMIT?recursive=true`` lists files in pages (``Link: rel="next"``),
    each with ``size``, ``oid`` (git's) and, for large ones, ``lfs.oid`` (SHA-256);
    ``/ID/resolve/COMMIT/PATH`` gives them.
    """

    def __init__(self, url: str, repository: str, revision: str, *, token: str = "", proxy: str = "") -> None:
        super().__init__(Web(token, proxy))
        self._url, self._id, self._revision = url.rstrip("/"), quote(repository), revision
        self.identity = f"hub {self._url} {repository} {revision}"
        if not _COMMIT.match(revision):
            raise SourceError(
                f"{repository}: model_store_revision is {revision or 'empty'}, and must be a commit of 40 "
                "hexadecimal digits: a branch or tag can change between two nodes"
            )

    def address(self, path: str) -> str:
        """See _Remote."""
        return f"{self._url}/{self._id}/resolve/{self._revision}/{quote(path)}"

    def manifest(self, patterns: Iterable[str]) -> Manifest:
        """See Source."""
        page: str | None = f"{self._url}/api/models/{self._id}/tree/{self._revision}?recursive=true"
        listed: list[Any] = []
        while page:
            answer = self._web.get(page)
            found = _NEXT.search(answer.headers.get("Link") or "")
            try:
                listed += json.loads(_whole(page, answer))
            except (ValueError, TypeError) as error:
                raise SourceError(f"{_shown(page)}: not a hub's list of files: {error}") from error
            following = urljoin(page, found.group(1)) if found else None
            if following and urlsplit(following)[:2] != urlsplit(page)[:2]:
                raise SourceError(f"{_shown(page)}: continues on another host, {_shown(following)}")
            page = following
        try:
            files = [
                File(
                    each["path"],
                    each["size"],
                    f"sha256:{each['lfs']['oid']}" if each.get("lfs") else f"git-sha1:{each['oid']}",
                )
                for each in listed
                if each["type"] == "file" and wanted(each["path"], patterns)
            ]
            return Manifest.made_of(named(self, patterns), files)
        except (KeyError, TypeError, AttributeError, ManifestError) as error:
            raise SourceError(f"{self._url}: its list of files cannot be used: {error}") from error


class Http(_Remote):
    """A folder on a web server, with ``SHA256SUMS`` as sha256sum(1) writes it."""

    def __init__(self, url: str, revision: str = "", *, proxy: str = "") -> None:
        super().__init__(Web("", proxy))
        self._url = url.rstrip("/")
        self.identity = f"http {self._url} {revision}".rstrip()
        if urlsplit(url).scheme not in ("http", "https"):
            raise SourceError(f"model_store_url is {url or 'empty'}, and must begin with http:// or https://")

    def address(self, path: str) -> str:
        """See _Remote."""
        return f"{self._url}/{quote(path)}"

    def manifest(self, patterns: Iterable[str]) -> Manifest:
        """See Source."""
        url = self.address(SUMS)
        sums = _sums(url, _whole(url, self._web.get(url)).decode(errors="replace"), patterns)
        try:
            return Manifest.made_of(
                named(self, patterns),
                [File(path, self._size(path), f"sha256:{digest}") for path, digest in sums.items()],
            )
        except ManifestError as error:
            raise SourceError(f"{url}: {error}") from error

    def _size(self, path: str) -> int:
        # One byte's range says the size of the whole, and that ranges are to be had.
        url = self.address(path)
        answer = self._web.get(url, {"Range": "bytes=0-0"})
        with answer:
            total = (answer.headers.get("Content-Range") or "").rpartition("/")[2]
            if answer.status == OK and answer.headers.get("Content-Length", "").isdecimal():
                return int(answer.headers["Content-Length"])  # an empty file has no range
            if not total.isdecimal():
                raise SourceError(f"{url}: does not say its size in answer to a range")
            return int(total)


class Folder:
    """A folder that this node sees, on a disk or a mount, with ``SHA256SUMS`` as sha256sum(1) writes it."""

    def __init__(self, path: str, revision: str = "") -> None:
        self._root = Path(path)
        self.identity = f"copy {path} {revision}".rstrip()
        if not self._root.is_absolute():
            raise SourceError(f"model_store_from is {path or 'empty'}, and must be an absolute path")

    def manifest(self, patterns: Iterable[str]) -> Manifest:
        """See Source."""
        place = self._root / SUMS
        try:
            sums = _sums(str(place), place.read_text(encoding="utf-8", errors="replace"), patterns)
            return Manifest.made_of(
                named(self, patterns),
                [
                    File(path, (self._root / path).stat().st_size, f"sha256:{each}")
                    for path, each in sums.items()
                ],
            )
        except FileNotFoundError as error:
            raise SourceError(
                f"{error.filename}: not there. Make the sums: cd {self._root} && "
                f"find . -type f ! -name {SUMS} -exec sha256sum {{}} + > {SUMS}"
            ) from error
        except (OSError, ManifestError) as error:
            raise SourceError(f"{place}: {error}") from error

    def read(self, file: File, offset: int, length: int) -> Iterator[bytes]:
        """See Source."""
        try:
            with (self._root / file.path).open("rb") as content:
                content.seek(offset)
                while length:
                    data = content.read(min(BLOCK, length))
                    if not data:
                        raise SourceError(f"{self._root / file.path}: ends {length} bytes early")
                    length -= len(data)
                    yield data
        except OSError as error:
            raise SourceError(f"{self._root / file.path}: {error}") from error


def _sums(place: str, text: str, patterns: Iterable[str]) -> dict[str, str]:
    """Digest by path, of the files that match. Raises SourceError."""
    found = {}
    for number, line in enumerate(text.splitlines(), 1):
        matched = _SUM.match(line)
        if not matched:
            raise SourceError(f"{place}, line {number}: not as sha256sum writes it")
        if wanted(matched.group(2), patterns):
            found[matched.group(2)] = matched.group(1)
    return found


def make_source(said: Mapping[str, Any], token: str = "") -> Source:
    """The source of a description: ``kind`` (hub, http, copy), and what it needs. Raises SourceError."""
    kind = said["kind"]
    if kind == "hub":
        return Hub(
            said["url"], said["repository"], said["revision"], token=token, proxy=said.get("proxy", "")
        )
    if kind == "http":
        return Http(said["url"], said.get("revision", ""), proxy=said.get("proxy", ""))
    return Folder(said["from"], said.get("revision", ""))
