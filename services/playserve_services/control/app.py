"""The control plane's composition root: builds the collaborators and the web application around them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI
from sqlalchemy import func, select
from starlette.concurrency import run_in_threadpool

from playserve_services.control.context import Context
from playserve_services.control.database import Database
from playserve_services.control.fleet import Fleet
from playserve_services.control.jobs.runner import JobRunner
from playserve_services.control.metrics import ControlMetrics
from playserve_services.control.middleware import Guard, Observer
from playserve_services.control.migrate import upgrade
from playserve_services.control.models import Job, PolicyRow
from playserve_services.control.problems import Problem, install
from playserve_services.control.publishing import Publisher
from playserve_services.control.repository.audit import revision
from playserve_services.control.repository.keys import live_keys
from playserve_services.control.repository.replicas import is_fresh, list_replicas
from playserve_services.control.routes import (
    access,
    aliases,
    evaluations,
    fleet,
    health,
    jobs,
    policies,
    recordings,
)
from playserve_services.control.settings import ControlSettings
from playserve_trainer.store import CheckpointStore

__all__ = ["build_context", "create_app"]

_ROUTERS = (health, policies, aliases, evaluations, fleet, jobs, recordings, access)


def build_context(settings: ControlSettings) -> Context:
    """Return the collaborators. Nothing is opened yet: neither the database nor a process."""
    database = Database(settings.database_url)
    metrics = ControlMetrics(lambda: _gauges(database, settings))
    return Context(
        settings=settings,
        database=database,
        publisher=Publisher(CheckpointStore(settings.store_url), database, settings.data.absolute() / "uploads"),
        fleet=Fleet(settings, metrics),
        jobs=JobRunner(settings, database),
        metrics=metrics,
    )


def create_app(settings: ControlSettings, *, watch_jobs: bool = True) -> FastAPI:
    """Return the web application. Its lifespan migrates the database and takes up the jobs.

    Args:
        settings: Of the control plane.
        watch_jobs: Whether a thread looks after jobs; tests look themselves.
    """
    context = build_context(settings)

    def start() -> None:
        upgrade(context.database)
        context.publisher.remove_leftovers()
        context.jobs.start(watch=watch_jobs)

    def stop() -> None:
        context.jobs.stop()
        context.database.close()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await run_in_threadpool(start)
        try:
            yield
        finally:
            await run_in_threadpool(stop)

    app = FastAPI(
        title="playserve control",
        summary="Policies, versions, keys, replicas and jobs.",
        version=version("playserve"),
        lifespan=lifespan,
        docs_url=None,  # its pages come from a foreign server
        redoc_url=None,
    )
    app.state.context = context
    for module in _ROUTERS:
        app.include_router(module.router)
    install(app)
    app.add_middleware(Guard, settings=settings)
    app.add_middleware(Observer, metrics=context.metrics)
    _describe_problems(app)
    return app


def _describe_problems(app: FastAPI) -> None:
    """Have the OpenAPI document hold the schema that every route's errors refer to."""
    generate = app.openapi

    def openapi() -> dict[str, object]:
        document = generate()
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        schemas.setdefault("Problem", Problem.model_json_schema())
        return document

    app.openapi = openapi  # type: ignore[method-assign] # FastAPI's own way to extend it


def _gauges(database: Database, settings: ControlSettings) -> Mapping[str, float]:
    with database.read() as session:
        at = revision(session)
        fresh = [row for row in list_replicas(session) if is_fresh(row, settings.replica_timeout_s)]
        counts = session.execute(select(Job.state, func.count()).group_by(Job.state))
        states = {state: count for state, count in counts}  # noqa: C416 - rows, not tuples
        return {
            "revision": at,
            "policies": session.execute(select(func.count()).select_from(PolicyRow)).scalar_one(),
            "keys_live": len(live_keys(session)),
            "replicas": len(list_replicas(session)),
            "replicas_fresh": len(fresh),
            "replicas_behind": sum(row.view_revision < at for row in fresh),
            **{f"jobs_{state}": states.get(state, 0) for state in ("running", "queued", "lost")},
        }
