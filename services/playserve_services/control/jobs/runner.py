"""Starts jobs that wait, watches those that run, and writes down how they end.

One control plane runs the jobs of one folder: it holds the folder's lock. A job goes on when the control plane ends;
the next one on the same folder finds it by the job's own lock, or finds its result, or says that it was lost.
"""

from __future__ import annotations

import logging
import os
import subprocess
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from playserve.errors import NotFoundError, NotReadyError, PlayserveError, ServerFault, StateError
from playserve.files import read_json, write_text
from playserve_services.control.database import Database
from playserve_services.control.jobs import processes
from playserve_services.control.jobs.requests import EvaluationRequest, GridRequest, command_of, parse_request
from playserve_services.control.jobs.results import measured_of
from playserve_services.control.models import Job
from playserve_services.control.repository.audit import Actor
from playserve_services.control.repository.evaluations import record_evaluation
from playserve_services.control.repository.jobs import JobState, add_job, claim_next, end_job, get_job, list_jobs
from playserve_services.control.repository.policies import get_version
from playserve_services.control.settings import ControlSettings

__all__ = ["JobRunner"]

_log = logging.getLogger(__name__)
_PERIOD_S = 0.5
_JOIN_S = 10.0
_MANY = 10_000


class JobRunner:
    """See the module's docstring.

    Args:
        settings: Of the control plane.
        database: The registry.
    """

    def __init__(self, settings: ControlSettings, database: Database) -> None:
        self._settings, self._database = settings, database
        self._folder = settings.data.absolute() / "jobs"
        self.owner = ""
        self._lock: int | None = None
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._kill_at: dict[str, float] = {}
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._ticking = threading.Lock()
        self._thread: threading.Thread | None = None

    def start(self, *, watch: bool = True) -> None:
        """Take up what is in the folder; with `watch`, a thread goes on looking until :meth:`stop`."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self.owner = self._identity()
        self._lock = processes.try_lock(self._folder / "runner.lock")
        if self._lock is None:
            _log.warning("another control plane runs the jobs of %s; this one only shows them", self._folder)
        elif watch:
            self._thread = threading.Thread(target=self._watch, name="control-jobs", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Stop watching. Jobs that run go on."""
        self._stop.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(_JOIN_S)
        for child in self._children.values():
            child.returncode = 0  # Popen would complain that nobody waits; whoever comes next looks at the lock
        if self._children:
            _log.info("%s jobs go on; the next control plane on %s takes them up", len(self._children), self._folder)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def submit(self, actor: Actor, request: EvaluationRequest | GridRequest) -> Job:
        """Take a job on; it begins when there is room.

        Raises:
            BadSettingError, NotFoundError: It names a grid that is not there.
            StateError: No jobs may be started here.
        """
        if self._settings.max_jobs == 0:
            raise StateError("this control plane starts no jobs (max_jobs is 0)")
        command_of(request, self._folder, self._settings.grids)  # says now what would fail later
        with self._database.change() as session:
            row = add_job(session, actor, request.kind, request.model_dump(mode="json"), self.owner)
        self._wake.set()
        return row

    def nudge(self) -> None:
        """Look again soon."""
        self._wake.set()

    def folder_of(self, job_id: str) -> Path:
        """Return the folder of a job."""
        return self._folder / job_id

    def log_tail(self, job: Job, limit: int) -> str:
        """Return the last `limit` bytes of a job's log as text; empty where it has not begun."""
        try:
            with (self.folder_of(job.id) / processes.LOG_NAME).open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - limit))
                return file.read(limit).decode("utf-8", "replace")
        except FileNotFoundError:
            return ""

    def evaluation_report(self, job: Job) -> dict[str, Any]:
        """Return the results.json of an evaluation.

        Raises:
            NotFoundError: There is none yet.
        """
        found = read_json(self.folder_of(job.id) / "run" / "results.json")
        if found is None:
            raise NotFoundError(f"job {job.id} is {job.state} and has no report")
        return found

    def tick(self) -> None:
        """Look once: end what has ended, stop what is to be cancelled, start what waits."""
        with self._ticking:
            with self._database.read() as session:
                running = list_jobs(session, state="running", owner=self.owner, limit=_MANY)
            left = sum(self._look(job) for job in running)
            for _ in range(self._settings.max_jobs - left):
                with self._database.change() as session:
                    job = claim_next(session, self.owner)
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

    def _look(self, job: Job) -> bool:
        """Return whether a job still runs; end it in the registry where it does not."""
        folder = self.folder_of(job.id)
        if processes.is_alive(folder):
            if job.cancel_wanted and job.pid is not None:
                self._stop_job(job.id, job.pid)
            return True
        child = self._children.pop(job.id, None)
        if child is not None:
            child.wait(_JOIN_S)
        self._kill_at.pop(job.id, None)
        status = processes.exit_status(folder)
        state, message = _verdict(job, status)
        with self._database.change() as session:
            if state == "succeeded" and job.kind == "evaluation":
                message = self._record(session, job)
            end_job(session, get_job(session, job.id), state, message, status)
        return False

    def _begin(self, job: Job) -> None:
        try:
            request = parse_request(job.request)
            command = command_of(request, self.folder_of(job.id), self._settings.grids)
            key = self._settings.job_key.get_secret_value()
            variables = {"PLAYSERVE_API_KEY": key} if key and isinstance(request, EvaluationRequest) else {}
            child = processes.start(self.folder_of(job.id), command, variables)
        except (OSError, PlayserveError) as error:
            with self._database.change() as session:
                end_job(session, get_job(session, job.id), "failed", f"it could not be started: {error}")
            return
        self._children[job.id] = child
        with self._database.change() as session:
            get_job(session, job.id).pid = child.pid

    def _stop_job(self, job_id: str, pid: int) -> None:
        deadline = self._kill_at.get(job_id)
        if deadline is None:
            self._kill_at[job_id] = time.monotonic() + self._settings.cancel_grace_s
            processes.signal_stop(pid)
        elif time.monotonic() > deadline:
            processes.kill(pid)

    def _record(self, session: Session, job: Job) -> str:
        """Record what an evaluation measured; return a line for people."""
        try:
            policy, version, results = measured_of(self.evaluation_report(job), f"job {job.id}")
            get_version(session, policy, version)
        except PlayserveError as error:
            return f"it succeeded, but its results were not recorded: {error}"
        for measured in results:
            record_evaluation(session, Actor(job.created_by), policy, version, measured)
        return f"{len(results)} results recorded"

    def _identity(self) -> str:
        path = self._folder / "owner.txt"
        if not path.exists():
            write_text(path, uuid.uuid4().hex)
        owner = path.read_text(encoding="utf-8").strip()
        if not owner:
            raise ServerFault(f"{path} is empty; remove it")
        return owner


def _verdict(job: Job, status: int | None) -> tuple[JobState, str]:
    if status == 0:
        return "succeeded", ""
    if job.cancel_wanted:
        return "cancelled", "cancelled; what it had saved is kept"
    if status is None:
        return "lost", "its process is gone and left no result: it, or the machine, was killed"
    return "failed", f"ended with status {status}; the log says why"
