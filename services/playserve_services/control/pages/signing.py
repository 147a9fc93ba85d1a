"""Signing in with an API key, and out again."""

from __future__ import annotations

import re
from typing import Annotated

from fastapi import APIRouter, Form, Request
from starlette.responses import RedirectResponse, Response

from playserve.errors import UnauthenticatedError
from playserve_services.control.context import Ctx
from playserve_services.control.pages.access import CheckedViewer, check_origin, sign_in, sign_out
from playserve_services.control.pages.rendering import render

__all__ = ["router"]

router = APIRouter()

# A path of the dashboard: no other host ("//...", "/\\..."), no way up, and nothing that a browser reads otherwise.
_INSIDE = re.compile(r"(?:/[A-Za-z0-9_-][A-Za-z0-9_.-]*)+/?|/", re.ASCII)


@router.get("/sign-in")
def sign_in_page(request: Request, context: Ctx, next: str = "/") -> Response:
    """Show the form; where no keys are asked for there is nothing to sign in to."""
    if not context.settings.keys_required:
        return RedirectResponse(f"{request.scope['root_path']}/", 303)
    return render(request, "sign_in.html", next=_inside(next), problem="")


@router.post("/sign-in")
async def send_sign_in(
    request: Request,
    context: Ctx,
    key: Annotated[str, Form(max_length=4096)] = "",
    next: Annotated[str, Form(max_length=300)] = "/",
) -> Response:
    """Take a key, and go where the browser was going."""
    check_origin(request)
    if not context.settings.keys_required:
        return RedirectResponse(f"{request.scope['root_path']}/", 303)
    answer = RedirectResponse(f"{request.scope['root_path']}{_inside(next)}", 303)
    try:
        await sign_in(request, context, key.strip(), answer)
    except UnauthenticatedError as error:
        return render(request, "sign_in.html", status=401, next=_inside(next), problem=str(error))
    return answer


@router.post("/sign-out")
def send_sign_out(request: Request, viewer: CheckedViewer) -> Response:
    """End the browser's session."""
    answer = RedirectResponse(f"{request.scope['root_path']}/sign-in", 303)
    sign_out(request, answer)
    return answer


def _inside(path: str) -> str:
    return path if _INSIDE.fullmatch(path) else "/"
