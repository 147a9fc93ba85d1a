"""Jobs: evaluations and grids that run, waited for or ended; their logs and what came out."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from starlette.responses import RedirectResponse, Response

from playserve.errors import PlayserveError
from playserve_services.control.context import Ctx
from playserve_services.control.jobs.results import measured_of
from playserve_services.control.pages.access import AdminViewer, CheckedAdmin, Visitor
from playserve_services.control.pages.charts import IntervalChart, interval_chart
from playserve_services.control.pages.rendering import render
from playserve_services.control.repository.evaluations import Measured
from playserve_services.control.repository.jobs import ENDED
from playserve_services.control.routes import jobs as rest
from playserve_services.control.schemas import JobOut
from playserve_services.control.statistics import mean_interval

__all__ = ["router"]

router = APIRouter()

JobId = Annotated[str, Path(pattern=r"^[0-9a-f]{16}$")]
_TAIL_BYTES = 8192
_JOBS = 100


def words_of(job: JobOut) -> str:
    """Return what a job was asked to do, in words."""
    asked = job.request
    if job.kind == "grid":
        return f"train the grid {asked.get('grid')} with {asked.get('workers')} workers"
    return f"{asked.get('policy')} {asked.get('version')} plays {asked.get('family')} {asked.get('game')}"


def _results(
    context: Ctx, job: JobOut, viewer: Any
) -> tuple[list[tuple[Measured, tuple[float, float] | None]], IntervalChart | None]:
    """Return what an evaluation measured with intervals, and their chart; nothing where it has no report."""
    if job.kind != "evaluation" or job.state != "succeeded":
        return [], None
    try:
        _, _, found = measured_of(rest.get_report(job.id, context, viewer.caller), "")
    except PlayserveError:
        return [], None
    rows = [(item, mean_interval(item.mean, item.se, item.n)) for item in found]
    points = [(f"row {number}", item.mean, interval) for number, (item, interval) in enumerate(rows, 1)]
    return rows, interval_chart(points, "Mean score of each row with its 95 % interval.", left=70)


@router.get("/jobs")
def jobs_page(request: Request, context: Ctx, viewer: Visitor) -> Response:
    """Show the newest jobs."""
    found = rest.get_jobs(context, viewer.caller, state=None, limit=_JOBS)
    return render(request, "jobs.html", viewer, section="jobs", jobs=[(job, words_of(job)) for job in found])


@router.get("/jobs/{job_id}")
def job_page(job_id: JobId, request: Request, context: Ctx, viewer: Visitor) -> Response:
    """Show one job: its log, and what came out."""
    job = rest.get_one_job(job_id, context, viewer.caller)
    log = rest.get_log(job_id, context, viewer.caller, tail_bytes=_TAIL_BYTES)
    results, chart = _results(context, job, viewer)
    return render(
        request, "job.html", viewer, section="jobs", job=job, words=words_of(job), log=log, results=results,
        chart=chart, ended=job.state in ENDED,
    )  # fmt: skip


@router.get("/jobs/{job_id}/cancel")
def cancel_page(job_id: JobId, request: Request, context: Ctx, viewer: AdminViewer) -> Response:
    """Ask whether a job is really to end."""
    job = rest.get_one_job(job_id, context, viewer.caller)
    return render(request, "cancel_job.html", viewer, section="jobs", job=job, words=words_of(job))


@router.post("/jobs/{job_id}/cancel")
def send_cancel(job_id: JobId, request: Request, context: Ctx, viewer: CheckedAdmin) -> Response:
    """End a job."""
    rest.cancel_job(job_id, context, viewer.caller)
    return RedirectResponse(f"{request.scope['root_path']}/jobs/{job_id}?done=cancelled", 303)
