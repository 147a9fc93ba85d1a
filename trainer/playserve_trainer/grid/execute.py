"""Runs a grid: N worker processes, what they do shown in one view, and whatever ends them told.

Parent and workers share nothing but files, so that either may be killed at any moment: the same command goes on.

Runs are trained side by side by several workers, or one after another by one worker of several processes, which share
each batch (`processes`): for runs that want the GPUs of the whole machine. Over several machines torchrun starts them,
run by run (:mod:`.indexed`).
"""

from __future__ import annotations

import fcntl
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console

from playserve.errors import BadSettingError, DataLossError, ServerFault
from playserve.files import read_json, write_json
from playserve_trainer.grid.failures import log_tail, write_failure
from playserve_trainer.grid.folder import GridFolder
from playserve_trainer.grid.plan import Plan
from playserve_trainer.grid.status import GridStatus, collect
from playserve_trainer.grid.view import GridView, one_line
from playserve_trainer.processes import before_exec
from playserve_trainer.train.stop import StopRequest
from playserve_trainer.wording import utc_now

__all__ = ["run_grid"]

_LOOK_S = 0.25
_COLLECT_S = 1.0
_LEAVE_S = 60.0
_IDLE_DEATHS = 3
_INTERRUPTS = (signal.SIGINT, signal.SIGTERM)


@dataclass(slots=True, kw_only=True)
class _Pool:
    """The workers of a grid, by slot."""

    folder: GridFolder
    plan: Plan
    store: str
    count: int
    device: str
    per_worker: int = 1
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    idle_deaths: int = 0

    def fill(self) -> bool:
        """Start workers for the runs that nobody is at work on; return whether there are workers."""
        waiting = self._open_runs()
        for number in range(self.count):
            slot = str(number)
            if slot not in self.processes and len(self.processes) < waiting + self._busy():
                self._start(slot)
        return bool(self.processes)

    def _open_runs(self) -> int:
        folder = self.folder
        return sum(
            not (folder.is_done(run) or folder.failure(run.name).exists() or folder.is_blocked(run))
            and not folder.at_work(run.name)
            for run in self.plan.runs
        )

    def _busy(self) -> int:
        return sum(self._run_of(slot) is not None for slot in self.processes)

    def _run_of(self, slot: str) -> str | None:
        with suppress(DataLossError):
            return (read_json(self.folder.workers / f"{slot}.json") or {}).get("run")
        return None

    def _start(self, slot: str) -> None:
        self.folder.workers.mkdir(parents=True, exist_ok=True)
        account = self.folder.workers / f"{slot}.json"
        with suppress(DataLossError):
            if (before := read_json(account)) is not None:
                write_json(account, {**before, "run": None})  # what a killed one was at is not this one's
        several = self.count > 1
        command = [
            sys.executable, "-m", "playserve_trainer.grid.worker", str(self.folder.root), "--slot", slot,
            "--store", self.store, "--threads", "1" if several else "0", "--device", self.device,
            "--born", f"{time.monotonic()}", "--processes", f"{self.per_worker}",
        ]  # fmt: skip
        variables = {"OMP_NUM_THREADS": "1"} if several else {}
        # Python forgets an exception that a signal raises while it forks; a held-back signal comes afterwards.
        held = signal.pthread_sigmask(signal.SIG_BLOCK, _INTERRUPTS)
        try:
            with (self.folder.workers / f"{slot}.log").open("ab") as log:
                self.processes[slot] = subprocess.Popen(
                    command, process_group=0, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                    preexec_fn=before_exec(), env={**os.environ, **variables},
                )  # fmt: skip
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)

    def look(self) -> list[str]:
        """Take note of workers that ended; return what is to be told of them.

        Raises:
            ServerFault: A worker died before it had a run.
        """
        told = []
        for slot, process in list(self.processes.items()):
            status = process.poll()
            if status is None:
                continue
            del self.processes[slot]
            if status == 0:
                continue
            name, how = self._run_of(slot), _how_it_ended(status)
            if name is None:
                # A signal between two runs costs nothing; whatever else ends an idle worker will end the next one.
                self.idle_deaths += 1
                if status < 0 and self.idle_deaths <= _IDLE_DEATHS:
                    told.append(f"worker {slot} {how} between two runs; another takes its place")
                    continue
                tail = "\n".join(log_tail(self.folder.workers / f"{slot}.log"))
                raise ServerFault(f"worker {slot} {how} before it took a run:\n{tail}")
            if not self.folder.failure(name).exists() and not self.folder.is_done(self.plan.run(name)):
                write_failure(self.folder, name, f"its worker {how}")
            told.append(f"worker {slot} {how} during {name}; it is marked as failed (--retry-failed goes on with it)")
        return told

    def dismiss(self) -> None:
        """Have the workers save and leave; those that do not are ended."""
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + _LEAVE_S
        for process in self.processes.values():
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.processes.clear()


