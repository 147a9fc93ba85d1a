"""Results of evaluations, with intervals."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from playserve_services.control.context import Admin, Anybody, Ctx
from playserve_services.control.problems import RESPONSES
from playserve_services.control.repository.evaluations import list_evaluations, record_evaluation
from playserve_services.control.schemas import EvaluationIn, EvaluationOut, Line, NameInPath, VersionInPath

__all__ = ["router"]

router = APIRouter(prefix="/v1/policies/{policy}", tags=["evaluations"], responses=RESPONSES)


@router.get("/evaluations")
def get_evaluations(
    policy: NameInPath,
    context: Ctx,
    caller: Anybody,
    version: Annotated[str, Query(pattern=r"^([1-9][0-9]{0,17})?$")] = "",
    protocol: Line = "",
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> list[EvaluationOut]:
    """Return the results of a policy, newest first."""
    with context.database.read() as session:
        rows = list_evaluations(session, policy, version=version, protocol=protocol, limit=limit)
        return [EvaluationOut.of(row) for row in rows]


@router.post("/versions/{version}/evaluations", status_code=201)
def add_evaluation(
    policy: NameInPath, version: VersionInPath, body: EvaluationIn, context: Ctx, caller: Admin
) -> EvaluationOut:
    """Record what was measured of a version."""
    with context.database.change() as session:
        return EvaluationOut.of(record_evaluation(session, caller.actor, policy, version, body.measured()))
