"""Keys and the audit, for admins; and the view that inference servers follow, which tells who has keys, for them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Path, Query, Response

from playserve_services.control.context import Admin, Ctx, Replicas
from playserve_services.control.problems import RESPONSES
from playserve_services.control.repository.audit import list_audit
from playserve_services.control.repository.keys import add_key, list_keys, revoke_key
from playserve_services.control.repository.view import build_view, etag_of
from playserve_services.control.schemas import AuditOut, KeyIn, KeyIssued, KeyOut, Short
from playserve_services.registry_view import RegistryView

__all__ = ["router"]

router = APIRouter(prefix="/v1", tags=["access"], responses=RESPONSES)

_JSON = "application/json"


@router.post("/keys", status_code=201)
def issue_key(body: KeyIn, response: Response, context: Ctx, caller: Admin) -> KeyIssued:
    """Issue an API key. It is shown in this answer, and never again."""
    response.headers["Cache-Control"] = "no-store"
    with context.database.change() as session:
        text, row = add_key(session, caller.actor, body.principal, body.scopes, body.quota, body.expires_at)
        return KeyIssued(key=text, kept=KeyOut.model_validate(row))


@router.get("/keys")
def get_keys(context: Ctx, caller: Admin) -> list[KeyOut]:
    """Return what is known of every key that ever was."""
    with context.database.read() as session:
        return [KeyOut.model_validate(row) for row in list_keys(session)]


@router.delete("/keys/{key_id}")
def delete_key(key_id: Annotated[str, Path(pattern=r"^[0-9a-f]{12}$")], context: Ctx, caller: Admin) -> KeyOut:
    """Revoke a key; inference servers end its sessions when they have read the view."""
    with context.database.change() as session:
        return KeyOut.model_validate(revoke_key(session, caller.actor, key_id))


@router.get("/audit")
def get_audit(
    context: Ctx,
    caller: Admin,
    subject: Annotated[str, Query(max_length=300, pattern=r"^[^\x00-\x1f\x7f]*$")] = "",
    action: Short = "",
    before_id: Annotated[int | None, Query(ge=1, le=2**31 - 1)] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> list[AuditOut]:
    """Return who did what, newest first."""
    with context.database.read() as session:
        rows = list_audit(session, subject=subject, action=action, before_id=before_id, limit=limit)
        return [AuditOut.model_validate(row) for row in rows]


@router.get(
    "/view",
    response_model=RegistryView,
    responses={304: {"description": "It is what If-None-Match names."}},
)
def get_view(context: Ctx, caller: Replicas, if_none_match: Annotated[str, Header(max_length=1000)] = "") -> Response:
    """Return what inference servers need to know. Who sends its ETag back gets 304 while nothing changed."""
    with context.database.read() as session:
        body = build_view(session).model_dump_json().encode()
    etag = etag_of(body)
    headers = {"ETag": etag, "Cache-Control": "no-cache"}
    known = {tag.strip().removeprefix("W/") for tag in if_none_match.split(",")}
    if known & {etag, "*"}:
        return Response(status_code=304, headers=headers)
    return Response(body, media_type=_JSON, headers=headers)
