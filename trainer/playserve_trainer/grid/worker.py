"""A worker of a grid: one process that trains one run after another, with the data kept that were read last.

``python -m playserve_trainer.grid.worker DIR --slot N ...`` is started by :mod:`.execute`. Workers take runs by locking
them: several of them, on whatever machines share the folder, need no other agreement. A run that fails leaves
failed.json; the worker goes on with the next one.

With ``--processes K`` a worker is K processes, which share each batch of a run, and each held-out batch whose rows K
divides. The first one takes runs, tells the others which, and alone writes files, publishes and keeps accounts. What
fails in one process ends all K, for the others wait for it: the run is marked as failed, and the parent starts the
worker anew for the next run.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from playserve.files import read_json, write_json
from playserve_trainer.grid.failures import write_failure
from playserve_trainer.grid.folder import GridFolder
from playserve_trainer.grid.plan import Plan, Run
from playserve_trainer.grid.progress import FileReporter
from playserve_trainer.grid.running import Hands, train_run
from playserve_trainer.train.local import local_processes, started_as
from playserve_trainer.train.parallel import processes
from playserve_trainer.train.progress import Silent
from playserve_trainer.train.stop import StopRequest

__all__ = ["Account", "follow", "main", "work"]

_WAIT_S = 0.5
_NO_MORE = -1  # instead of a run's number


class Account:
    """``workers/<slot>.json``: what a worker does, and where its time went, over all of its lives.

    Args:
        folder: The grid's.
        slot: Name of the worker.
        born: When its process was started, on the monotonic clock.

    Attributes:
        run: Name of the run that is being trained, or None.
    """

    def __init__(self, folder: GridFolder, slot: str, born: float) -> None:
        folder.workers.mkdir(parents=True, exist_ok=True)
        self._path = folder.workers / f"{slot}.json"
        self._before = read_json(self._path) or {}
        self._born, self.waiting_s = born, 0.0
        self.run: str | None = None

    def write(self, hands: Hands, run: str | None) -> None:
        """Write the file: what is done now is `run`."""
        self.run, times = run, hands.times
        spent = {
            "busy_s": time.monotonic() - self._born - self.waiting_s, "training_s": times.training,
            "evaluating_s": times.evaluating, "preparing_s": times.preparing, "publishing_s": times.publishing,
            "waiting_s": self.waiting_s,
        }  # fmt: skip
        sums = {name: round(float(self._before.get(name, 0.0)) + value, 3) for name, value in spent.items()}
        write_json(self._path, {"pid": os.getpid(), "run": run, **sums})


def work(folder: GridFolder, plan: Plan, hands: Hands, account: Account, stop: StopRequest) -> int:
    """Train runs until there are none left to take; return 0, or 128 plus the signal that stopped it.

    The main process of a group does, and the others :func:`follow`.
    """
    task = ""
    while not stop():
        account.write(hands, None)
        # Runs on the data that are in memory come first.
        order = sorted(plan.runs, key=lambda run: run.task != task)
        taken = next((run for run in order if _try(folder, plan, run, hands, account)), None)
        if taken is not None:
            task = taken.task
        elif stop() or not _worth_waiting(folder, plan):
            break
        else:
            began = time.monotonic()
            time.sleep(_WAIT_S)
            account.waiting_s += time.monotonic() - began
    hands.group.most(_NO_MORE)
    account.write(hands, None)
    return 128 + stop.signum if stop.signum is not None else 0


def follow(folder: GridFolder, plan: Plan, hands: Hands) -> None:
    """Train the runs that the main process of the group takes, with it, until it takes no more."""
    # It says its run's number, the others the lowest there is: the highest is what it said.
    while (number := int(hands.group.most(_NO_MORE)[0])) != _NO_MORE:
        train_run(folder, plan, plan.runs[number], hands)


def _try(folder: GridFolder, plan: Plan, run: Run, hands: Hands, account: Account) -> bool:
    """Train a run if it is open and nobody else does; return whether it was."""
    if not _is_open(folder, run):
        return False
    with folder.claim(run.name) as ours:
        if not ours or not _is_open(folder, run):  # somebody was quicker
            return False
        account.write(hands, run.name)
        with _logged(folder.run(run.name) / "log.txt"):
            hands.reporter = FileReporter(folder, run)
            hands.group.most(plan.runs.index(run))
            try:
                train_run(folder, plan, run, hands)
            except Exception as error:
                traceback.print_exc()
                sys.stderr.flush()
                if hands.group.size > 1:
                    raise  # the others are gone, or wait for what does not come
                write_failure(folder, run.name, f"{type(error).__name__}: {error}")
    return True


def _is_open(folder: GridFolder, run: Run) -> bool:
    return not (folder.failure(run.name).exists() or folder.is_done(run) or folder.is_blocked(run))


def _worth_waiting(folder: GridFolder, plan: Plan) -> bool:
    """Return whether a run waits for short ones that may still come."""
    for run in plan.runs:
        if folder.is_blocked(run) and not folder.is_done(run) and not folder.failure(run.name).exists():
            missing = [name for name in run.tuned_by if not folder.tuning(name).exists()]
            if not any(folder.failure(name).exists() for name in missing):
                return True
    return False


@contextlib.contextmanager
def _logged(path: Path) -> Iterator[None]:
    """Have what this process prints go to a run's log for the length of the block, what C code prints included."""
    sys.stdout.flush()
    sys.stderr.flush()
    before = os.dup(1), os.dup(2)
    with path.open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor, original in zip((1, 2), before, strict=True):
            os.dup2(original, descriptor)
            os.close(original)


def main(argv: list[str] | None = None) -> int:
    """Work in the process that :mod:`.execute` started."""
    parser = argparse.ArgumentParser(prog="playserve grid worker")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--slot", required=True)
    parser.add_argument("--store", required=True)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--born", type=float, required=True)
    parser.add_argument("--processes", type=int, default=1)
    args = parser.parse_args(argv)
    folder = GridFolder(args.folder)
    command = [sys.executable, "-m", "playserve_trainer.grid.worker", *(sys.argv[1:] if argv is None else argv)]
    logs = folder.workers / args.slot
    with StopRequest() as stop:
        if started_as():
            return _work_in(folder, args, stop)
        account = Account(folder, args.slot, args.born)
        try:
            with local_processes(args.processes, logs, command, again="--retry-failed"):
                return _work_in(folder, args, stop, account)
        except Exception as error:
            if args.processes == 1 or account.run is None:
                raise
            # What the loss of a process means is known out here; a lone process has told of its failures before.
            write_failure(folder, account.run, f"{type(error).__name__}: {error}")
            return 1


def _work_in(folder: GridFolder, args: argparse.Namespace, stop: StopRequest, account: Account | None = None) -> int:
    """Work as one process of a group; without an account it is none that takes runs."""
    hands = Hands(store=args.store, reporter=Silent(), threads=args.threads, device=args.device)
    with processes() as group:
        hands.group = group
        if account is None:
            # When to stop is for the main process to say: all of them stop together.
            follow(folder, folder.plan(), hands)
            return 0
        hands.should_stop = stop
        try:
            return work(folder, folder.plan(), hands, account, stop)
        finally:
            account.write(hands, account.run)  # what a run that failed took, too


if __name__ == "__main__":
    sys.exit(main())
