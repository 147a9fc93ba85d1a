"""Fixtures of the control plane's tests: registries in SQLite, and in a throw-away PostgreSQL where there is one."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from throwaway_postgres import Postgres, postgres

from playserve_services.auth.keys import Scope
from playserve_services.control.app import create_app
from playserve_services.control.context import Context
from playserve_services.control.database import Database
from playserve_services.control.migrate import upgrade
from playserve_services.control.repository.audit import SYSTEM
from playserve_services.control.repository.keys import add_key
from playserve_services.control.repository.policies import VersionFacts, register_version
from playserve_services.control.settings import ControlSettings


@pytest.fixture(scope="session")
def cluster() -> Iterator[Postgres]:
    """Return a real PostgreSQL; skip by name where there is none."""
    with postgres() as running:
        yield running


@pytest.fixture
def postgres_url(cluster: Postgres) -> str:
    """Return the URL of a new, empty database."""
    return cluster.new_database()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the URL of a new, empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'registry.db'}"
    return str(request.getfixturevalue("postgres_url"))


@pytest.fixture
def open_database() -> Iterator[Callable[[str], Database]]:
    """Return a function that opens a database by URL."""
    with contextlib.ExitStack() as stack:

        def make(url: str) -> Database:
            database = Database(url)
            stack.callback(database.close)
            return database

        yield make


@pytest.fixture
def database(database_url: str, open_database: Callable[[str], Database]) -> Database:
    """Return a migrated registry, once on each kind of database."""
    made = open_database(database_url)
    upgrade(made)
    return made


@dataclass
class Plane:
    """A control plane under test, and a client of it.

    Attributes:
        app: The application, in its lifespan.
        client: Calls it without a network.
        settings: Its settings.
    """

    app: FastAPI
    client: httpx.AsyncClient
    settings: ControlSettings

    @property
    def context(self) -> Context:
        """Its collaborators."""
        context: Context = self.app.state.context
        return context

    def key(self, *scopes: str, principal: str = "me") -> dict[str, str]:
        """Return the headers of a new key."""
        with self.context.database.change() as session:
            text, _ = add_key(session, SYSTEM, principal, frozenset(Scope(scope) for scope in scopes))
        return {"Authorization": f"Bearer {text}"}

    def register(self, policy: str, *versions: str) -> None:
        """Register versions without files."""
        with self.context.database.change() as session:
            for version in versions:
                facts = VersionFacts(
                    policy=policy, version=version, weights_sha256="a" * 64, size_bytes=1, facts={"family": "test"}
                )
                register_version(session, SYSTEM, facts)


Start = Callable[..., contextlib.AbstractAsyncContextManager[Plane]]


@pytest.fixture
def start_plane(tmp_path: Path) -> Start:
    """Return a context manager that starts a control plane with the settings that it is given."""

    @contextlib.asynccontextmanager
    async def start(**options: Any) -> AsyncIterator[Plane]:
        settings = ControlSettings(**{"data": tmp_path / "control", **options})
        app = create_app(settings, watch_jobs=False)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client,
        ):
            yield Plane(app, client, settings)

    return start


@pytest.fixture
async def plane(start_plane: Start) -> AsyncIterator[Plane]:
    """Return a control plane on loopback, without keys."""
    async with start_plane() as made:
        yield made


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Return the folder of a small real checkpoint."""
    import torch

    from playserve_trainer import checkpoint
    from playserve_trainer.models.tiny_recurrent import TinyRecurrentConfig, TinyRecurrentPolicy

    torch.manual_seed(7)
    policy = TinyRecurrentPolicy(TinyRecurrentConfig(hidden=8))
    folder = tmp_path / "checkpoint"
    checkpoint.save(folder, policy, checkpoint.Manifest.describe(policy))
    return folder
