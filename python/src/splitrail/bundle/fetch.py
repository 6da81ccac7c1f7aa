"""Bring files whose digests are known into a store. What was cut short goes on where it stopped."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import httpx

from splitrail.bundle.manifest import BundleError
from splitrail.bundle.store import CHUNK, Store, digest_of, explain

ATTEMPTS = 4
# Connections at a time: more gain nothing from one server, and are rude to it.
WORKERS = 4
_PARTIAL, _BEYOND = 206, 416


class _Stopped(Exception):
    """Another thread failed or the user interrupted; what is here so far is kept."""


@dataclass(frozen=True)
class Wanted:
    """A file to fetch: ``url`` is http(s) or file, ``bytes`` its size where known, else 0."""

    name: str
    url: str
    sha256: str
    bytes: int = 0


@contextmanager
def client(cafile: str | None = None) -> Iterator[httpx.Client]:
    """HTTP as this machine is configured: its proxies, and its certificates or those of ``cafile``."""
    context = ssl.create_default_context(cafile=cafile)
    with httpx.Client(verify=context, follow_redirects=True, timeout=60) as made:
        yield made


def size(url: str, http: httpx.Client) -> int:
    """How many bytes a URL holds; 0 where the server does not say. Raises BundleError: unreachable."""
    if local := _local(url):
        try:
            return local.stat().st_size
        except OSError as error:
            raise BundleError(f"{url}: {error.strerror}", 1) from error
    try:
        # Uncompressed, or the length would be that of the transfer.
        answer = http.head(url, headers={"Accept-Encoding": "identity"})
        answer.raise_for_status()
    except httpx.HTTPError as error:
        raise BundleError(f"{url}: {_said(error)}", 1) from error
    return int(answer.headers.get("Content-Length", 0))


def fetch_all(
    wanted: list[Wanted], store: Store, http: httpx.Client, arrived: Callable[[int], None]
) -> list[str]:
    """Fetch what the store lacks, a few at a time; ``arrived`` is told of every chunk's bytes.

    Returns a fault for each file that cannot be had; the others are fetched nevertheless. A full disk ends
    it at once (BundleError). KeyboardInterrupt leaves what came so far, for the next time.
    """
    stop = threading.Event()
    faults: list[str] = []

    def one(item: Wanted) -> None:
        fetch(item, store, http, arrived, stop)

    with ThreadPoolExecutor(WORKERS) as pool:
        pending = {pool.submit(one, item): item for item in wanted if not store.has(item.sha256)}
        try:
            while pending:
                done, _ = wait(pending, timeout=1, return_when=FIRST_COMPLETED)
                for future in done:
                    item = pending.pop(future)
                    try:
                        future.result()
                    except BundleError as error:
                        faults += [f"{item.name}: {fault}" for fault in error.faults]
                    except OSError as error:
                        raise BundleError(explain(error, store.root)) from error
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    return faults


def fetch(
    item: Wanted, store: Store, http: httpx.Client, arrived: Callable[[int], None], stop: threading.Event
) -> None:
    """Fetch one file. Raises BundleError: unreachable, or not what was promised (none of it is kept)."""
    part = store.partial(item.sha256)
    part.parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(ATTEMPTS):
        began_with = part.stat().st_size if part.exists() else 0
        try:
            for count in _receive(item.url, part, http):
                arrived(count)
                if stop.is_set():
                    raise _Stopped
        except httpx.HTTPStatusError as error:
            raise BundleError(f"{item.url}: {_said(error)}", 1) from error
        except httpx.HTTPError as error:
            if attempt + 1 == ATTEMPTS:
                raise BundleError(
                    f"{item.url}: {_said(error)}: see that this machine reaches it and run the same again; "
                    "it goes on where it stopped",
                    1,
                ) from error
            stop.wait(2**attempt)
            continue
        got = digest_of(part)
        if got == item.sha256:
            store.adopt(part, item.sha256)
            return
        part.unlink()
        # What an earlier run left may have been damaged since: once more, from the beginning.
        if not began_with:
            raise BundleError(
                f"{item.url}: its sha256 is {got}, expected {item.sha256}: find out who changed it before "
                "you pin the new one. Nothing of it was kept",
                1,
            )
    raise BundleError(f"{item.url}: its sha256 is not {item.sha256}", 1)


def _receive(url: str, part: Path, http: httpx.Client) -> Iterator[int]:
    """Append to ``part`` what it still lacks; yields sizes of chunks."""
    have = part.stat().st_size if part.exists() else 0
    if local := _local(url):
        if not local.is_file():
            raise BundleError(f"{url}: no such file", 1)
        with local.open("rb") as source, part.open("ab") as target:
            source.seek(have)
            while block := source.read(CHUNK):
                target.write(block)
                yield len(block)
        return
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with http.stream("GET", url, headers=headers) as answer:
        if answer.status_code == _BEYOND:
            return  # all of it is here, or more than there is: the digest tells
        answer.raise_for_status()
        if have and answer.status_code != _PARTIAL:
            part.unlink()  # a server without ranges begins anew
        with part.open("ab") as target:
            # As it comes, not in blocks of one size: what came before a cut is not to be fetched again.
            for block in answer.iter_bytes():
                target.write(block)
                yield len(block)


def _local(url: str) -> Path | None:
    """The path of a file: URL, else None."""
    parts = urlsplit(url)
    return Path(unquote(parts.path)) if parts.scheme == "file" else None


def _said(error: httpx.HTTPError) -> str:
    if isinstance(error, httpx.HTTPStatusError):
        return f"the server answers {error.response.status_code} {error.response.reason_phrase}"
    return f"cannot be reached ({error or type(error).__name__})"
