"""The registry's tables. Whoever changes them adds a migration: a test holds the two against each other.

Names, not numbers, are keys where people type them. Times are UTC. What the inference servers' view shows
(aliases, canary weights, keys, drains) is under the one row of :class:`Registry`, whose revision counts its changes.
"""

from __future__ import annotations

import datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    Text,
    TypeDecorator,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

__all__ = [
    "Alias", "ApiKeyRow", "AuditEntry", "Base", "Evaluation", "Job", "PolicyRow", "Recording", "Registry", "Replica",
    "ReplicaSession", "UtcDateTime", "Version",
]  # fmt: skip

#: Longest name of a policy, alias or replica (playserve.specs.check_policy_name).
_NAME = 128
#: Longest version: a whole number in decimal.
_VERSION = 20
#: Longest name of a key or token in the audit: "jwt:" and a principal.
_KEY_ID = 200


class UtcDateTime(TypeDecorator[datetime.datetime]):
    """A time with its zone, UTC. SQLite keeps no zones, so the zone is put back when a row is read."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime.datetime | None, dialect: Dialect) -> datetime.datetime | None:
        """Return the time in UTC; ValueError for one without a zone."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value!r} has no time zone")
        return value.astimezone(datetime.UTC)

    def process_result_value(self, value: datetime.datetime | None, dialect: Dialect) -> datetime.datetime | None:
        """Return the time with its zone."""
        if value is None:
            return None
        return value.replace(tzinfo=datetime.UTC) if value.tzinfo is None else value.astimezone(datetime.UTC)


class Base(DeclarativeBase):
    """Of every table. Constraints have names, so that migrations can name them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {datetime.datetime: UtcDateTime(), dict[str, Any]: JSON(), list[Any]: JSON()}  # noqa: RUF012


class Registry(Base):
    """One row, id 1. Every change locks it, so that changes happen one after another."""

    __tablename__ = "registry"

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    revision: Mapped[int] = mapped_column(BigInteger, default=0)
    """Grows with every change that the view shows."""


class PolicyRow(Base):
    """A policy's name and its share of canary sessions."""

    __tablename__ = "policies"

    name: Mapped[str] = mapped_column(String(_NAME), primary_key=True)
    canary_weight: Mapped[float] = mapped_column(Float, default=0.0)
    created_at: Mapped[datetime.datetime]


class Version(Base):
    """A published checkpoint. It never changes."""

    __tablename__ = "versions"

    policy: Mapped[str] = mapped_column(String(_NAME), ForeignKey("policies.name"), primary_key=True)
    version: Mapped[str] = mapped_column(String(_VERSION), primary_key=True)
    number: Mapped[int] = mapped_column(BigInteger)
    """The version as a number, for order."""
    weights_sha256: Mapped[str] = mapped_column(String(64))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    facts: Mapped[dict[str, Any]]
    """What the manifest says: family, parameters, samples, FLOPs, metrics, when it was trained."""
    created_at: Mapped[datetime.datetime]
    """When it was registered."""
    created_by: Mapped[str] = mapped_column(String(_NAME))


class Alias(Base):
    """A name for a version of one policy, such as stable."""

    __tablename__ = "aliases"
    __table_args__ = (ForeignKeyConstraint(["policy", "version"], ["versions.policy", "versions.version"]),)

    policy: Mapped[str] = mapped_column(String(_NAME), primary_key=True)
    alias: Mapped[str] = mapped_column(String(_NAME), primary_key=True)
    version: Mapped[str] = mapped_column(String(_VERSION))
    updated_at: Mapped[datetime.datetime]


class Evaluation(Base):
    """How well a version plays, by one protocol."""

    __tablename__ = "evaluations"
    __table_args__ = (
        ForeignKeyConstraint(["policy", "version"], ["versions.policy", "versions.version"]),
        Index(None, "policy", "version"),
    )

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    policy: Mapped[str] = mapped_column(String(_NAME))
    version: Mapped[str] = mapped_column(String(_VERSION))
    protocol: Mapped[str] = mapped_column(Text)
    """What was measured. Only results of the same protocol are compared."""
    n: Mapped[int] = mapped_column(Integer)
    """Episodes."""
    mean: Mapped[float] = mapped_column(Float)
    se: Mapped[float | None] = mapped_column(Float)
    """Standard error of the mean; none for one episode."""
    scores: Mapped[list[Any]]
    """Score of each episode; empty where nobody sent them."""
    source: Mapped[str] = mapped_column(String(200))
    created_at: Mapped[datetime.datetime]
    created_by: Mapped[str] = mapped_column(String(_NAME))


