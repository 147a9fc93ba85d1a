"""Aliases and canary weights: which version a new session gets. Each change is audited, and can be taken back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from playserve.errors import BadSettingError, NotFoundError, StateError
from playserve.specs import check_policy_name
from playserve_services.control.models import Alias, AuditEntry
from playserve_services.control.repository.audit import Actor, bump, note, now
from playserve_services.control.repository.policies import get_policy, get_version

__all__ = ["CANDIDATE", "STABLE", "AliasMovedError", "aliases_of", "check_alias", "previous_target", "remove_alias",
           "roll_back", "set_alias", "set_canary_weight"]  # fmt: skip

STABLE = "stable"
CANDIDATE = "candidate"

_SET, _ROLLED_BACK, _REMOVED = "alias.set", "alias.rolled_back", "alias.removed"


class AliasMovedError(StateError):
    """An alias points elsewhere than the caller believed: somebody else was quicker."""

    reason = "ALIAS_MOVED"


def check_alias(alias: str) -> str:
    """Return `alias`, or raise BadSettingError where it can be none: a number and "latest" mean versions."""
    if check_policy_name(alias).isdigit() or alias == "latest":
        raise BadSettingError(f"alias {alias!r} would hide a version: it may not be a number or 'latest'")
    return alias


def aliases_of(session: Session, policy: str | None = None) -> dict[str, dict[str, str]]:
    """Return version by alias by policy; of one policy, or of all."""
    query = select(Alias).order_by(Alias.policy, Alias.alias)
    found: dict[str, dict[str, str]] = {}
    for row in session.execute(query if policy is None else query.where(Alias.policy == policy)).scalars():
        found.setdefault(row.policy, {})[row.alias] = row.version
    return found


def set_alias(
    session: Session,
    actor: Actor,
    policy: str,
    alias: str,
    version: str,
    *,
    expected: str | None = None,
    evidence: Mapping[str, Any] | None = None,
) -> str | None:
    """Point an alias at a version; return the version that it pointed at, or None.

    Args:
        session: Of a change.
        actor: Who.
        policy: Whose alias.
        alias: Its name.
        version: A registered version.
        expected: Version that the caller believes it points at; "": that there is no such alias; None: whatever.
        evidence: What goes into the audit beside the version, such as the gate's numbers.

    Raises:
        BadSettingError: That can be no alias.
        PolicyNotFoundError, VersionNotFoundError: Nothing of that name is registered.
        AliasMovedError: It does not point at what was expected.
    """
    check_alias(alias)
    get_version(session, policy, version)
    row = session.get(Alias, (policy, alias))
    before = None if row is None else row.version
    if expected is not None and expected != (before or ""):
        raise AliasMovedError(
            f"{policy}/{alias} points at {before or 'nothing'}, not at {expected or 'nothing'} as was expected"
        )
    _point(session, policy, alias, version)
    if before != version:
        bump(session)
    note(
        session, actor, _SET, f"{policy}/{alias}",
        before={"version": before}, after={"version": version, **(evidence or {})},
    )  # fmt: skip
    return before


def remove_alias(session: Session, actor: Actor, policy: str, alias: str) -> str:
    """Remove an alias; return the version that it pointed at.

    Raises:
        NotFoundError: There is none.
        StateError: It is the candidate, and sessions are still sent there.
    """
    row = _alias(session, policy, alias)
    weight = get_policy(session, policy).canary_weight
    if alias == CANDIDATE and weight > 0:
        raise StateError(f"{weight:g} of {policy}'s sessions go to its candidate; set the canary weight to 0 first")
    session.delete(row)
    session.flush()
    bump(session)
    note(session, actor, _REMOVED, f"{policy}/{alias}", before={"version": row.version}, after={"version": None})
    return row.version


def roll_back(session: Session, actor: Actor, policy: str, alias: str) -> tuple[str, str]:
    """Point an alias at its previous target; return the versions before and after.

    A second call goes one further back, not forth again to what was just left.

    Raises:
        NotFoundError: There is no such alias.
        StateError: It never pointed at anything else.
    """
    row = _alias(session, policy, alias)
    before, target = row.version, previous_target(session, policy, alias)
    if target is None:
        raise StateError(f"{policy}/{alias} points at {before}, and never pointed at anything before that")
    _point(session, policy, alias, target)
    bump(session)
    note(session, actor, _ROLLED_BACK, f"{policy}/{alias}", before={"version": before}, after={"version": target})
    return before, target


def previous_target(session: Session, policy: str, alias: str) -> str | None:
    """Return what an alias pointed at before what it points at now, by the audit; None: nothing."""
    query = (
        select(AuditEntry)
        .where(AuditEntry.subject == f"{policy}/{alias}", AuditEntry.action.in_((_SET, _ROLLED_BACK, _REMOVED)))
        .order_by(AuditEntry.id)
    )
    targets: list[str] = []
    for entry in session.execute(query).scalars():
        if entry.action == _REMOVED:
            targets.clear()
        elif entry.action == _ROLLED_BACK:
            del targets[-1:]
        elif not targets or targets[-1] != entry.after["version"]:
            targets.append(entry.after["version"])
    return targets[-2] if len(targets) > 1 else None


def set_canary_weight(session: Session, actor: Actor, policy: str, weight: float) -> float:
    """Set the share of new sessions that get the candidate; return what it was.

    Raises:
        BadSettingError: It is not between 0 and 1.
        PolicyNotFoundError: There is no such policy.
        StateError: It has no candidate that could get sessions.
    """
    if not 0.0 <= weight <= 1.0:
        raise BadSettingError(f"canary weight {weight:g} is not between 0 and 1")
    row = get_policy(session, policy)
    if weight > 0 and session.get(Alias, (policy, CANDIDATE)) is None:
        raise StateError(f"{policy} has no alias {CANDIDATE!r}; set it before sessions are sent there")
    before, row.canary_weight = row.canary_weight, weight
    session.flush()
    if before != weight:
        bump(session)
    note(session, actor, "canary.set", policy, before={"weight": before}, after={"weight": weight})
    return before


def _alias(session: Session, policy: str, alias: str) -> Alias:
    get_policy(session, policy)
    row = session.get(Alias, (policy, check_alias(alias)))
    if row is None:
        known = ", ".join(aliases_of(session, policy).get(policy, {})) or "none"
        raise NotFoundError(f"policy {policy!r} has no alias {alias!r}; it has: {known}")
    return row


def _point(session: Session, policy: str, alias: str, version: str) -> None:
    session.merge(Alias(policy=policy, alias=alias, version=version, updated_at=now()))
    session.flush()
