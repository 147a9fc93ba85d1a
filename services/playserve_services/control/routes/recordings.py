"""Recordings: uploaded in pieces, listed, downloaded. One sees one's own; an admin sees all."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from playserve.errors import AccessDeniedError, StateError
from playserve_services.control.context import Anybody, Caller, Context, Ctx
from playserve_services.control.models import Recording
from playserve_services.control.problems import RESPONSES
from playserve_services.control.recordings import ending_of
from playserve_services.control.repository.recordings import (
    add_recording,
    find_recording,
    get_recording,
    list_recordings,
    remove_recording,
)
from playserve_services.control.schemas import RecordingIn, RecordingOut, UploadIn, UploadOut

__all__ = ["router"]

router = APIRouter(prefix="/v1/recordings", tags=["recordings"], responses=RESPONSES)

DigestInPath = Annotated[str, Path(pattern=r"^[0-9a-f]{64}$", description="sha256 of the whole recording.")]
RecordingId = Annotated[int, Path(ge=1, le=2**31 - 1)]
_BYTES = "application/octet-stream"
_PIECE = {"requestBody": {"required": True, "content": {_BYTES: {"schema": {"type": "string", "format": "binary"}}}}}


def _out(context: Context, row: Recording) -> RecordingOut:
    return RecordingOut.of(row, stored=context.recordings.holds(row.url, row.sha256))


def _whose(caller: Caller) -> str | None:
    return None if caller.is_admin else caller.actor.principal


def _owner(caller: Caller, principal: str | None) -> str:
    owner = principal or caller.actor.principal
    if not caller.owns(owner):
        raise AccessDeniedError(f"a recording of {owner!r} is not {caller.actor.principal!r}'s to add")
    return owner


@router.post("", status_code=201)
def post_recording(body: RecordingIn, context: Ctx, caller: Anybody) -> RecordingOut:
    """Keep where a recording lies that is not to be uploaded here."""
    owner = _owner(caller, body.principal)
    if context.recordings.holds(body.url, body.sha256) and not caller.is_admin:
        raise AccessDeniedError("that URL is of this control plane's own store: upload the recording")
    with context.database.change() as session:
        row = add_recording(session, caller.actor, owner, **body.model_dump(exclude={"principal"}))
        return _out(context, row)


@router.get("")
def get_recordings(
    context: Ctx,
    caller: Anybody,
    policy: Annotated[str, Query(pattern=r"^([a-z0-9][a-z0-9._-]{0,127})?$")] = "",
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> list[RecordingOut]:
    """Return recordings, newest first."""
    with context.database.read() as session:
        rows = list_recordings(session, principal=_whose(caller), policy=policy, limit=limit)
        return [_out(context, row) for row in rows]


@router.get("/uploads/{sha256}")
def get_upload(sha256: DigestInPath, context: Ctx, caller: Anybody) -> UploadOut:
    """Return how much of an upload has come: a client goes on from there."""
    return UploadOut(sha256=sha256, received=context.recordings.received(caller.actor.principal, sha256))


@router.put("/uploads/{sha256}", openapi_extra=_PIECE)
async def put_piece(
    sha256: DigestInPath,
    request: Request,
    context: Ctx,
    caller: Anybody,
    offset: Annotated[int, Query(ge=0, le=2**53, description="Where in the recording the piece begins.")],
) -> UploadOut:
    """Take the next piece of an upload: at most 4 MiB, which every body here may have."""
    piece = await request.body()
    received = await run_in_threadpool(context.recordings.append, caller.actor.principal, sha256, offset, piece)
    return UploadOut(sha256=sha256, received=received)


@router.post("/uploads/{sha256}", status_code=201, responses={200: {"model": RecordingOut}})
def finish_upload(
    sha256: DigestInPath, body: UploadIn, response: Response, context: Ctx, caller: Anybody
) -> RecordingOut:
    """End an upload: its digest is checked, it goes into the store, and is listed. Again: the same answer, with 200."""
    owner, store, ending = _owner(caller, body.principal), context.recordings, ending_of(body.format, body.name)
    with context.database.read() as session:
        known = find_recording(session, owner, store.url_of(sha256, ending))
    if known is not None and known.size_bytes == body.size_bytes and not store.received(caller.actor.principal, sha256):
        response.status_code = 200
        return _out(context, known)
    url = store.finish(caller.actor.principal, sha256, body.size_bytes, ending)
    with context.database.change() as session:
        row = find_recording(session, owner, url)
        if row is not None:
            response.status_code = 200
            return _out(context, row)
        fields = body.model_dump(exclude={"principal"})
        row = add_recording(session, caller.actor, owner, url=url, sha256=sha256, **fields)
        return _out(context, row)


@router.get("/{recording_id}")
def get_one_recording(recording_id: RecordingId, context: Ctx, caller: Anybody) -> RecordingOut:
    """Return one recording."""
    with context.database.read() as session:
        return _out(context, get_recording(session, recording_id, _whose(caller)))


@router.get(
    "/{recording_id}/content",
    response_class=StreamingResponse,
    responses={200: {"content": {_BYTES: {"schema": {"type": "string", "format": "binary"}}}}},
)
def get_content(recording_id: RecordingId, context: Ctx, caller: Anybody) -> StreamingResponse:
    """Return the bytes of a recording: a file, or the tar of a folder."""
    with context.database.read() as session:
        row = get_recording(session, recording_id, _whose(caller))
    if not context.recordings.holds(row.url, row.sha256):
        raise StateError(f"recording {row.id} lies elsewhere, at {row.url[:200]}; this control plane has no copy")
    headers = {
        "Content-Length": str(row.size_bytes), "ETag": f'"{row.sha256}"', "X-Content-Type-Options": "nosniff",
        # A digest: what its owner called it may not be good for a header.
        "Content-Disposition": f'attachment; filename="{row.sha256}"',
    }  # fmt: skip
    return StreamingResponse(context.recordings.read(row.url), media_type=_BYTES, headers=headers)


@router.delete("/{recording_id}", status_code=204)
def delete_recording(recording_id: RecordingId, context: Ctx, caller: Anybody) -> None:
    """Forget a recording, and remove its bytes where they lie here and are nobody else's, too."""
    with context.database.change() as session:
        row = get_recording(session, recording_id, _whose(caller))
        alone = remove_recording(session, caller.actor, row)
    if alone and context.recordings.holds(row.url, row.sha256):
        context.recordings.remove(row.url)
