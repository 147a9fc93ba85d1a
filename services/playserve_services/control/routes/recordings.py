"""Recordings: where they lie. One sees one's own; an admin sees all."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from playserve.errors import AccessDeniedError
from playserve_services.control.context import Anybody, Ctx
from playserve_services.control.problems import RESPONSES
from playserve_services.control.repository.recordings import add_recording, list_recordings
from playserve_services.control.schemas import RecordingIn, RecordingOut

__all__ = ["router"]

router = APIRouter(prefix="/v1/recordings", tags=["recordings"], responses=RESPONSES)


@router.post("", status_code=201)
def post_recording(body: RecordingIn, context: Ctx, caller: Anybody) -> RecordingOut:
    """Keep where a recording lies."""
    principal = body.principal or caller.actor.principal
    if not caller.owns(principal):
        raise AccessDeniedError(f"a recording of {principal!r} is not {caller.actor.principal!r}'s to add")
    with context.database.change() as session:
        fields = body.model_dump(exclude={"principal"})
        return RecordingOut.model_validate(add_recording(session, caller.actor, principal, **fields))


@router.get("")
def get_recordings(
    context: Ctx,
    caller: Anybody,
    policy: Annotated[str, Query(pattern=r"^([a-z0-9][a-z0-9._-]{0,127})?$")] = "",
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> list[RecordingOut]:
    """Return recordings, newest first."""
    principal = None if caller.is_admin else caller.actor.principal
    with context.database.read() as session:
        rows = list_recordings(session, principal=principal, policy=policy, limit=limit)
        return [RecordingOut.model_validate(row) for row in rows]