class ApiKeyRow(Base):
    """What is kept of an API key (playserve_services.auth.keys.ApiKey): never the secret."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(12), primary_key=True)
    secret_sha256: Mapped[str] = mapped_column(String(64))
    principal: Mapped[str] = mapped_column(String(_NAME))
    scopes: Mapped[list[Any]]
    quota: Mapped[dict[str, Any]]
    expires_at: Mapped[datetime.datetime | None]
    created_at: Mapped[datetime.datetime]
    created_by: Mapped[str] = mapped_column(String(_NAME))
    revoked_at: Mapped[datetime.datetime | None]


class Replica(Base):
    """An inference server, as its last heartbeat told it."""

    __tablename__ = "replicas"

    name: Mapped[str] = mapped_column(String(_NAME), primary_key=True)
    instance: Mapped[str] = mapped_column(String(64))
    """Of one process: a restarted server has another, and is not told to drain any more."""
    address: Mapped[str] = mapped_column(String(300))
    admin_address: Mapped[str] = mapped_column(String(300))
    """Empty: it serves no AdminService."""
    server_version: Mapped[str] = mapped_column(String(64))
    slots_total: Mapped[int] = mapped_column(Integer)
    slots_used: Mapped[int] = mapped_column(Integer)
    versions: Mapped[dict[str, Any]]
    """Loaded versions by policy."""
    view_revision: Mapped[int] = mapped_column(BigInteger)
    """Of the view that it follows."""
    draining: Mapped[bool] = mapped_column(Boolean)
    """What it says of itself."""
    drain_wanted: Mapped[bool] = mapped_column(Boolean, default=False)
    """What it was told."""
    registered_at: Mapped[datetime.datetime]
    heartbeat_at: Mapped[datetime.datetime]


class ReplicaSession(Base):
    """A session as its replica last reported it."""

    __tablename__ = "replica_sessions"

    replica: Mapped[str] = mapped_column(
        String(_NAME), ForeignKey("replicas.name", ondelete="CASCADE"), primary_key=True
    )
    session_id: Mapped[str] = mapped_column(String(_NAME), primary_key=True)
    principal: Mapped[str] = mapped_column(String(_NAME))
    policy: Mapped[str] = mapped_column(String(_NAME))
    facts: Mapped[dict[str, Any]]
    """The rest of SessionInfo."""
    reported_at: Mapped[datetime.datetime]


class Recording(Base):
    """Where a recorded session lies, and what it is."""

    __tablename__ = "recordings"
    __table_args__ = (Index(None, "principal"),)

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    principal: Mapped[str] = mapped_column(String(_NAME))
    """Whose it is."""
    policy: Mapped[str] = mapped_column(String(_NAME))
    version: Mapped[str] = mapped_column(String(_VERSION))
    session_id: Mapped[str] = mapped_column(String(_NAME))
    url: Mapped[str] = mapped_column(Text)
    sha256: Mapped[str] = mapped_column(String(64))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    name: Mapped[str] = mapped_column(String(300), default="")
    """What its owner called it: a file or a folder."""
    format: Mapped[str] = mapped_column(String(32), default="")
    """Such as p2p; empty: whoever added it did not say."""
    created_at: Mapped[datetime.datetime]


class AuditEntry(Base):
    """Who did what to what, when; what it was before and after. Rows are only ever added."""

    __tablename__ = "audit"
    __table_args__ = (Index(None, "subject"),)

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    at: Mapped[datetime.datetime]
    principal: Mapped[str] = mapped_column(String(_NAME))
    key_id: Mapped[str | None] = mapped_column(String(_KEY_ID))
    """Which key or token; none: nobody was asked for one."""
    action: Mapped[str] = mapped_column(String(64))
    """Such as alias.set."""
    subject: Mapped[str] = mapped_column(String(300))
    """Such as breakout/stable."""
    before: Mapped[dict[str, Any]]
    after: Mapped[dict[str, Any]]


class Job(Base):
    """A command that runs for a while, on this machine or in a cluster."""

    __tablename__ = "jobs"
    __table_args__ = (Index(None, "state"),)

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    kind: Mapped[str] = mapped_column(String(32))
    request: Mapped[dict[str, Any]]
    state: Mapped[str] = mapped_column(String(16))
    owner: Mapped[str] = mapped_column(String(64))
    """Who looks after it: a control plane's folder of jobs, or all control planes of a cluster's namespace."""
    pid: Mapped[int | None] = mapped_column(Integer)
    """Of its keeper on this machine."""
    place: Mapped[str] = mapped_column(String(300), default="")
    """Its Kubernetes Job as namespace/name, once that is made; empty: it has none."""
    exit_status: Mapped[int | None] = mapped_column(Integer)
    message: Mapped[str] = mapped_column(Text, default="")
    cancel_wanted: Mapped[bool] = mapped_column(Boolean, default=False)
    created_at: Mapped[datetime.datetime]
    created_by: Mapped[str] = mapped_column(String(_NAME))
    started_at: Mapped[datetime.datetime | None]
    ended_at: Mapped[datetime.datetime | None]
