"""Talk to a Ray head over its REST interface with Ray's token.

Standard library only: this file travels to the nodes.
"""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import Any


class RayError(Exception):
    """The head did not answer as it should; ``str()`` says what was asked, what came, and the cure."""


class RayUnreachable(RayError):
    """Nothing answers at the head's address yet; asking again later may help."""


class RayRefused(RayError):
    """The head does not accept the token; waiting does not help."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Ray redirects nobody; whoever does must not be handed the token at another address."""

    def redirect_request(self, *_args: Any, **_kwargs: Any) -> None:
        """Follow none, so that the redirect itself becomes the error."""


class Head:
    """The REST interface of a Ray head.

    url: ``http://address:port`` of the dashboard. token_path: file that holds the cluster's token; it is
    read at each request, and never shown. timeout_s: longest wait for one answer, in seconds.
    """

    def __init__(self, url: str, token_path: str, *, timeout_s: float = 30.0) -> None:
        self.url = url.rstrip("/")
        self.token_path = token_path
        self.timeout_s = timeout_s

    def request(self, method: str, path: str, body: Any = None, *, timeout_s: float | None = None) -> Any:
        """Send one request and return the decoded JSON answer, or None for an empty one.

        Raises RayUnreachable when nothing answers, RayRefused when the token is refused, RayError otherwise.
        """
        text = self.text(path, method=method, body=body, timeout_s=timeout_s)
        try:
            return json.loads(text) if text.strip() else None
        except ValueError as error:
            raise RayError(f"{method} {self.url}{path} answered no JSON: {text[:200]!r}") from error

    def text(
        self, path: str, *, method: str = "GET", body: Any = None, timeout_s: float | None = None
    ) -> str:
        """Send one request and return the answer as it came. Raises as ``request`` does."""
        request = urllib.request.Request(  # noqa: S310  the URL is the role's, always http
            self.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {self._token()}", "Content-Type": "application/json"},
        )
        # No proxy: the head is in our own network, whatever the environment says.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirects())
        try:
            with opener.open(request, timeout=timeout_s or self.timeout_s) as answer:
                return str(answer.read().decode(errors="replace"))
        except urllib.error.HTTPError as error:
            if error.code in (401, 403):
                raise RayRefused(
                    f"{self.url} refuses the token in {self.token_path}; the head and this node hold "
                    "different ones: run the cluster playbook on all hosts"
                ) from error
            raise RayError(f"{method} {self.url}{path} answered {error.code}: {_detail(error)}") from error
        except (OSError, HTTPException) as error:
            raise RayUnreachable(f"{self.url} does not answer: {getattr(error, 'reason', error)}") from error

    def nodes(self) -> list[dict[str, Any]]:
        """The nodes that the cluster counts as alive, as Ray's state interface describes them."""
        # Dead nodes stay listed; the filter keeps a long-lived cluster under the interface's limit.
        path = "/api/v0/nodes?limit=10000&filter_keys=state&filter_predicates=%3D&filter_values=ALIVE"
        answer = self.request("GET", path)
        try:
            return list(answer["data"]["result"]["result"])
        except (KeyError, TypeError) as error:
            raise RayError(
                f"{self.url}/api/v0/nodes answered without a list of nodes: {answer!r:.200}"
            ) from error

    def _token(self) -> str:
        cure = "run the cluster playbook on this host"
        try:
            token = Path(self.token_path).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise RayError(
                f"cannot read Ray's token at {self.token_path}: {error.strerror}; {cure}"
            ) from error
        except ValueError:
            token = ""
        # http.client would refuse anything else too, and quote it in its message.
        if not re.fullmatch(r"[!-~]+", token):
            raise RayError(f"{self.token_path} holds no token: it must be one word of ASCII; {cure}")
        return token


def _detail(error: urllib.error.HTTPError) -> str:
    """The end of an error's text, where a traceback says what happened."""
    try:
        return error.read().decode(errors="replace")[-2000:].strip()
    except (OSError, HTTPException):
        return "(its text was cut off)"
