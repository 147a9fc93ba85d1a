"""One run of a plan by its number: a pod of a Kubernetes Indexed Job, alone or spread over processes.

::

    JOB_COMPLETION_INDEX=17 playserve grid run DIR                                   one process
    playserve grid run DIR --index 17 --processes 2                                  two of this machine, or two GPUs
    torchrun --nproc-per-node 2 -m playserve_trainer.grid run DIR --index 17         the same, started by torchrun

Each process takes its rows of every batch (:mod:`playserve_trainer.train.parallel`): the cells are those of one
process, up to the order of sums, and a saved run goes on with another number of processes. The first process holds the
run's lock, and alone reports, publishes and writes files. When a process dies, the others lose their connection to it
and end; the first one tells why in failed.json, or, if it is the one that died, whichever finds the lock free.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from contextlib import ExitStack

from playserve.errors import BadSettingError, NotReadyError, PlayserveError, StateError
from playserve_trainer.grid.failures import write_failure
from playserve_trainer.grid.folder import GridFolder
from playserve_trainer.grid.plan import Plan, Run
from playserve_trainer.grid.progress import FileReporter
from playserve_trainer.grid.running import Hands, train_run
from playserve_trainer.grid.worker import Account
from playserve_trainer.train.local import local_processes, started_as
from playserve_trainer.train.parallel import processes
from playserve_trainer.train.progress import ProgressBar, Silent
from playserve_trainer.train.stop import StopRequest

__all__ = ["train_index"]

_WAIT_S = 5.0
_GONE_S = 10.0  # a process that dies lets go of its lock at once
_LOOK_S = 0.1


def train_index(
    folder: GridFolder, index: int, *, store: str, device: str = "auto", threads: int = 0, count: int = 1
) -> int:
    """Train run `index` of the plan; return 0 when it is done, 1 if it failed, 128 plus the signal that stopped it.

    Args:
        folder: The grid's.
        index: Number of the run.
        store: Folder or URL of the store that checkpoints go to.
        device: torch device, or "auto".
        threads: CPU threads of each process; 0: the cores, shared by the processes of the machine.
        count: Processes of this machine that share the run; 1 under torchrun, which has started its own.

    Raises:
        BadSettingError: There is no such run, or torchrun started another number of processes.
        StateError: Another process is at work on it.
        NotReadyError: A short run that it waits for failed, or the wait was stopped.
        ServerFault: One of the processes died.
    """
    plan = folder.plan()
    if not 0 <= index < len(plan.runs):
        raise BadSettingError(f"index {index}: the plan in {folder.root} has runs 0 to {len(plan.runs) - 1}")
    run, rank, born = plan.runs[index], started_as(), time.monotonic()
    if folder.is_done(run):
        return 0
    command = [
        sys.executable, "-m", "playserve_trainer.grid", "run", str(folder.root), "--index", f"{index}",
        "--store", store, "--device", device, "--threads", f"{threads}",
    ]  # fmt: skip
    hands = Hands(store=store, reporter=Silent(), threads=threads, device=device)
    with ExitStack() as stack:
        hands.should_stop = stop = stack.enter_context(StopRequest())
        account = None
        if rank == 0:
            if not stack.enter_context(folder.claim(run.name)):
                raise StateError(f"run {run.name} is being trained by another process")
            folder.forget_failure(run.name)
            account = Account(folder, f"index-{index}", born)
            hands.reporter = FileReporter(folder, run, stack.enter_context(ProgressBar(run.name)))
        _wait_for_rate(folder, run, stop)
        try:
            with local_processes(count, folder.run(run.name), command, again="the same command"):
                finished = _train(folder, plan, run, hands, account)
        except Exception as error:
            _tell(folder, run, error, rank)
            if isinstance(error, PlayserveError) or "WORLD_SIZE" in os.environ:
                raise  # torchrun must see that it did not end well
            traceback.print_exc()
            return 1
    return 0 if finished else 128 + (stop.signum or 0)


def _train(folder: GridFolder, plan: Plan, run: Run, hands: Hands, account: Account | None) -> bool:
    """Train as one process of a group; return whether it was not stopped."""
    if account:
        account.write(hands, run.name)
    try:
        with processes() as group:
            hands.group = group
            return train_run(folder, plan, run, hands)
    finally:
        if account:
            account.write(hands, None)


def _tell(folder: GridFolder, run: Run, error: Exception, rank: int) -> None:
    """Write why the run failed: the first process, which holds the lock; another one if the first is dead."""
    reason = f"{type(error).__name__}: {error}"
    if rank == 0:
        if isinstance(error, RuntimeError) and (size := os.environ.get("WORLD_SIZE")):
            reason = f"process 0 of {size} (another one may have died: see what torchrun says): {reason}"
        write_failure(folder, run.name, reason)
        return
    deadline = time.monotonic() + _GONE_S
    while time.monotonic() < deadline:
        with folder.claim(run.name) as free:
            if free:
                if not (folder.failure(run.name).exists() or folder.is_done(run)):
                    write_failure(folder, run.name, f"process 0 died; process {rank} saw {reason}")
                return
        time.sleep(_LOOK_S)


def _wait_for_rate(folder: GridFolder, run: Run, stop: StopRequest) -> None:
    """Wait until the short runs that tune the run's learning rate are done: they have lower numbers."""
    while folder.is_blocked(run):
        broken = [name for name in run.tuned_by if folder.failure(name).exists()]
        if broken or stop():
            raise NotReadyError(f"run {run.name} waits for short runs; failed: {', '.join(broken) or 'none'}")
        time.sleep(_WAIT_S)
