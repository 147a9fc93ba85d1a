"""The dashboard as an application of its own below the control plane's, so that its errors are pages, too."""

from __future__ import annotations

import logging
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from playserve.errors import PlayserveError
from playserve_services.control.context import Context
from playserve_services.control.pages import audit, jobs, overview, policies, recordings, scaling, sessions, signing
from playserve_services.control.pages.access import Browsers, SignInNeededError
from playserve_services.control.pages.rendering import Pages, render
from playserve_services.control.pages.replays import Replays
from playserve_services.control.problems import status_of
from playserve_services.validation import in_words

__all__ = ["PREFIX", "create_pages"]

_log = logging.getLogger(__name__)

#: Where the control plane mounts it.
PREFIX = "/dashboard"
_MODULES = (overview, sessions, policies, recordings, jobs, scaling, audit, signing)


def create_pages(context: Context) -> FastAPI:
    """Return the dashboard over the control plane's collaborators."""
    app = FastAPI(title="playserve dashboard", openapi_url=None, docs_url=None, redoc_url=None)
    app.state.context = context
    app.state.browsers = Browsers()
    app.state.pages = Pages()
    app.state.replays = Replays(context.recordings, context.settings.data.absolute() / "replays")
    for module in _MODULES:
        app.include_router(module.router)
    app.mount("/static", StaticFiles(packages=[("playserve_services.control.pages", "static")]), name="static")
    app.add_middleware(PlainForms)
    app.add_exception_handler(SignInNeededError, _sign_in)
    app.add_exception_handler(PlayserveError, _ours)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _framework)
    app.add_exception_handler(Exception, _fault)
    return app


class PlainForms:
    """Refuses bodies that are no plain form: others may be large, and be kept on disk before anybody is signed in."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        kinds = [value for name, value in scope.get("headers", ()) if name == b"content-type"]
        if any(not kind.lower().startswith(b"application/x-www-form-urlencoded") for kind in kinds):
            refusal = PlainTextResponse("only plain forms are taken here", 415)
            await refusal(scope, receive, send)
            return
        await self._app(scope, receive, send)


async def _sign_in(request: Request, error: Exception) -> Response:
    base = request.scope.get("root_path", "")
    if request.method != "GET" or request.headers.get("sec-fetch-dest", "document") == "empty":
        return _page(request, 401, "Your session is over; sign in again.")
    inside = request.url.path.removeprefix(base)
    return RedirectResponse(f"{base}/sign-in?next={quote(inside, safe='/')}", 303)


async def _ours(request: Request, error: Exception) -> Response:
    assert isinstance(error, PlayserveError)  # noqa: S101 - what it is registered for
    status = status_of(error)
    if status >= 500:
        _log.warning("%s %s: %s", request.method, request.url.path, error)
    return _page(request, status, str(error))


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - what it is registered for
    return _page(request, 422, in_words(error.errors()))


async def _framework(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - what it is registered for
    return _page(request, error.status_code, "There is no such page." if error.status_code == 404 else error.detail)


async def _fault(request: Request, error: Exception) -> Response:
    # Starlette raises it again for the server's log; the viewer is told nothing of our inside.
    return _page(request, 500, "This server failed; its log says how.")


def _page(request: Request, status: int, text: str) -> Response:
    return render(request, "error.html", status=status, code=status, text=text[:1000])
