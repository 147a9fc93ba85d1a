"""Policies: versions, where new sessions go, what was measured; promoting, rolling back and splitting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Form, Query, Request
from starlette.responses import RedirectResponse, Response

from playserve.errors import PlayserveError
from playserve_services.control.context import Ctx
from playserve_services.control.pages.access import AdminViewer, CheckedAdmin, Visitor
from playserve_services.control.pages.charts import IntervalChart, fleet_charts, interval_chart
from playserve_services.control.pages.rendering import render
from playserve_services.control.repository.aliases import CANDIDATE, STABLE, check_alias, previous_target
from playserve_services.control.routes import aliases as rest_aliases
from playserve_services.control.routes import evaluations as rest_evaluations
from playserve_services.control.routes import policies as rest
from playserve_services.control.schemas import (
    AliasIn,
    CanaryIn,
    EvaluationOut,
    GateIn,
    NameInPath,
    PolicyOut,
    VersionName,
)

__all__ = ["router"]

router = APIRouter()

_EVALUATIONS = 200
AliasName = Annotated[str, Query(pattern=r"^[a-z0-9][a-z0-9._-]{0,127}$")]


@dataclass(frozen=True, slots=True)
class Split:
    """Where a policy's new sessions go.

    Attributes:
        stable: Version of the alias stable, or empty: the newest.
        candidate: Version of the alias candidate, or empty.
        weight: Share that goes to the candidate.
    """

    stable: str
    candidate: str
    weight: float


@dataclass(frozen=True, slots=True)
class Protocol:
    """Results of one protocol, newest first, and their chart.

    Attributes:
        words: The protocol.
        rows: Results.
        chart: Means of the newest result of each version.
    """

    words: str
    rows: list[EvaluationOut]
    chart: IntervalChart | None


def split_of(policy: PolicyOut) -> Split:
    """Return where a policy's new sessions go."""
    candidate = policy.aliases.get(CANDIDATE, "")
    return Split(policy.aliases.get(STABLE, ""), candidate, policy.canary_weight if candidate else 0.0)


def by_protocol(rows: Sequence[EvaluationOut]) -> list[Protocol]:
    """Return results by protocol, that of the newest result first: only results of one are compared."""
    found: dict[str, list[EvaluationOut]] = {}
    for row in rows:
        found.setdefault(row.protocol, []).append(row)
    protocols = []
    for words, items in found.items():
        newest: dict[str, EvaluationOut] = {}
        for item in items:
            newest.setdefault(item.version, item)
        ordered = sorted(newest.values(), key=lambda item: -int(item.version))[:12]
        points = [(f"version {item.version}", item.mean, item.interval) for item in ordered]
        said = f"Mean score with 95 % intervals of {len(points)} versions."
        protocols.append(Protocol(words, items, interval_chart(points, said, left=90)))
    return protocols


@router.get("/policies")
def policies_page(request: Request, context: Ctx, viewer: Visitor) -> Response:
    """Show every policy."""
    found = rest.get_policies(context, viewer.caller)
    return render(
        request, "policies.html", viewer, section="policies", policies=[(row, split_of(row)) for row in found]
    )  # fmt: skip


@router.get("/policies/{policy}")
def policy_page(policy: NameInPath, request: Request, context: Ctx, viewer: Visitor) -> Response:
    """Show one policy: its versions, its split, what was measured of it."""
    row = rest.get_one_policy(policy, context, viewer.caller)
    versions = rest.get_versions(policy, context, viewer.caller)
    measured = rest_evaluations.get_evaluations(
        policy, context, viewer.caller, version="", protocol="", limit=_EVALUATIONS
    )
    with context.database.read() as session:
        before = {alias: previous_target(session, policy, alias) for alias in row.aliases}
    return render(
        request, "policy.html", viewer, section="policies", policy=row, split=split_of(row), versions=versions,
        before=before, protocols=by_protocol(measured), charts=fleet_charts(context.history, policy=policy),
    )  # fmt: skip


