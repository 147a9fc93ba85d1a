"""Who looks at the dashboard: sessions of signed-in browsers, and tokens against forms that other sites send.

An API key, or a token of the issuer, signs a browser in. The cookie holds a random word that means something to this
process only, for some hours; what it stands for is asked for at each request: a revoked key ends the session at once.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import Depends, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from playserve.errors import AccessDeniedError, PlayserveError
from playserve_services.auth.keys import Scope
from playserve_services.auth.principal import Credentials, Principal
from playserve_services.control.context import Caller, Context, Ctx, authenticate, wanting
from playserve_services.control.repository.audit import Actor

__all__ = ["COOKIE", "SESSION_S", "AdminViewer", "Browsers", "CheckedAdmin", "CheckedViewer", "SignInNeededError",
           "Viewer", "Visitor", "sign_in", "sign_out", "still_signed_in"]  # fmt: skip

COOKIE = "playserve_session"
#: A browser is signed in for so long.
SESSION_S = 12 * 3600.0
_MOST_SESSIONS = 1000


class SignInNeededError(PlayserveError):
    """Keys are required, and this browser is not signed in."""


@dataclass(frozen=True, slots=True)
class _Session:
    principal: Principal
    csrf: str
    until: float


@dataclass(frozen=True, slots=True)
class Viewer:
    """Who looks at a page.

    Attributes:
        caller: As the REST routes know them.
        csrf: What their forms must bring back.
        signed_in: Whether by a key; otherwise nobody is asked for one.
    """

    caller: Caller
    csrf: str
    signed_in: bool


class Browsers:
    """Signed-in browsers of this process. Any thread may call.

    Args:
        clock: Monotonic clock in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._sessions: dict[str, _Session] = {}
        #: Of browsers that need no key. Other sites cannot read our pages, and so not this.
        self.open_csrf = secrets.token_urlsafe(32)

    def begin(self, principal: Principal) -> str:
        """Return the token of a new session; the oldest of too many ends."""
        token = secrets.token_urlsafe(32)
        with self._lock:
            at = self._clock()
            self._sessions = {key: kept for key, kept in self._sessions.items() if kept.until > at}
            while len(self._sessions) >= _MOST_SESSIONS:
                del self._sessions[next(iter(self._sessions))]
            self._sessions[_digest(token)] = _Session(principal, secrets.token_urlsafe(32), at + SESSION_S)
        return token

    def find(self, token: str) -> tuple[Principal, str] | None:
        """Return whose session that is, and what its forms must bring back; None: it is none, or is over."""
        with self._lock:
            kept = self._sessions.get(_digest(token))
        if kept is None or kept.until <= self._clock():
            return None
        return kept.principal, kept.csrf

    def end(self, token: str) -> None:
        """End a session, if it is one."""
        with self._lock:
            self._sessions.pop(_digest(token), None)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()


def browsers_of(request: Request) -> Browsers:
    """Return the signed-in browsers of the application that was called."""
    browsers: Browsers = request.app.state.browsers
    return browsers


async def sign_in(request: Request, context: Context, key: str, response: Response) -> None:
    """Sign a browser in with an API key or a token.

    Raises:
        UnauthenticatedError: It does not hold.
        ServerUnavailableError, NotReadyError: That cannot be found out now.
    """
    try:
        principal = await context.authenticator.authenticate(Credentials(bearer=key))
    except PlayserveError as error:
        context.metrics.refused.labels(error.reason or error.code.name).inc()
        raise
    token = browsers_of(request).begin(principal)
    response.set_cookie(
        COOKIE, token, max_age=int(SESSION_S), path=request.scope.get("root_path") or "/", httponly=True,
        samesite="strict", secure=_is_tls(request, context),
    )  # fmt: skip


def sign_out(request: Request, response: Response) -> None:
    """End a browser's session."""
    browsers_of(request).end(request.cookies.get(COOKIE, ""))
    response.delete_cookie(COOKIE, path=request.scope.get("root_path") or "/")


def _is_tls(request: Request, context: Context) -> bool:
    return request.url.scheme == "https" or context.settings.tls_cert is not None


async def still_signed_in(request: Request, context: Context) -> bool:
    """Whether a request that is answered for long may still be: its browser did not sign out, and its key holds."""
    try:
        await viewer_of(request, context)
    except SignInNeededError:
        return False
    return True


async def viewer_of(request: Request, context: Ctx) -> Viewer:
    """Return who looks; SignInNeededError where keys are required and there is none that holds any more."""
    browsers = browsers_of(request)
    if not context.settings.keys_required:
        return Viewer(await authenticate(context, None), browsers.open_csrf, signed_in=False)
    token = request.cookies.get(COOKIE, "")
    found = browsers.find(token) if token else None
    if found is None:
        raise SignInNeededError("sign in with an API key")
    principal, csrf = found
    if not await run_in_threadpool(context.authenticator.holds, principal):
        browsers.end(token)
        raise SignInNeededError("the key that you signed in with does not hold any more")
    return Viewer(Caller(Actor(principal.name, principal.key_id), principal.scopes), csrf, signed_in=True)


Visitor = Annotated[Viewer, Depends(viewer_of)]


def admin_viewer_of(context: Ctx, viewer: Visitor) -> Viewer:
    """Return who looks, or raise AccessDeniedError where they are no admin."""
    wanting(Scope.ADMIN)(context, viewer.caller)
    return viewer


AdminViewer = Annotated[Viewer, Depends(admin_viewer_of)]


def check_origin(request: Request) -> None:
    """Raise AccessDeniedError for a form that a page of another site sent."""
    site = request.headers.get("sec-fetch-site", "same-origin")
    origin = request.headers.get("origin")
    if site not in ("same-origin", "none") or (
        origin is not None and urlsplit(origin).netloc.lower() != request.headers.get("host", "").lower()
    ):
        raise AccessDeniedError("that form was sent from a page of another site")


async def _checked(request: Request, viewer: Viewer) -> Viewer:
    check_origin(request)
    form: Any = await request.form()
    came = form.get("csrf")
    if not isinstance(came, str) or not hmac.compare_digest(came.encode(), viewer.csrf.encode()):
        raise AccessDeniedError("the form is of another session, or too old; open the page again, and send it again")
    return viewer


async def checked_viewer(request: Request, viewer: Visitor) -> Viewer:
    """Return who sent a form that this dashboard gave them; raises AccessDeniedError otherwise."""
    return await _checked(request, viewer)


async def checked_admin(request: Request, viewer: AdminViewer) -> Viewer:
    """Return the admin who sent a form that this dashboard gave them; raises AccessDeniedError otherwise."""
    return await _checked(request, viewer)


CheckedViewer = Annotated[Viewer, Depends(checked_viewer)]
CheckedAdmin = Annotated[Viewer, Depends(checked_admin)]
