"""Jobs as processes of this machine.

One control plane runs the jobs of one folder: it holds the folder's lock. A job goes on when the control plane ends;
the next one on the same folder finds it by the job's own lock, or finds its result, or says that it was lost.
"""

from __future__ import annotations

import logging
import os
import subprocess
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from playserve.errors import BadSettingError, NotFoundError, ServerFault
from playserve.files import read_json, write_text
from playserve_services.control.jobs import processes
from playserve_services.control.jobs.requests import EvaluationRequest, GridRequest, command_of
from playserve_services.control.jobs.workers import Ended, Look, Part, Started
from playserve_services.control.models import Job
from playserve_services.control.settings import ControlSettings

__all__ = ["LocalWorkers"]

_log = logging.getLogger(__name__)
_WAIT_S = 10.0


class LocalWorkers:
    """See the module's docstring.

    Args:
        settings: Of the control plane.
    """

    def __init__(self, settings: ControlSettings) -> None:
        self._settings = settings
        self._folder = settings.data.absolute() / "jobs"
        self.owner = ""
        self._lock: int | None = None
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._kill_at: dict[str, float] = {}

    def open(self) -> bool:
        """Take the folder, if no other control plane has it."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self.owner = self._identity()
        self._lock = processes.try_lock(self._folder / "runner.lock")
        if self._lock is None:
            _log.warning("another control plane runs the jobs of %s; this one only shows them", self._folder)
        return self._lock is not None

    def close(self) -> None:
        """Let go of the folder."""
        for child in self._children.values():
            child.returncode = 0  # Popen would complain that nobody waits; whoever comes next looks at the lock
        if self._children:
            _log.info("%s jobs go on; the next control plane on %s takes them up", len(self._children), self._folder)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def folder_of(self, job_id: str) -> Path:
        """Return the folder of a job."""
        return self._folder / job_id

    def check(self, request: EvaluationRequest | GridRequest) -> None:
        """See the protocol."""
        if isinstance(request, EvaluationRequest) and request.shards > 1:
            raise BadSettingError(f"shards is {request.shards}, and jobs run on this machine: wanted 1, and workers")
        command_of(request, self._folder, self._settings.grids)

    def start(self, job: Job, request: EvaluationRequest | GridRequest) -> Started:
        """Start its command under a keeper."""
        folder = self.folder_of(job.id)
        key = self._settings.job_key.get_secret_value()
        variables = {"PLAYSERVE_API_KEY": key} if key and isinstance(request, EvaluationRequest) else {}
        command = command_of(request, folder, self._settings.grids)
        child = processes.start(folder, command, variables, log_bytes=self._settings.max_job_log_mb << 20)
        self._children[job.id] = child
        return Started(pid=child.pid)

    def look(self, job: Job) -> Look:
        """Look at the job's lock, and for its result."""
        folder = self.folder_of(job.id)
        if processes.is_alive(folder):
            return "running"
        child = self._children.pop(job.id, None)
        if child is not None:
            child.wait(_WAIT_S)
        self._kill_at.pop(job.id, None)
        status = processes.exit_status(folder)
        lost = "its process is gone and left no result: it, or the machine, was killed"
        return Ended(status, lost if status is None else "")

    def cancel(self, job: Job) -> None:
        """Ask it to end, and kill it when its grace is over."""
        if job.pid is None:
            return
        deadline = self._kill_at.get(job.id)
        if deadline is None:
            self._kill_at[job.id] = time.monotonic() + self._settings.cancel_grace_s
            processes.signal_stop(job.pid)
        elif time.monotonic() > deadline:
            processes.kill(job.pid)

    def parts(self, job: Job) -> Sequence[Part]:
        """Return none: a job is one command."""
        return []

    def log_tail(self, job: Job, limit: int, part: int | None) -> str:
        """Return the end of its log."""
        if part is not None:
            raise NotFoundError(f"job {job.id} has no parts")
        return processes.log_tail(self.folder_of(job.id), limit).decode("utf-8", "replace")

    def evaluation_report(self, job: Job) -> dict[str, Any]:
        """See the protocol."""
        found = read_json(self.folder_of(job.id) / "run" / "results.json")
        if found is None:
            raise NotFoundError(f"job {job.id} is {job.state} and has no report")
        return found

    def _identity(self) -> str:
        path = self._folder / "owner.txt"
        if not path.exists():
            write_text(path, uuid.uuid4().hex)
        owner = path.read_text(encoding="utf-8").strip()
        if not owner:
            raise ServerFault(f"{path} is empty; remove it")
        return owner
