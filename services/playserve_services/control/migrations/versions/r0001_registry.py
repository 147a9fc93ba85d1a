"""The registry's first tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

__all__ = ["downgrade", "upgrade"]

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_NAME = sa.String(128)
_VERSION = sa.String(20)
_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Make the tables, and the registry's one row."""
    _policies()
    _results()
    _access()
    _fleet()
    _jobs()
    registry = op.create_table(
        "registry",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_registry"),
    )
    op.bulk_insert(registry, [{"id": 1, "revision": 0}])


def downgrade() -> None:
    """Drop everything."""
    for table in ("evaluations", "aliases", "versions", "replica_sessions", "replicas", "registry", "recordings",
                  "policies", "jobs", "audit", "api_keys"):  # fmt: skip
        op.drop_table(table)


def _policies() -> None:
    op.create_table(
        "policies",
        sa.Column("name", _NAME, nullable=False),
        sa.Column("canary_weight", sa.Float(), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_policies"),
    )
    op.create_table(
        "versions",
        sa.Column("policy", _NAME, nullable=False),
        sa.Column("version", _VERSION, nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("weights_sha256", sa.String(64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("facts", sa.JSON(), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("created_by", _NAME, nullable=False),
        sa.ForeignKeyConstraint(["policy"], ["policies.name"], name="fk_versions_policy_policies"),
        sa.PrimaryKeyConstraint("policy", "version", name="pk_versions"),
    )
    op.create_table(
        "aliases",
        sa.Column("policy", _NAME, nullable=False),
        sa.Column("alias", _NAME, nullable=False),
        sa.Column("version", _VERSION, nullable=False),
        sa.Column("updated_at", _TIME, nullable=False),
        sa.ForeignKeyConstraint(
            ["policy", "version"], ["versions.policy", "versions.version"], name="fk_aliases_policy_version_versions"
        ),
        sa.PrimaryKeyConstraint("policy", "alias", name="pk_aliases"),
    )


def _results() -> None:
    op.create_table(
        "evaluations",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("policy", _NAME, nullable=False),
        sa.Column("version", _VERSION, nullable=False),
        sa.Column("protocol", sa.Text(), nullable=False),
        sa.Column("n", sa.Integer(), nullable=False),
        sa.Column("mean", sa.Float(), nullable=False),
        sa.Column("se", sa.Float(), nullable=True),
        sa.Column("scores", sa.JSON(), nullable=False),
        sa.Column("source", sa.String(200), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("created_by", _NAME, nullable=False),
        sa.ForeignKeyConstraint(
            ["policy", "version"],
            ["versions.policy", "versions.version"],
            name="fk_evaluations_policy_version_versions",
        ),
        sa.PrimaryKeyConstraint("id", name="pk_evaluations"),
    )
    op.create_index("ix_evaluations_policy_version", "evaluations", ["policy", "version"])
    op.create_table(
        "recordings",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("principal", _NAME, nullable=False),
        sa.Column("policy", _NAME, nullable=False),
        sa.Column("version", _VERSION, nullable=False),
        sa.Column("session_id", _NAME, nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_recordings"),
    )
    op.create_index("ix_recordings_principal", "recordings", ["principal"])


def _access() -> None:
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(12), nullable=False),
        sa.Column("secret_sha256", sa.String(64), nullable=False),
        sa.Column("principal", _NAME, nullable=False),
        sa.Column("scopes", sa.JSON(), nullable=False),
        sa.Column("quota", sa.JSON(), nullable=False),
        sa.Column("expires_at", _TIME, nullable=True),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("created_by", _NAME, nullable=False),
        sa.Column("revoked_at", _TIME, nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_api_keys"),
    )
    op.create_table(
        "audit",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("at", _TIME, nullable=False),
        sa.Column("principal", _NAME, nullable=False),
        sa.Column("key_id", sa.String(12), nullable=True),
        sa.Column("action", sa.String(64), nullable=False),
        sa.Column("subject", sa.String(300), nullable=False),
        sa.Column("before", sa.JSON(), nullable=False),
        sa.Column("after", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_audit"),
    )
    op.create_index("ix_audit_subject", "audit", ["subject"])


def _fleet() -> None:
    op.create_table(
        "replicas",
        sa.Column("name", _NAME, nullable=False),
        sa.Column("instance", sa.String(64), nullable=False),
        sa.Column("address", sa.String(300), nullable=False),
        sa.Column("admin_address", sa.String(300), nullable=False),
        sa.Column("server_version", sa.String(64), nullable=False),
        sa.Column("slots_total", sa.Integer(), nullable=False),
        sa.Column("slots_used", sa.Integer(), nullable=False),
        sa.Column("versions", sa.JSON(), nullable=False),
        sa.Column("view_revision", sa.BigInteger(), nullable=False),
        sa.Column("draining", sa.Boolean(), nullable=False),
        sa.Column("drain_wanted", sa.Boolean(), nullable=False),
        sa.Column("registered_at", _TIME, nullable=False),
        sa.Column("heartbeat_at", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_replicas"),
    )
    op.create_table(
        "replica_sessions",
        sa.Column("replica", _NAME, nullable=False),
        sa.Column("session_id", _NAME, nullable=False),
        sa.Column("principal", _NAME, nullable=False),
        sa.Column("policy", _NAME, nullable=False),
        sa.Column("facts", sa.JSON(), nullable=False),
        sa.Column("reported_at", _TIME, nullable=False),
        sa.ForeignKeyConstraint(
            ["replica"], ["replicas.name"], name="fk_replica_sessions_replica_replicas", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("replica", "session_id", name="pk_replica_sessions"),
    )


def _jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("request", sa.JSON(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=True),
        sa.Column("exit_status", sa.Integer(), nullable=True),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("cancel_wanted", sa.Boolean(), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("created_by", _NAME, nullable=False),
        sa.Column("started_at", _TIME, nullable=True),
        sa.Column("ended_at", _TIME, nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_jobs"),
    )
    op.create_index("ix_jobs_state", "jobs", ["state"])
