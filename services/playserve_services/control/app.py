"""The control plane's composition root: builds the collaborators and the web application around them."""

from __future__ import annotations

import logging
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI
from sqlalchemy import func, select
from starlette.concurrency import run_in_threadpool
from starlette.responses import RedirectResponse

from playserve_services.control.callers import authenticator_of
from playserve_services.control.context import Context
from playserve_services.control.database import Database
from playserve_services.control.fleet import Fleet
from playserve_services.control.history import History
from playserve_services.control.jobs.cluster.settings import load_cluster
from playserve_services.control.jobs.local import LocalWorkers
from playserve_services.control.jobs.runner import JobRunner
from playserve_services.control.jobs.workers import Workers
from playserve_services.control.metrics import ControlMetrics
from playserve_services.control.middleware import Guard, Observer
from playserve_services.control.migrate import upgrade
from playserve_services.control.models import Job, PolicyRow
from playserve_services.control.pages.app import PREFIX, create_pages
from playserve_services.control.problems import Problem, install
from playserve_services.control.publishing import Publisher
from playserve_services.control.recordings import RecordingStore
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

_log = logging.getLogger(__name__)
_ROUTERS = (health, policies, aliases, evaluations, fleet, jobs, recordings, access)


def build_context(settings: ControlSettings) -> Context:
    """Return the collaborators. Nothing is opened yet: neither the database nor a process."""
    database = Database(settings.database_url)
    metrics = ControlMetrics(lambda: _gauges(database, settings))
    return Context(
        settings=settings,
        database=database,
        authenticator=authenticator_of(settings, database),
        publisher=Publisher(CheckpointStore(settings.store_url), database, settings.data.absolute() / "uploads"),
        fleet=Fleet(settings, metrics),
        jobs=JobRunner(_workers_of(settings), database, settings.max_jobs),
        metrics=metrics,
        history=History(),
        recordings=RecordingStore(
            settings.recordings_url, settings.data.absolute() / "recordings-incoming", settings.max_recording_mb << 20
        ),
    )


def _workers_of(settings: ControlSettings) -> Workers:
    if settings.cluster is None:
        return LocalWorkers(settings)
    # Named so late since most control planes have no cluster, and its client is large.
    from playserve_services.control.jobs.cluster.api import Api
    from playserve_services.control.jobs.cluster.workers import ClusterWorkers

    cluster = load_cluster(settings.cluster)
    return ClusterWorkers(cluster, Api(cluster), settings.grids)


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
        context.recordings.remove_stale()
        _look_for_loss(context.publisher)
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
    app.add_api_route("/", lambda: RedirectResponse(f"{PREFIX}/"), include_in_schema=False)
    app.mount(PREFIX, create_pages(context))
    install(app)
    app.add_middleware(Guard, settings=settings)
    app.add_middleware(Observer, metrics=context.metrics)
    _describe_problems(app)
    return app


def _look_for_loss(publisher: Publisher) -> None:
    try:
        lost = publisher.is_lost()
    except Exception as error:  # noqa: BLE001 - the registry is served also where the store, whatever it is, is away
        _log.warning("the store does not answer: %s", error)
    else:
        if lost:
            _log.warning("the registry is empty and the store is not: `playserve control sync` registers what it has")


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
    data = settings.data.absolute()
    there = next(folder for folder in (data, *data.parents) if folder.exists())
    with database.read() as session:
        at = revision(session)
        replicas = list_replicas(session)
        fresh = [row for row in replicas if is_fresh(row, settings.replica_timeout_s)]
        counts = session.execute(select(Job.state, func.count()).group_by(Job.state))
        states = {state: count for state, count in counts}  # noqa: C416 - rows, not tuples
        return {
            "revision": at,
            "policies": session.execute(select(func.count()).select_from(PolicyRow)).scalar_one(),
            "keys_live": len(live_keys(session)),
            "disk_free_bytes": shutil.disk_usage(there).free,
            "replicas": len(replicas),
            "replicas_fresh": len(fresh),
            "replicas_behind": sum(row.view_revision < at for row in fresh),
            **{f"jobs_{state}": states.get(state, 0) for state in ("running", "queued", "lost")},
        }
