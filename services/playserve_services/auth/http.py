"""One HTTP request, for threads that may wait: no redirects, no plaintext beyond loopback, no endless answers."""

from __future__ import annotations

import http.client
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from playserve.errors import BadSettingError
from playserve_services.auth.loopback import is_loopback

__all__ = ["HttpError", "Response", "check_url", "fetch"]


class HttpError(Exception):
    """No answer came, or one that cannot be used."""


@dataclass(frozen=True, slots=True)
class Response:
    """An answer.

    Attributes:
        status: HTTP status.
        body: At most as long as was asked for.
        etag: Of the header; empty: none.
    """

    status: int
    body: bytes = field(repr=False)
    etag: str = ""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect would carry our key to wherever it points."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def check_url(what: str, url: str) -> str:
    """Return `url` if it may be asked: https, or http to loopback; else raise BadSettingError."""
    parts = urllib.parse.urlsplit(url)
    if parts.username is not None or parts.password is not None:
        raise BadSettingError(f"{what}: a URL with a user or password in it; logs would show them")
    if parts.scheme == "https" and parts.hostname:
        return url
    if parts.scheme == "http" and parts.hostname and is_loopback(parts.hostname):
        return url
    raise BadSettingError(f"{what} {url!r}, wanted https://..., or http://... to a loopback address")


def fetch(
    url: str,
    *,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
    timeout_s: float = 5.0,
    max_bytes: int = 1 << 24,
    ca: Path | None = None,
) -> Response:
    """Ask once, and return the answer, whatever its status. Blocks: call it in a thread.

    Args:
        url: What :func:`check_url` lets pass.
        method: HTTP method.
        headers: Of the request.
        body: Of the request.
        timeout_s: Longest wait for the next bytes.
        max_bytes: Longest answer.
        ca: Roots to trust instead of the system's, as a PEM file.

    Raises:
        HttpError: No answer, or too long a one.
    """
    request = urllib.request.Request(url, data=body, headers=dict(headers or {}), method=method)  # noqa: S310 - checked
    try:
        context = ssl.create_default_context(cafile=None if ca is None else str(ca))
        opener = urllib.request.build_opener(_NoRedirects, urllib.request.HTTPSHandler(context=context))
        try:
            answer = opener.open(request, timeout=timeout_s)
        except urllib.error.HTTPError as refusal:  # an answer like any other
            answer = refusal
        with answer:
            data = answer.read(max_bytes + 1)
            status, etag = int(answer.status), str(answer.headers.get("ETag") or "")
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise HttpError(f"{type(error).__name__}: {reason}") from error
    if len(data) > max_bytes:
        raise HttpError(f"an answer of more than {max_bytes} bytes")
    return Response(status, data, etag)
