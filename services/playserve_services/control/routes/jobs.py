"""Evaluations and grids, here or in a cluster: start, watch, cancel, fetch the report."""

from __future__ import annotations

import json
import math
import subprocess
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query

from playserve.errors import ServerFault, StateError
from playserve_services.control.context import Admin, Anybody, Context, Ctx
from playserve_services.control.jobs import processes
from playserve_services.control.jobs.requests import (
    EvaluationRequest,
    GridRequest,
    JobRequest,
    parse_request,
    report_command,
)
from playserve_services.control.models import Job
from playserve_services.control.problems import RESPONSES
from playserve_services.control.repository.aliases import aliases_of
from playserve_services.control.repository.jobs import JobState, get_job, list_jobs, want_cancel
from playserve_services.control.repository.replicas import is_fresh, list_replicas
from playserve_services.control.schemas import JobOut, LogOut, PartOut

__all__ = ["grid_status", "router"]

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], responses=RESPONSES)

_REPORT_TIMEOUT_S = 120.0
JobId = Annotated[str, Path(pattern=r"^[0-9a-f]{16}$")]


@router.post("", status_code=201)
def start_job(body: JobRequest, context: Ctx, caller: Admin) -> JobOut:
    """Start an evaluation or a grid; it waits until there is room."""
    if isinstance(body, EvaluationRequest) and body.server is None:
        body = body.model_copy(update={"server": _server_of(context, body.policy)})
    if isinstance(body, EvaluationRequest) and body.shards > 1:
        # An alias may move while shards begin; those of different versions cannot be put together.
        body = body.model_copy(update={"version": _version_of(context, body.policy, body.version)})
    return JobOut.model_validate(context.jobs.submit(caller.actor, body))


@router.get("")
def get_jobs(
    context: Ctx,
    caller: Anybody,
    state: JobState | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> list[JobOut]:
    """Return jobs, newest first."""
    with context.database.read() as session:
        return [JobOut.model_validate(row) for row in list_jobs(session, state=state or "", limit=limit)]


@router.get("/{job_id}")
def get_one_job(job_id: JobId, context: Ctx, caller: Anybody) -> JobOut:
    """Return one job."""
    return JobOut.model_validate(_job(context, job_id))


@router.get("/{job_id}/log")
def get_log(
    job_id: JobId,
    context: Ctx,
    caller: Anybody,
    tail_bytes: Annotated[int, Query(ge=1, le=262_144)] = 16_384,
    part: Annotated[int | None, Query(ge=0, le=2**31 - 1, description="Of this part; absent: of all.")] = None,
) -> LogOut:
    """Return the end of a job's log."""
    job = _job(context, job_id)
    return LogOut(id=job.id, state=job.state, tail=context.jobs.log_tail(job, tail_bytes, part))


@router.get("/{job_id}/parts")
def get_parts(job_id: JobId, context: Ctx, caller: Anybody) -> list[PartOut]:
    """Return what each part of a job in a cluster does; nothing of one that runs as a whole, or whose pods are gone."""
    return [PartOut.model_validate(part) for part in context.jobs.parts(_job(context, job_id))]


@router.post("/{job_id}/cancel")
def cancel_job(job_id: JobId, context: Ctx, caller: Admin) -> JobOut:
    """Cancel a job; one that runs has a moment to save what it has."""
    with context.database.change() as session:
        row = want_cancel(session, caller.actor, job_id)
    context.jobs.nudge()
    return JobOut.model_validate(row)


@router.get("/{job_id}/report")
def get_report(job_id: JobId, context: Ctx, caller: Anybody) -> dict[str, Any]:
    """Return what came out: results.json of an evaluation, the status of a grid."""
    job = _job(context, job_id)
    request = parse_request(job.request)
    if isinstance(request, GridRequest):
        return grid_status(context, request)
    # What is not finite is null: JSON has no other word, and a missing result is missing.
    report: dict[str, Any] = _finite(context.jobs.evaluation_report(job))
    return report


def _job(context: Context, job_id: str) -> Job:
    with context.database.read() as session:
        return get_job(session, job_id)


def _version_of(context: Context, policy: str, reference: str) -> str:
    with context.database.read() as session:
        return aliases_of(session, policy).get(policy, {}).get(reference, reference)


def _server_of(context: Context, policy: str) -> str:
    with context.database.read() as session:
        replicas = list_replicas(session)
    able = [
        row for row in replicas
        if is_fresh(row, context.settings.replica_timeout_s) and policy in row.versions
        and not (row.draining or row.drain_wanted)
    ]  # fmt: skip
    if not able:
        raise StateError(f"no replica that was heard of lately serves {policy!r}; name a server")
    return max(able, key=lambda row: row.slots_total - row.slots_used).address


def grid_status(context: Context, request: GridRequest) -> dict[str, Any]:
    """Return how far a grid is; raises ServerFault where its folder does not tell."""
    try:
        value = json.loads(processes.capture(report_command(request, context.settings.grids), _REPORT_TIMEOUT_S))
    except (subprocess.SubprocessError, ValueError) as error:
        raise ServerFault(f"the grid {request.grid!r} tells no status ({type(error).__name__})") from error
    if not isinstance(value, dict):
        raise ServerFault(f"the grid {request.grid!r} tells {type(value).__name__}, not an object")
    return value


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list) else value
