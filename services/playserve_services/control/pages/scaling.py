"""Scaling: the grids of this control plane, how far each is, and the report of its laws in a frame of its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import FileResponse, Response

from playserve.errors import BadSettingError, DataLossError, NotFoundError
from playserve.files import read_json
from playserve.specs import check_policy_name
from playserve_services.control.context import Context, Ctx
from playserve_services.control.jobs.requests import GridRequest
from playserve_services.control.pages.access import Visitor
from playserve_services.control.pages.rendering import render
from playserve_services.control.routes import jobs as rest
from playserve_services.control.schemas import NameInPath

__all__ = ["REPORT", "router"]

router = APIRouter()

#: Where a grid's folder has its report: `playserve laws report DIR --out DIR/report`.
REPORT = Path("report") / "index.html"
# The page is one file with its pictures in it. It gets no scripts and nothing from anywhere, whatever is in it.
_REPORT_HEADERS = {
    "Content-Security-Policy": "sandbox; default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
    "frame-ancestors 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_MOST_RUNS = 400


@dataclass(frozen=True, slots=True)
class Grid:
    """A planned grid.

    Attributes:
        name: Of its folder.
        study: What it studies.
        tier: How large it is.
        runs: Planned runs.
        has_report: Whether its laws were reported.
    """

    name: str
    study: str
    tier: str
    runs: int
    has_report: bool


def _read(folder: Path) -> Grid:
    try:
        plan: dict[str, Any] = read_json(folder / "plan.json") or {}
    except DataLossError:
        plan = {}
    study = plan.get("study")
    named: dict[str, Any] = study if isinstance(study, dict) else {}
    runs = plan.get("runs")
    count = len(runs) if isinstance(runs, list) else 0
    study_name, tier = str(named.get("study", "")), str(named.get("tier", ""))
    return Grid(folder.name, study_name, tier, count, (folder / REPORT).is_file())


def _grids(context: Context) -> list[Grid]:
    root = context.settings.grids
    if root is None or not root.is_dir():
        return []
    found = []
    for path in sorted(root.glob("*/plan.json")):
        try:
            check_policy_name(path.parent.name)
        except BadSettingError:
            continue  # jobs could not name it either
        found.append(_read(path.parent))
    return found


def _request(name: str) -> GridRequest:
    return GridRequest.model_validate({"kind": "grid", "grid": name})


@router.get("/scaling")
def grids_page(request: Request, context: Ctx, viewer: Visitor) -> Response:
    """Show the grids."""
    return render(
        request, "grids.html", viewer, section="scaling", grids=_grids(context), folder=context.settings.grids
    )  # fmt: skip


@router.get("/scaling/{grid}")
def grid_page(grid: NameInPath, request: Request, context: Ctx, viewer: Visitor) -> Response:
    """Show a grid and its report."""
    folder = _request(grid).folder(context.settings.grids)
    return render(request, "grid.html", viewer, section="scaling", grid=_read(folder), folder=folder)


@router.get("/scaling/{grid}/progress")
def progress_page(grid: NameInPath, request: Request, context: Ctx, viewer: Visitor) -> Response:
    """Show how far a grid is; counting takes some seconds."""
    found = rest.grid_status(context, _request(grid))
    runs = found.get("each") or []
    return render(
        request, "progress.html", viewer, section="scaling", grid=grid, found=found, runs=runs[:_MOST_RUNS],
        more=max(0, len(runs) - _MOST_RUNS),
    )  # fmt: skip


@router.get("/scaling/{grid}/report")
def report_file(grid: NameInPath, context: Ctx, viewer: Visitor) -> Response:
    """Return a grid's report, a page from elsewhere: it is shown in a sandbox."""
    path = _request(grid).folder(context.settings.grids) / REPORT
    if not path.is_file():
        raise NotFoundError(f"the grid {grid!r} has no report yet")
    return FileResponse(path, media_type="text/html; charset=utf-8", headers=_REPORT_HEADERS)
