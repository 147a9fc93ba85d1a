"""Starts jobs that wait, watches those that run, writes down how they end. Where they run is the workers' business."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import Any

from sqlalchemy.orm import Session

from playserve.errors import NotReadyError, PlayserveError, ServerUnavailableError, StateError
from playserve_services.control.database import Database
from playserve_services.control.jobs.requests import EvaluationRequest, GridRequest, parse_request
from playserve_services.control.jobs.results import Results, measured_of
from playserve_services.control.jobs.workers import Ended, Part, Workers
from playserve_services.control.models import Job
from playserve_services.control.repository.audit import Actor
from playserve_services.control.repository.evaluations import record_evaluation
from playserve_services.control.repository.jobs import JobState, add_job, claim_next, end_job, get_job, list_jobs
from playserve_services.control.repository.policies import get_version

__all__ = ["JobRunner"]

_log = logging.getLogger(__name__)
_PERIOD_S = 0.5
_JOIN_S = 10.0
_MANY = 10_000
_UNRECORDED = "it succeeded, but its results were not recorded"


class JobRunner:
    """See the module's docstring.

    Args:
        workers: Run the jobs.
        database: The registry.
        max_jobs: So many run at once; the others wait. 0: none may be started.
    """

    def __init__(self, workers: Workers, database: Database, max_jobs: int) -> None:
        self._workers, self._database, self._max_jobs = workers, database, max_jobs
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._ticking = threading.Lock()
        self._thread: threading.Thread | None = None

    def start(self, *, watch: bool = True) -> None:
        """Take up what there is; with `watch`, a thread goes on looking until :meth:`stop`."""
        if self._workers.open() and watch:
            self._thread = threading.Thread(target=self._watch, name="control-jobs", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Stop watching. Jobs that run go on."""
        self._stop.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(_JOIN_S)
        self._workers.close()

    def submit(self, actor: Actor, request: EvaluationRequest | GridRequest) -> Job:
        """Take a job on; it begins when there is room.

        Raises:
            BadSettingError, NotFoundError: It names a grid that is not there, or asks for what cannot be had here.
            StateError: No jobs may be started here.
        """
        if self._max_jobs == 0:
            raise StateError("this control plane starts no jobs (max_jobs is 0)")
        self._workers.check(request)
        with self._database.change() as session:
            row = add_job(session, actor, request.kind, request.model_dump(mode="json"), self._workers.owner)
        self._wake.set()
        return row

    def nudge(self) -> None:
        """Look again soon."""
        self._wake.set()

    def parts(self, job: Job) -> Sequence[Part]:
        """Return the state of each part of a job, by index; none where it runs as one."""
        return self._workers.parts(job)

    def log_tail(self, job: Job, limit: int, part: int | None = None) -> str:
        """Return the last `limit` bytes of a job's log, or of one part's, as text; empty where it has not begun."""
        return self._workers.log_tail(job, limit, part)

    def evaluation_report(self, job: Job) -> dict[str, Any]:
        """Return the results.json of an evaluation; raises NotFoundError where there is none yet."""
        return self._workers.evaluation_report(job)

    def tick(self) -> None:
        """Look once: end what has ended, stop what is to be cancelled, start what waits."""
        with self._ticking:
            with self._database.read() as session:
                running = list_jobs(session, state="running", owner=self._workers.owner, limit=_MANY)
            left = sum(self._attend(job) for job in running)
            for _ in range(self._max_jobs - left):
                with self._database.change() as session:
                    job = claim_next(session, self._workers.owner)
                if job is None:
                    break
                self._begin(job)

    def _watch(self) -> None:
        while not self._stop.is_set():
            try:
                self.tick()
            except NotReadyError as error:  # the database is away; jobs go on, and are looked at when it is back
                _log.warning("jobs are not watched: %s", error)
            except Exception:  # noqa: BLE001 - the thread must live on: without it no job ends
                _log.exception("looking after jobs failed")
            self._wake.wait(_PERIOD_S)
            self._wake.clear()

    def _attend(self, job: Job) -> bool:
        """Return whether a job still runs; end it in the registry where it does not."""
        try:
            found = self._workers.look(job)
            if found == "running" and job.cancel_wanted:
                self._workers.cancel(job)
        except ServerUnavailableError as error:  # of this job nothing can be told now; the others are looked after
            _log.warning("job %s is not watched: %s", job.id, error)
            return True
        if found == "not begun" and not job.cancel_wanted:
            return self._begin(job)
        if found == "running":
            return True
        self._end(job, Ended(None) if found == "not begun" else found)
        return False

    def _begin(self, job: Job) -> bool:
        """Start a job; return whether it runs, or may yet."""
        try:
            started = self._workers.start(job, parse_request(job.request))
        except ServerUnavailableError as error:
            _log.warning("job %s is started later: %s", job.id, error)
            return True
        except (OSError, PlayserveError) as error:
            with self._database.change() as session:
                end_job(session, get_job(session, job.id), "failed", f"it could not be started: {error}")
            return False
        with self._database.change() as session:
            row = get_job(session, job.id)
            row.pid, row.place = started.pid, started.place
        return True

    def _end(self, job: Job, found: Ended) -> None:
        state, message = _verdict(job, found)
        # Before the change of the registry: to put shards together may take a moment.
        results = self._results(job) if state == "succeeded" and job.kind == "evaluation" else None
        with self._database.change() as session:
            row = get_job(session, job.id)
            if row.state != "running":  # another control plane of the cluster was quicker
                return
            if results is not None:
                message = results if isinstance(results, str) else _record(session, job, results)
            end_job(session, row, state, message, found.status)

    def _results(self, job: Job) -> Results | str:
        """Return what an evaluation measured, or why nobody knows."""
        try:
            return measured_of(self.evaluation_report(job), f"job {job.id}")
        except (OSError, PlayserveError) as error:
            return f"{_UNRECORDED}: {error}"


def _record(session: Session, job: Job, results: Results) -> str:
    """Record what an evaluation measured; return a line for people."""
    try:
        get_version(session, results.policy, results.version)
    except PlayserveError as error:
        return f"{_UNRECORDED}: {error}"
    for measured in results.measured:
        record_evaluation(session, Actor(job.created_by), results.policy, results.version, measured)
    return f"{len(results.measured)} results recorded"


def _verdict(job: Job, found: Ended) -> tuple[JobState, str]:
    if found.status == 0:
        return "succeeded", ""
    if job.cancel_wanted:
        return "cancelled", "cancelled; what it had saved is kept"
    if found.status is None:
        return "lost", found.why
    return "failed", found.why or f"ended with status {found.status}; the log says why"
