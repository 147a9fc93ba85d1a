"""The registry's database: migrations are the models, one change at a time, errors that tell no secrets."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect, text

from playserve.errors import BadSettingError, NotReadyError
from playserve_services.control.database import Database, parse_url
from playserve_services.control.migrate import current_revision, downgrade, head_revision, upgrade
from playserve_services.control.models import AuditEntry, Base
from playserve_services.control.repository.audit import SYSTEM, Actor, bump, list_audit, note, now, revision
from playserve_services.control.repository.recordings import list_recordings

Open = Callable[[str], Database]


def test_migrations_from_nothing_make_the_models_tables(database_url: str, open_database: Open) -> None:
    database = open_database(database_url)
    assert current_revision(database) is None
    assert upgrade(database) == head_revision() == current_revision(database)
    with database.connection() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, Base.metadata) == []


def test_a_second_upgrade_changes_nothing(database: Database) -> None:
    with database.change() as session:
        bump(session)
    assert upgrade(database) == head_revision()
    with database.read() as session:
        assert revision(session) == 1


def test_a_downgrade_leaves_nothing_and_can_be_taken_back(database: Database) -> None:
    assert downgrade(database, "base") == "base"
    with database.connection() as connection:
        assert set(inspect(connection).get_table_names()) <= {"alembic_version"}
    assert upgrade(database) == head_revision()


def test_what_was_written_under_an_older_revision_is_kept(database_url: str, open_database: Open) -> None:
    database = open_database(database_url)
    assert upgrade(database, "0001") == "0001"
    recording = ("INSERT INTO recordings (principal, policy, version, session_id, url, sha256, size_bytes, created_at) "
                 "VALUES ('ann', 'p', '1', 's', 'u', 'd', 7, '2026-01-01 00:00:00')")  # fmt: skip
    with database.connection() as connection:
        connection.execute(text(recording))
    assert upgrade(database) == head_revision()
    with database.change() as session:
        (row,) = list_recordings(session)
        assert (row.principal, row.size_bytes, row.name, row.format) == ("ann", 7, "", "")
        note(session, Actor("ann", "jwt:" + "a" * 128), "test", "thing")
    assert downgrade(database, "0001") == "0001"
    with database.connection() as connection:
        assert connection.execute(text("SELECT principal, key_id FROM audit")).one() == ("ann", None)
    assert upgrade(database) == head_revision()


def test_a_database_of_a_newer_playserve_is_refused(database: Database) -> None:
    with database.connection() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(BadSettingError, match="'9999'"):
        upgrade(database)


def test_what_fails_half_way_leaves_nothing(database: Database) -> None:
    def fail() -> None:
        with database.change() as session:
            bump(session)
            note(session, SYSTEM, "test", "thing")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with database.read() as session:
        assert revision(session) == 0
        assert list_audit(session) == []


def test_times_come_back_in_utc(database: Database) -> None:
    east = datetime.timezone(datetime.timedelta(hours=5))
    at = datetime.datetime(2026, 11, 21, 5, 30, tzinfo=east)
    with database.change() as session:
        session.add(AuditEntry(at=at, principal="me", action="test", subject="x", before={}, after={}))
    with database.read() as session:
        found = list_audit(session)[0].at
    assert found == at
    assert found.utcoffset() == datetime.timedelta(0)


def test_a_writer_that_waits_too_long_is_told_to_try_again(
    database_url: str, open_database: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("playserve_services.control.database._BUSY_MS", 50)
    first, second = open_database(database_url), open_database(database_url)
    upgrade(first)

    def change(database: Database) -> None:
        with database.change() as session:
            bump(session)

    with first.change():
        with pytest.raises(NotReadyError, match="does not answer"):
            change(second)
        with second.read() as session:  # readers wait for nobody
            assert revision(session) == 0
    change(second)


def test_a_reader_sees_one_moment(database: Database) -> None:
    with database.read() as reader:
        assert revision(reader) == 0
        with database.change() as session:
            bump(session)
            note(session, SYSTEM, "test", "thing")
        assert revision(reader) == 0
        assert list_audit(reader) == []
    with database.read() as reader:
        assert revision(reader) == 1


def test_sqlite_waits_writes_ahead_and_holds_foreign_keys(tmp_path: Path, open_database: Open) -> None:
    database = open_database(f"sqlite:///{tmp_path}/deep/er/registry.db")
    with database.read() as session:
        values = {name: session.execute(text(f"PRAGMA {name}")).scalar_one()
                  for name in ("journal_mode", "busy_timeout", "foreign_keys")}  # fmt: skip
    assert values == {"journal_mode": "wal", "busy_timeout": 10_000, "foreign_keys": 1}


@pytest.mark.parametrize("url", ["nonsense", "mysql://me:hunter2@host/name", "sqlite://", "sqlite:///:memory:", ""])
def test_other_databases_are_refused_without_repeating_the_password(url: str) -> None:
    with pytest.raises(BadSettingError, match="wanted sqlite:///FILE or postgresql://") as caught:
        parse_url(url)
    assert "hunter2" not in str(caught.value)


def test_a_database_that_is_down_is_not_ready_and_tells_no_password(open_database: Open) -> None:
    database = open_database("postgresql://me:hunter2@127.0.0.1:1/name")
    with pytest.raises(NotReadyError, match="does not answer") as caught:
        database.ping()
    assert caught.value.retry_after_s
    assert "hunter2" not in str(caught.value)


def test_the_time_has_a_zone() -> None:
    assert now().tzinfo is datetime.UTC
