"""The registry's database: SQLite in a file, or PostgreSQL by URL; reading, and changing one after another.

A change begins by locking the registry's one row (PostgreSQL) or the file (SQLite's BEGIN IMMEDIATE). What it then
reads is what it changes, also with other processes at work; changes are rare, so that nobody waits for long.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, select, text
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session

from playserve.errors import BadSettingError, NotReadyError, ServerFault
from playserve_services.control.models import Registry

__all__ = ["Database", "parse_url"]

_BUSY_MS = 10_000
# A server that is gone without a word is noticed within some 15 s, not after the system's two hours.
_POSTGRES = {"connect_timeout": 5, "keepalives_idle": 5, "keepalives_interval": 5, "keepalives_count": 2,
             "tcp_user_timeout": 15_000}  # fmt: skip
_RETRY_S = 2.0
_WRITE = "playserve_write"


def parse_url(text: str) -> URL:
    """Return the SQLAlchemy URL of `text`; ``postgresql://`` means psycopg 3.

    Raises:
        BadSettingError: It is no URL, or one of another database. The message does not repeat it, for its password.
    """
    try:
        url = make_url(text)
    except ArgumentError as error:
        raise BadSettingError("the database is not a URL; wanted sqlite:///FILE or postgresql://...") from error
    if url.drivername in ("postgresql", "postgres", "postgresql+psycopg"):
        return url.set(drivername="postgresql+psycopg")
    if url.drivername in ("sqlite", "sqlite+pysqlite") and url.database not in (None, "", ":memory:"):
        return url
    raise BadSettingError(f"database of kind {url.drivername!r}; wanted sqlite:///FILE or postgresql://...")


class Database:
    """An engine and its manners.

    Args:
        url: ``sqlite:///FILE`` or ``postgresql://user:password@host/name``. A SQLite file and its folder are made.
    """

    def __init__(self, url: str | URL) -> None:
        self.url = parse_url(url) if isinstance(url, str) else url
        if self.is_sqlite:
            # Others need not see digests of keys and who has which.
            Path(str(self.url.database)).absolute().parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        options: dict[str, Any] = {} if self.is_sqlite else {"connect_args": _POSTGRES}
        self.engine: Engine = create_engine(
            self.url, pool_pre_ping=True, pool_timeout=10, hide_parameters=True, **options
        )
        if self.is_sqlite:
            event.listen(self.engine, "connect", _prepare_sqlite)
            event.listen(self.engine, "begin", _begin_sqlite)

    @property
    def is_sqlite(self) -> bool:
        """Whether it is a file."""
        return self.url.drivername.startswith("sqlite")

    @contextmanager
    def read(self) -> Iterator[Session]:
        """Yield a session that sees the registry as it is at one moment.

        Raises:
            NotReadyError: The database cannot be reached.
        """
        # One moment also for several queries: SQLite's transactions are so by themselves.
        options = {} if self.is_sqlite else {"isolation_level": "REPEATABLE READ"}
        with self._session(**options) as session:
            yield session

    @contextmanager
    def change(self) -> Iterator[Session]:
        """Yield a session whose changes are kept if the block ends without an error; there is one such at a time.

        Raises:
            NotReadyError: The database cannot be reached, or is busy for too long.
        """
        with self._session(**{_WRITE: True}) as session:
            if self.is_sqlite:
                session.connection()  # begins, and so locks, now
            else:
                session.execute(text(f"SET LOCAL lock_timeout = {_BUSY_MS}"))
                session.execute(select(Registry).where(Registry.id == 1).with_for_update())
            yield session
            session.commit()

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """Yield a connection in a transaction of its own that no other change runs beside, for migrations."""
        with (
            _typed_errors(),
            self.engine.connect().execution_options(**{_WRITE: True}) as connection,
            connection.begin(),
        ):
            if not self.is_sqlite:
                # The registry's row may not be there yet; the number is ours and any will do.
                connection.execute(text("SELECT pg_advisory_xact_lock(7529368)"))
            yield connection

    def ping(self) -> None:
        """Raise NotReadyError where the database does not answer."""
        with self.read() as session:
            session.execute(select(1))

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()

    @contextmanager
    def _session(self, **options: Any) -> Iterator[Session]:
        with (
            _typed_errors(),
            self.engine.connect().execution_options(**options) as connection,
            Session(connection, expire_on_commit=False) as session,
        ):
            yield session


@contextmanager
def _typed_errors() -> Iterator[None]:
    """Turn the database's errors into ours. Their texts hold statements and values, so they are not repeated."""
    try:
        yield
    except (OperationalError, InterfaceError, PoolTimeoutError) as error:
        detail = type(getattr(error, "orig", None) or error).__name__
        raise NotReadyError(f"the registry's database does not answer ({detail})", retry_after_s=_RETRY_S) from error
    except DBAPIError as error:
        if error.connection_invalidated:
            raise NotReadyError("the registry's database went away", retry_after_s=_RETRY_S) from error
        raise ServerFault(f"the registry's database refused a statement ({type(error.orig).__name__})") from error
    except SQLAlchemyError as error:
        raise ServerFault(f"the registry's database code failed ({type(error).__name__})") from error


def _prepare_sqlite(connection: Any, _: Any) -> None:
    # We begin transactions ourselves, since Python's sqlite3 begins them late and without a lock.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", f"busy_timeout={_BUSY_MS}", "foreign_keys=ON", "synchronous=FULL"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # A reader that becomes a writer half-way may be refused at once, whatever the busy timeout: writers say so first.
    write = connection.get_execution_options().get(_WRITE, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