@router.get("/policies/{policy}/promote")
def promote_page(
    policy: NameInPath,
    request: Request,
    context: Ctx,
    viewer: AdminViewer,
    version: VersionName,
    alias: AliasName = STABLE,
) -> Response:
    """Say what promoting would do, and what the gate says of it."""
    rest.get_one_version(policy, version, context, viewer.caller)
    row = rest.get_one_policy(policy, context, viewer.caller)
    gate: Any = None
    problem = ""
    try:
        gate = rest_aliases.try_gate(policy, version, _gate(alias), context, viewer.caller)
    except PlayserveError as error:
        problem = str(error)
    return render(
        request, "promote.html", viewer, section="policies", policy=row, version=version, alias=check_alias(alias),
        now=row.aliases.get(alias, ""), gate=gate, problem=problem,
    )  # fmt: skip


def _gate(alias: str) -> GateIn:
    """Return the gate of the dashboard: no margin, level 0.05, against what the alias, or stable, points at."""
    return GateIn.model_validate({"against": STABLE if alias == CANDIDATE else alias})


@router.post("/policies/{policy}/promote")
def send_promote(
    policy: NameInPath,
    request: Request,
    context: Ctx,
    viewer: CheckedAdmin,
    version: Annotated[str, Form(pattern=r"^[1-9][0-9]{0,17}$")],
    alias: Annotated[str, Form(pattern=r"^[a-z0-9][a-z0-9._-]{0,127}$")],
    expected: Annotated[str, Form(pattern=r"^([1-9][0-9]{0,17})?$")] = "",
    gated: Annotated[str, Form(max_length=3)] = "",
) -> Response:
    """Point an alias at a version, if it still points where the viewer saw it point."""
    body = AliasIn(version=version, expected=expected, gate=_gate(alias) if gated else None)
    rest_aliases.set_alias(policy, alias, body, context, viewer.caller)
    return _to(request, policy, "promoted")


@router.get("/policies/{policy}/roll-back")
def roll_back_page(
    policy: NameInPath, request: Request, context: Ctx, viewer: AdminViewer, alias: AliasName = STABLE
) -> Response:
    """Say what rolling back would do."""
    row = rest.get_one_policy(policy, context, viewer.caller)
    with context.database.read() as session:
        target = previous_target(session, policy, check_alias(alias))
    return render(
        request, "roll_back.html", viewer, section="policies", policy=row, alias=alias,
        now=row.aliases.get(alias, ""), target=target,
    )  # fmt: skip


@router.post("/policies/{policy}/roll-back")
def send_roll_back(
    policy: NameInPath,
    request: Request,
    context: Ctx,
    viewer: CheckedAdmin,
    alias: Annotated[str, Form(pattern=r"^[a-z0-9][a-z0-9._-]{0,127}$")],
) -> Response:
    """Point an alias at its previous target."""
    rest_aliases.rollback(policy, alias, context, viewer.caller)
    return _to(request, policy, "rolled-back")


@router.get("/policies/{policy}/canary")
def canary_page(
    policy: NameInPath,
    request: Request,
    context: Ctx,
    viewer: AdminViewer,
    percent: Annotated[float, Query(ge=0, le=100, allow_inf_nan=False)],
) -> Response:
    """Ask whether the split is really to change."""
    row = rest.get_one_policy(policy, context, viewer.caller)
    return render(
        request, "canary.html", viewer, section="policies", policy=row, split=split_of(row), percent=percent
    )  # fmt: skip


@router.post("/policies/{policy}/canary")
def send_canary(
    policy: NameInPath,
    request: Request,
    context: Ctx,
    viewer: CheckedAdmin,
    percent: Annotated[float, Form(ge=0, le=100, allow_inf_nan=False)],
) -> Response:
    """Set the share of new sessions that get the candidate."""
    rest_aliases.set_canary(policy, CanaryIn(weight=percent / 100), context, viewer.caller)
    return _to(request, policy, "canary")


def _to(request: Request, policy: str, done: str) -> Response:
    return RedirectResponse(f"{request.scope['root_path']}/policies/{policy}?done={done}", 303)
