"""Recordings: what was recorded, and a replay of those that lie where this control plane reads."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import FileResponse, HTMLResponse, Response

from playserve.errors import NotFoundError, PlayserveError
from playserve_services.control.context import Ctx
from playserve_services.control.pages.access import Visitor
from playserve_services.control.pages.rendering import PAGE_HEADERS, render
from playserve_services.control.pages.replays import Replays, kind_of
from playserve_services.control.routes import recordings as rest

__all__ = ["router"]

router = APIRouter(prefix="/recordings")

RecordingId = Annotated[int, Path(ge=1, le=2**31 - 1)]
_ROWS = 100
_CACHED = {**PAGE_HEADERS, "Cache-Control": "private, max-age=3600"}


def _replays(request: Request) -> Replays:
    replays: Replays = request.app.state.replays
    return replays


@router.get("")
def recordings_page(
    request: Request,
    context: Ctx,
    viewer: Visitor,
    policy: Annotated[str, Query(pattern=r"^([a-z0-9][a-z0-9._-]{0,127})?$")] = "",
) -> Response:
    """Show the newest recordings that the viewer may see."""
    found = rest.get_recordings(context, viewer.caller, policy=policy, limit=_ROWS)
    rows = [(row, kind_of(row.url, row.format)) for row in found]
    return render(request, "recordings.html", viewer, section="recordings", rows=rows, policy=policy)


@router.get("/{number}")
def replay_page(
    number: RecordingId,
    request: Request,
    context: Ctx,
    viewer: Visitor,
    frame: Annotated[int, Query(ge=0, le=2**31 - 1)] = 0,
) -> Response:
    """Replay one recording."""
    row = rest.get_one_recording(number, context, viewer.caller)
    kind, problem, steps, actions = kind_of(row.url, row.format), "", 0, ""
    facts: dict[str, Any] = {}
    try:
        if kind == "frames":
            episode = _replays(request).episode(row.url, row.sha256)
            names, steps = episode.meta.action_names, len(episode)
            shown = [names[index] if index >= 0 else "unknown" for index in episode.executed.tolist()]
            actions = "\n".join(shown)
            facts = {"game": episode.meta.game, "score": episode.meta.score, "seed": episode.meta.seed}
        elif kind == "video":
            _replays(request).film(row.url, row.sha256)
        elif kind:
            _replays(request).fetch(row.url, row.sha256)
    except PlayserveError as error:
        problem = str(error)
    return render(
        request, "replay.html", viewer, section="recordings", row=row, kind=kind, problem=problem, steps=steps,
        actions=actions, facts=facts, frame=min(frame, max(0, steps - 1)),
    )  # fmt: skip


@router.get("/{number}/frames/{index}.png")
def frame_file(
    number: RecordingId,
    index: Annotated[int, Path(ge=0, le=2**31 - 1)],
    request: Request,
    context: Ctx,
    viewer: Visitor,
) -> Response:
    """Return one frame of a recording."""
    row = rest.get_one_recording(number, context, viewer.caller)
    data = _replays(request).frame(row.url, row.sha256, index)
    return Response(data, media_type="image/png", headers=_CACHED)


@router.get("/{number}/video")
def video_file(number: RecordingId, request: Request, context: Ctx, viewer: Visitor) -> Response:
    """Return a recording that is a film, in pieces where the browser asks for them."""
    row = rest.get_one_recording(number, context, viewer.caller)
    if kind_of(row.url, row.format) != "video":
        raise NotFoundError(f"recording {number} is no film")
    return FileResponse(_replays(request).film(row.url, row.sha256), media_type="video/mp4", headers=_CACHED)


@router.get("/{number}/terminal")
def terminal_file(number: RecordingId, request: Request, context: Ctx, viewer: Visitor) -> Response:
    """Return a page that replays a game of NetHack; its own script runs in a sandbox without our origin."""
    from playserve_client.terminal.html import script_source

    row = rest.get_one_recording(number, context, viewer.caller)
    if kind_of(row.url, row.format) != "terminal":
        raise NotFoundError(f"recording {number} is no game in a terminal")
    title = row.name or f"Recording {number}"
    text = _replays(request).terminal_page(row.url, row.sha256, row.name, title)
    policy = (
        f"sandbox allow-scripts; default-src 'none'; style-src 'unsafe-inline'; script-src {script_source()}; "
        "frame-ancestors 'self'"
    )
    return HTMLResponse(text, headers={**_CACHED, "Content-Security-Policy": policy})
