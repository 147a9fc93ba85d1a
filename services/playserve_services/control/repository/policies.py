"""Policies and their versions, as registered. The files themselves are the store's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from playserve.errors import DataLossError, PolicyNotFoundError, VersionNotFoundError
from playserve.specs import check_policy_name
from playserve_services.control.models import PolicyRow, Version
from playserve_services.control.repository.audit import Actor, note, now

__all__ = [
    "VersionFacts", "get_policy", "get_version", "list_policies", "list_versions", "register_version",
    "registered_versions",
]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionFacts:
    """What is registered of a version.

    Attributes:
        policy: Name.
        version: A whole number, as the store counts.
        weights_sha256: Digest of the weights, checked.
        size_bytes: Of the weights.
        facts: What the manifest says.
    """

    policy: str
    version: str
    weights_sha256: str
    size_bytes: int
    facts: Mapping[str, Any]


def list_policies(session: Session) -> Sequence[PolicyRow]:
    """Return every policy, by name."""
    return session.execute(select(PolicyRow).order_by(PolicyRow.name)).scalars().all()


def get_policy(session: Session, name: str) -> PolicyRow:
    """Return one policy.

    Raises:
        BadSettingError: That can name no policy.
        PolicyNotFoundError: None is registered under it.
    """
    row = session.get(PolicyRow, check_policy_name(name))
    if row is None:
        known = session.execute(select(PolicyRow.name).order_by(PolicyRow.name).limit(20)).scalars().all()
        raise PolicyNotFoundError(f"no policy {name!r} is registered; there are: {', '.join(known) or 'none'}")
    return row


def list_versions(session: Session, policy: str) -> Sequence[Version]:
    """Return the versions of a policy, newest first; raises as :func:`get_policy`."""
    get_policy(session, policy)
    return session.execute(
        select(Version).where(Version.policy == policy).order_by(Version.number.desc())
    ).scalars().all()  # fmt: skip


def get_version(session: Session, policy: str, version: str) -> Version:
    """Return one version.

    Raises:
        BadSettingError, PolicyNotFoundError: As :func:`get_policy`.
        VersionNotFoundError: It is not registered.
    """
    get_policy(session, policy)
    row = session.get(Version, (policy, version))
    if row is None:
        known = [row.version for row in list_versions(session, policy)[:20]]
        raise VersionNotFoundError(
            f"policy {policy!r} has no registered version {version!r}; the newest are: {', '.join(known) or 'none'}"
        )
    return row


def registered_versions(session: Session) -> set[tuple[str, str]]:
    """Return (policy, version) of everything that is registered."""
    return {(policy, version) for policy, version in session.execute(select(Version.policy, Version.version))}


def register_version(session: Session, actor: Actor, facts: VersionFacts) -> tuple[Version, bool]:
    """Register a version, and its policy where it is the first; return it, and whether it is new.

    Raises:
        BadSettingError: The name is none.
        DataLossError: It is registered with another digest: what is in the store is not what was.
    """
    policy = session.get(PolicyRow, check_policy_name(facts.policy))
    if policy is None:
        session.add(PolicyRow(name=facts.policy, canary_weight=0.0, created_at=now()))
        session.flush()
    found = session.get(Version, (facts.policy, facts.version))
    if found is not None:
        if found.weights_sha256 != facts.weights_sha256:
            raise DataLossError(
                f"{facts.policy} {facts.version} was registered with sha256 {found.weights_sha256}; the store has "
                f"{facts.weights_sha256}"
            )
        return found, False
    row = Version(
        policy=facts.policy, version=facts.version, number=int(facts.version), weights_sha256=facts.weights_sha256,
        size_bytes=facts.size_bytes, facts=dict(facts.facts), created_at=now(), created_by=actor.principal,
    )  # fmt: skip
    session.add(row)
    session.flush()
    after = {"weights_sha256": facts.weights_sha256, "size_bytes": facts.size_bytes}
    note(session, actor, "version.registered", f"{facts.policy}/{facts.version}", after=after)
    return row, True
