"""The audit: who changed what, for admins."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from playserve_services.control.context import Ctx
from playserve_services.control.pages.access import AdminViewer
from playserve_services.control.pages.rendering import render
from playserve_services.control.routes import access as rest

__all__ = ["router"]

router = APIRouter()

_ROWS = 100


@router.get("/audit")
def audit_page(
    request: Request,
    context: Ctx,
    viewer: AdminViewer,
    before_id: Annotated[int | None, Query(ge=1, le=2**31 - 1)] = None,
) -> Response:
    """Show who did what, newest first."""
    rows = rest.get_audit(context, viewer.caller, subject="", action="", before_id=before_id, limit=_ROWS)
    older = rows[-1].id if len(rows) == _ROWS else None
    return render(request, "audit.html", viewer, section="audit", rows=rows, older=older)
