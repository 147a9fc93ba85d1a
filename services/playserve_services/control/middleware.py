"""Around every request: limits on bodies, what browsers must not do to a server without keys, and counts."""

from __future__ import annotations

import logging
import time
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from playserve_services.auth.loopback import is_loopback
from playserve_services.control.metrics import ControlMetrics
from playserve_services.control.problems import problem_of
from playserve_services.control.settings import ControlSettings

__all__ = ["Guard", "Observer"]

_log = logging.getLogger(__name__)

#: Largest body of what is not an upload.
MAX_BODY_BYTES = 4 * 1024 * 1024
_SAFE = ("GET", "HEAD", "OPTIONS")


class Guard:
    """Refuses bodies that are too large and, where no keys are asked for, what only a browser would be tricked into.

    A page on the web can have a browser call a server on the same machine: by its own name that resolves to
    127.0.0.1, or by a plain form. So the host must be a loopback name, and other sites may not change anything.
    """

    def __init__(self, app: ASGIApp, settings: ControlSettings) -> None:
        self._app = app
        self._wary = not settings.keys_required
        self._any_host = settings.insecure_listen

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._refusal(scope["method"], headers) if self._wary else ""
        if refusal:
            await problem_of(403, refusal, "PERMISSION_DENIED")(scope, receive, send)
            return
        upload = headers.get("content-type", "").startswith("multipart/form-data")
        await self._app(scope, receive if upload else _limited(receive), send)

    def _refusal(self, method: str, headers: dict[str, str]) -> str:
        host = urlsplit(f"//{headers.get('host', '')}").hostname or ""
        if not self._any_host and not is_loopback(host):
            return f"host {host[:100]!r} is not this machine's own name; this server asks for no keys"
        if method not in _SAFE and headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            return "a page of another site may not change anything here"
        return ""


def _limited(receive: Receive) -> Receive:
    received = 0

    async def limited() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > MAX_BODY_BYTES:
            raise HTTPException(413, f"the body has more than {MAX_BODY_BYTES} bytes")
        return message

    return limited


class Observer:
    """Counts requests and their time by route, and logs one line each. Neither holds headers or queries."""

    def __init__(self, app: ASGIApp, metrics: ControlMetrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and look at what comes back."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.monotonic(), 500

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            seconds = time.monotonic() - started
            route = getattr(scope.get("route"), "path", "")
            route = f"{scope.get('root_path', '')}{route}" if route else "unmatched"
            self._metrics.requests.labels(scope["method"][:16], route, str(status)).inc()
            self._metrics.seconds.labels(route).observe(seconds)
            _log.log(
                logging.DEBUG if scope["method"] in _SAFE and status < 400 else logging.INFO,
                "%s %s %s in %.3f s", scope["method"], scope["path"], status, seconds,
            )  # fmt: skip