def run_grid(
    folder: GridFolder,
    *,
    workers: int,
    store: str,
    retry_failed: bool = False,
    device: str = "auto",
    minutes: float | None = None,
    processes: int = 1,
    console: Console | None = None,
) -> int:
    """Train every run that is not done; return 0 if all are, 1 if some failed or time was up.

    A signal is a flag that is looked at between two looks at the workers: an exception in the middle of a look could
    leave a lock of subprocess behind. It returns 128 plus the signal then, and the workers have saved what they had.

    Args:
        folder: The grid's.
        workers: Processes at a time.
        store: Folder or URL of the store that checkpoints go to.
        retry_failed: Whether failed runs are tried again, from where they were saved.
        device: torch device, or "auto".
        minutes: After so many the workers save what they have, and the same command goes on later; None: no end.
        processes: Processes, or GPUs, that share each run; above 1 there is one worker.
        console: Where to show it; None: stderr.

    Raises:
        BadSettingError: There are no workers, the processes do not fit, or another process runs this grid.
        ServerFault: A worker died before it had a run.
    """
    if workers < 1:
        raise BadSettingError(f"--workers is at least 1, not {workers}")
    plan = folder.plan()
    _check_processes(plan, workers, processes)
    with _alone(folder), StopRequest() as stop, GridView(workers, console) as view:
        if retry_failed:
            for run in plan.runs:
                folder.forget_failure(run.name)
        pool = _Pool(folder=folder, plan=plan, store=store, count=workers, device=device, per_worker=processes)
        began, status = time.monotonic(), collect(folder, plan)
        try:
            status = _watch(pool, view, stop, None if minutes is None else began + 60 * minutes)
        finally:
            pool.dismiss()
            status = collect(folder, plan)
            _write_account(folder, status, workers, time.monotonic() - began)
        view.say(one_line(status, workers))
        for item in status.of("failed"):
            view.say(f"failed: {item.run.name}: {item.reason}")
        if stop.signum is not None:
            view.say("stopped; the same command goes on from here")
            return 128 + stop.signum
    return 1 if len(status.of("done")) < len(status.runs) else 0


def _watch(pool: _Pool, view: GridView, stop: StopRequest, deadline: float | None) -> GridStatus:
    """Keep workers at work and the view fresh, until there is nothing left to take, time is up, or a signal came."""
    last = -_COLLECT_S
    status = collect(pool.folder, pool.plan)
    while not stop() and (pool.processes or pool.fill()):
        for text in pool.look():
            view.say(text)
        if time.monotonic() - last >= _COLLECT_S:
            last = time.monotonic()
            pool.fill()
            status = collect(pool.folder, pool.plan)
            view.update(status)
        if deadline is not None and time.monotonic() >= deadline:
            view.say("time is up; the same command goes on from here")
            break
        time.sleep(_LOOK_S)
    return status


def _check_processes(plan: Plan, workers: int, processes: int) -> None:
    if (started := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        raise BadSettingError(
            f"torchrun started {started} processes, which share one run: say which with --index, or leave torchrun out "
            "and give --processes"
        )
    if processes < 1:
        raise BadSettingError(f"--processes is at least 1, not {processes}")
    if processes > 1 and workers > 1:
        raise BadSettingError(f"--processes {processes} share one run at a time: --workers is 1, not {workers}")
    if odd := sorted({run.batch_size for run in plan.runs if run.batch_size % processes}):
        raise BadSettingError(
            f"batches of {', '.join(map(str, odd))} cannot be shared by {processes} processes: --processes divides them"
        )


@contextmanager
def _alone(folder: GridFolder) -> Iterator[None]:
    """Keep other `grid run` processes out for the length of the block."""
    with (folder.root / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BadSettingError(f"another `playserve grid run` is at work in {folder.root}") from None
        yield


def _write_account(folder: GridFolder, status: GridStatus, workers: int, wall_s: float) -> None:
    """Add this session to grid.json: what is done, and what of the workers' time was training."""
    before: dict[str, Any] = {}
    with suppress(DataLossError):
        before = read_json(folder.account) or {}
    session = {
        "ended_at": utc_now(), "wall_s": round(wall_s, 3),
        "workers": workers, "machine": platform.node(), "done_cells": status.done_cells,
    }  # fmt: skip
    value = {**status.to_json(workers), "sessions": [*before.get("sessions", []), session]}
    write_json(folder.account, value)


def _how_it_ended(status: int) -> str:
    if status < 0:
        hint = ", perhaps because memory ran out" if -status == signal.SIGKILL else ""
        return f"was killed by signal {-status}{hint}"
    return f"ended with status {status}"
