"""Runs migrations on the connection that :mod:`playserve_services.control.migrate` hands over.

Alembic loads this file itself; imported by others, it does nothing.
"""

from __future__ import annotations

from alembic import context

from playserve_services.control.models import Base

__all__: list[str] = []


def run() -> None:
    """Run what alembic asked for, within the transaction of the caller."""
    context.configure(
        connection=context.config.attributes["connection"],
        target_metadata=Base.metadata,
        render_as_batch=True,  # SQLite changes a column by copying its table
        transactional_ddl=True,  # on SQLite too: the caller began the transaction
    )
    context.run_migrations()


if __name__ == "env_py":  # the name that alembic loads it under
    run()
