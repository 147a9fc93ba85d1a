"""Several processes change one registry: nothing is lost, nothing is seen half, and all agree on who was first."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable

from playserve_services.control.database import Database
from playserve_services.control.migrate import head_revision, upgrade
from playserve_services.control.repository import aliases, audit, policies, replicas
from playserve_services.control.repository.aliases import AliasMovedError
from playserve_services.control.repository.audit import Actor

PROCESSES = 3
CHANGES = 8


def _in_processes(function: Callable[..., object], url: str) -> list[object]:
    context = multiprocessing.get_context("spawn")
    with context.Pool(PROCESSES) as pool:
        return pool.starmap(function, [(url, number) for number in range(PROCESSES)])


def _facts(version: int) -> policies.VersionFacts:
    return policies.VersionFacts(policy="p", version=str(version), weights_sha256="a" * 64, size_bytes=1, facts={})


def _write(url: str, number: int) -> int:
    database, actor = Database(url), Actor(f"writer-{number}")
    upgrade(database)  # everybody starts at once, on an empty database
    for version in range(1, CHANGES + 1):
        with database.change() as session:
            policies.register_version(session, actor, _facts(version))
        with database.change() as session:
            aliases.set_alias(session, actor, "p", f"a{number}", str(version))
    database.close()
    return number


def test_writers_lose_nothing(database_url: str, open_database: Callable[[str], Database]) -> None:
    _in_processes(_write, database_url)
    database = open_database(database_url)
    assert upgrade(database) == head_revision()
    with database.read() as session:
        assert audit.revision(session) == PROCESSES * CHANGES
        assert aliases.aliases_of(session, "p") == {"p": {f"a{n}": str(CHANGES) for n in range(PROCESSES)}}
        registered = audit.list_audit(session, action="version.registered", limit=1000)
        moved = audit.list_audit(session, action="alias.set", limit=1000)
    assert len(registered) == CHANGES  # each version once, whoever came first
    assert len(moved) == PROCESSES * CHANGES


def _race(url: str, number: int) -> int:
    """Move an alias from each version to the next; return how often this process was the one that did."""
    database, won = Database(url), 0
    for version in range(1, CHANGES + 1):
        expected = str(version - 1) if version > 1 else ""
        try:
            with database.change() as session:
                aliases.set_alias(session, Actor(f"racer-{number}"), "p", "stable", str(version), expected=expected)
                won += 1
        except AliasMovedError:
            pass
        with database.change() as session:
            beat = replicas.Beat(
                instance="i", address=f"host:{number + 1}", admin_address="", server_version="", slots_total=version,
                slots_used=0, versions={}, view_revision=0, draining=False,
            )  # fmt: skip
            replicas.heartbeat(session, Actor("racer"), "shared", beat)
    database.close()
    return won


def test_who_expects_the_old_target_wins_once(database: Database, database_url: str) -> None:
    with database.change() as session:
        for version in range(1, CHANGES + 1):
            policies.register_version(session, Actor("me"), _facts(version))
    won = _in_processes(_race, database_url)
    with database.read() as session:
        chain = audit.list_audit(session, subject="p/stable", limit=1000)[::-1]
        assert replicas.get_replica(session, "shared").slots_total == CHANGES
    assert sum(won) == len(chain)  # type: ignore[arg-type]
    # No move is missing between two others: each begins where the one before ended.
    targets = [None, *(entry.after["version"] for entry in chain)]
    assert [entry.before["version"] for entry in chain] == targets[:-1]
    assert len(set(targets)) == len(targets)
