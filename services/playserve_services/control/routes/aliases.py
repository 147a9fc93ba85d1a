"""Promote, roll back, split: which version new sessions get."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel

from playserve_services.control.context import Admin, Anybody, Ctx
from playserve_services.control.problems import RESPONSES
from playserve_services.control.promotion import gate, promote
from playserve_services.control.repository.aliases import aliases_of, remove_alias, roll_back, set_canary_weight
from playserve_services.control.repository.audit import revision
from playserve_services.control.repository.policies import get_policy
from playserve_services.control.schemas import (
    AliasIn,
    AliasOut,
    CanaryIn,
    GateIn,
    NameInPath,
    PolicyOut,
    RollbackOut,
    VersionInPath,
)

__all__ = ["router"]

router = APIRouter(prefix="/v1/policies/{policy}", tags=["promotion"], responses=RESPONSES)


class GateOut(BaseModel):
    """The gate's numbers."""

    passed: bool
    words: str
    numbers: dict[str, Any]


@router.put("/aliases/{alias}")
def set_alias(policy: NameInPath, alias: NameInPath, body: AliasIn, context: Ctx, caller: Admin) -> AliasOut:
    """Promote: point an alias at a version, through the gate where one is asked for."""
    rule = None if body.gate is None else body.gate.rule()
    with context.database.change() as session:
        before, result = promote(
            session, caller.actor, policy, alias, body.version, expected=body.expected, rule=rule
        )  # fmt: skip
        return AliasOut(
            policy=policy, alias=alias, version=body.version, before=before, revision=revision(session),
            gate=None if result is None else result.to_json(),
        )  # fmt: skip


@router.delete("/aliases/{alias}", status_code=204)
def delete_alias(policy: NameInPath, alias: NameInPath, context: Ctx, caller: Admin) -> None:
    """Remove an alias."""
    with context.database.change() as session:
        remove_alias(session, caller.actor, policy, alias)


@router.post("/aliases/{alias}/rollback")
def rollback(policy: NameInPath, alias: NameInPath, context: Ctx, caller: Admin) -> RollbackOut:
    """Point an alias at its previous target; again: one further back."""
    with context.database.change() as session:
        before, version = roll_back(session, caller.actor, policy, alias)
        return RollbackOut(
            policy=policy, alias=alias, version=version, before=before, revision=revision(session)
        )  # fmt: skip


@router.put("/canary")
def set_canary(policy: NameInPath, body: CanaryIn, context: Ctx, caller: Admin) -> PolicyOut:
    """Set the share of new sessions that get the candidate."""
    with context.database.change() as session:
        set_canary_weight(session, caller.actor, policy, body.weight)
        row = get_policy(session, policy)
        return PolicyOut(
            name=row.name, aliases=aliases_of(session, policy).get(policy, {}), canary_weight=row.canary_weight,
            created_at=row.created_at,
        )  # fmt: skip


@router.post("/versions/{version}/gate")
def try_gate(policy: NameInPath, version: VersionInPath, body: GateIn, context: Ctx, caller: Anybody) -> GateOut:
    """Say what the gate would say, and change nothing."""
    with context.database.read() as session:
        result = gate(session, policy, version, body.rule())
    return GateOut(passed=result.passed, words=result.in_words(), numbers=result.to_json())
