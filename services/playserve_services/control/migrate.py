"""Brings a database to the schema of this code, by the migrations that lie in the package."""

from __future__ import annotations

import logging
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from playserve.errors import BadSettingError
from playserve_services.control.database import Database

__all__ = ["current_revision", "downgrade", "head_revision", "upgrade"]

_log = logging.getLogger(__name__)


def upgrade(database: Database, revision: str = "head") -> str:
    """Bring the database to `revision`; return the one that it is at. Several processes may do so at once.

    Raises:
        BadSettingError: The database is at a revision that this code does not know: a newer one made it.
        NotReadyError: It cannot be reached.
    """
    with database.connection() as connection:
        _check_known(connection)
        before = _revision_of(connection)
        command.upgrade(_config(connection), revision)
        after = _revision_of(connection) or ""
    if after != (before or ""):
        _log.info("the registry's tables went from revision %s to %s", before or "none", after)
    return after


def downgrade(database: Database, revision: str) -> str:
    """Take the database back to `revision` ("base": empty); return the one that it is at. Data go with their tables."""
    with database.connection() as connection:
        _check_known(connection)
        command.downgrade(_config(connection), revision)
        return _revision_of(connection) or "base"


def current_revision(database: Database) -> str | None:
    """Return the revision of the database; None: it is empty."""
    with database.connection() as connection:
        return _revision_of(connection)


def head_revision() -> str:
    """Return the newest revision that this code knows."""
    return str(ScriptDirectory.from_config(_config(None)).get_current_head())


def _revision_of(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _check_known(connection: Connection) -> None:
    found = _revision_of(connection)
    known = {script.revision for script in ScriptDirectory.from_config(_config(None)).walk_revisions()}
    if found is not None and found not in known:
        raise BadSettingError(f"the database is at revision {found!r}; this playserve knows {', '.join(sorted(known))}")


def _config(connection: Connection | None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    return config
