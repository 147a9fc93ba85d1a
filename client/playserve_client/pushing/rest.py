"""Calls of a control plane's REST over one connection: no redirects, no key in plain text, problems as typed errors."""

from __future__ import annotations

import contextlib
import http.client
import json
import urllib.parse
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Protocol

from playserve.errors import (
    REASONS,
    AccessDeniedError,
    BadSettingError,
    ExhaustedError,
    InvalidRequestError,
    MessageTooLargeError,
    NotFoundError,
    PlayserveError,
    ServerFault,
    ServerUnavailableError,
    StateError,
    UnauthenticatedError,
)
from playserve_client.channels import TlsConfig, is_loopback_target

__all__ = ["ControlRest"]

_MAX_BYTES = 16 * 1024 * 1024
_PIECE = 1 << 20
#: For problems whose reason this client does not know.
_BY_STATUS: dict[int, type[PlayserveError]] = {
    400: InvalidRequestError, 401: UnauthenticatedError, 403: AccessDeniedError, 404: NotFoundError, 409: StateError,
    413: MessageTooLargeError, 422: InvalidRequestError, 429: ExhaustedError, 502: ServerUnavailableError,
    503: ServerUnavailableError, 504: ServerUnavailableError, 507: ExhaustedError,
}  # fmt: skip


class _Readable(Protocol):
    def read(self, amt: int) -> bytes: ...


class ControlRest:
    """See the module's docstring. One thread at a time.

    Args:
        url: Such as https://control.example:8080.
        key: API key or token; None: none.
        tls: Certificates of one's own; None: the system's roots.
        allow_insecure_key: Send the key in plain text beyond this machine, too.
        timeout_s: Longest wait for the next bytes.

    Raises:
        BadSettingError: The URL is none, the key would go out in plain text, or a file cannot be used.
    """

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        tls: TlsConfig | None = None,
        allow_insecure_key: bool = False,
        timeout_s: float = 60.0,
    ) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
            raise BadSettingError(f"control plane {_shown(parts)!r}, wanted https://HOST:PORT (on loopback also http)")
        if key and parts.scheme == "http" and not (is_loopback_target(parts.netloc) or allow_insecure_key):
            raise BadSettingError(
                f"the key would go to {parts.hostname} in plain text, where others can read it; use https, or say "
                "--insecure-key"
            )
        self._base = parts.path.rstrip("/")
        self._where = f"{parts.scheme}://{parts.netloc}"
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._connection: http.client.HTTPConnection
        if parts.scheme == "https":
            self._connection = http.client.HTTPSConnection(
                parts.hostname, parts.port, timeout=timeout_s, context=(tls or TlsConfig()).ssl_context()
            )
        else:
            self._connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout_s)

    def __enter__(self) -> ControlRest:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connection."""
        self._connection.close()

    def call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str | int] | None = None,
        value: Any = None,
        data: bytes | None = None,
    ) -> Any:
        """Make one call, and return the JSON value of the answer; None: it has none.

        Args:
            method: HTTP method.
            path: Such as /v1/recordings.
            query: After the question mark.
            value: To be sent as JSON.
            data: Or bytes.

        Raises:
            ServerUnavailableError: Nobody answers, or the connection broke.
            PlayserveError: What the answer says.
        """
        with self._ask(method, path, query, value, data) as answer:
            body = answer.read(_MAX_BYTES + 1)
        if len(body) > _MAX_BYTES:
            raise ServerFault(f"{self._where} answered with more than {_MAX_BYTES} bytes")
        try:
            return json.loads(body) if body else None
        except ValueError as error:
            raise ServerFault(f"{self._where}{path} answered with what is no JSON; is that a control plane?") from error

    def download(self, path: str) -> Iterator[bytes]:
        """Yield the bytes of an answer in pieces; raises as :meth:`call`."""
        with self._ask("GET", path, None, None, None) as answer, self._typed():
            while piece := answer.read(_PIECE):
                yield piece

    @contextlib.contextmanager
    def _ask(
        self, method: str, path: str, query: Mapping[str, str | int] | None, value: Any, data: bytes | None
    ) -> Iterator[_Readable]:
        headers = dict(self._headers)
        if value is not None:
            data, headers["Content-Type"] = json.dumps(value).encode(), "application/json"
        elif data is not None:
            headers["Content-Type"] = "application/octet-stream"
        target = f"{self._base}{path}" + (f"?{urllib.parse.urlencode(query)}" if query else "")
        with self._typed():
            self._connection.request(method, target, body=data, headers=headers)
            answer = self._connection.getresponse()
            failure = None if 200 <= answer.status < 300 else _problem(answer.status, answer.read(_MAX_BYTES))
        if failure is not None:
            raise failure
        yield answer

    @contextlib.contextmanager
    def _typed(self) -> Iterator[None]:
        try:
            yield
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()  # what is left of an answer must not be taken for the next one
            reason = getattr(error, "strerror", None) or getattr(error, "verify_message", None) or error
            raise ServerUnavailableError(f"{self._where}: {type(error).__name__}: {reason}") from error


def _problem(status: int, body: bytes) -> PlayserveError:
    """Return the typed error of an answer that is no success."""
    if 300 <= status < 400:
        return ServerFault(f"status {status}: a redirect, which would carry the key elsewhere; name the right URL")
    try:
        value = json.loads(body)
        reason, detail = str(value["reason"]), str(value["detail"])
    except (ValueError, KeyError, TypeError):
        reason, detail = "", f"status {status}, without a problem in words; is that a control plane?"
    kind = REASONS.get(reason) or _BY_STATUS.get(status, ServerFault)
    return kind(detail)


def _shown(parts: urllib.parse.SplitResult) -> str:
    """Return a URL without what may be a password."""
    return f"{parts.scheme}://{parts.hostname or ''}"
