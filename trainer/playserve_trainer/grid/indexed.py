"""One run of a plan by its number: a pod of a Kubernetes Indexed Job, alone or as processes that torchrun started."""

from __future__ import annotations

import time
import traceback
from contextlib import ExitStack

from playserve.errors import BadSettingError, NotReadyError, PlayserveError, StateError
from playserve_trainer.grid.failures import write_failure
from playserve_trainer.grid.folder import GridFolder
from playserve_trainer.grid.plan import Run
from playserve_trainer.grid.progress import FileReporter
from playserve_trainer.grid.running import Hands, train_run
from playserve_trainer.grid.worker import Account
from playserve_trainer.train.parallel import Group, processes
from playserve_trainer.train.progress import ProgressBar, Silent
from playserve_trainer.train.stop import StopRequest

__all__ = ["train_index"]

_WAIT_S = 5.0


def train_index(folder: GridFolder, index: int, *, store: str, device: str = "auto", threads: int = 0) -> int:
    """Train run `index` of the plan; return 0 when it is done, 1 if it failed, 128 plus the signal that stopped it.

    Raises:
        BadSettingError: There is no such run.
        StateError: Another process is at work on it.
        NotReadyError: A short run that it waits for failed, or the wait was stopped.
    """
    plan = folder.plan()
    if not 0 <= index < len(plan.runs):
        raise BadSettingError(f"index {index}: the plan in {folder.root} has runs 0 to {len(plan.runs) - 1}")
    run, born = plan.runs[index], time.monotonic()
    with ExitStack() as stack:
        stop = stack.enter_context(StopRequest())
        group = stack.enter_context(processes())
        if folder.is_done(run):
            return 0
        hands = Hands(store=store, reporter=Silent(), should_stop=stop, threads=threads, device=device, group=group)
        account = None
        if group.is_main:
            if not stack.enter_context(folder.claim(run.name)):
                raise StateError(f"run {run.name} is being trained by another process")
            folder.forget_failure(run.name)
            account = Account(folder, f"index-{index}", born)
            hands.reporter = FileReporter(folder, run, stack.enter_context(ProgressBar(run.name)))
        _wait_for_rate(folder, run, stop)
        finished = _train(folder, index, hands, account, group)
    if finished is None:
        return 1
    return 0 if finished else 128 + (stop.signum or 0)


def _train(folder: GridFolder, index: int, hands: Hands, account: Account | None, group: Group) -> bool | None:
    """Train; return whether it was not stopped, None if it failed, which is written down."""
    plan = folder.plan()
    run = plan.runs[index]
    if account:
        account.write(hands, run.name)
    try:
        return train_run(folder, plan, run, hands)
    except Exception as error:
        if group.is_main:
            write_failure(folder, run.name, f"{type(error).__name__}: {error}")
        if isinstance(error, PlayserveError) or group.size > 1:
            raise  # the others must not wait for a process that is gone
        traceback.print_exc()
        return None
    finally:
        if account:
            account.write(hands, None)


def _wait_for_rate(folder: GridFolder, run: Run, stop: StopRequest) -> None:
    """Wait until the short runs that tune the run's learning rate are done: they have lower numbers."""
    while folder.is_blocked(run):
        broken = [name for name in run.tuned_by if folder.failure(name).exists()]
        if broken or stop():
            raise NotReadyError(f"run {run.name} waits for short runs; failed: {', '.join(broken) or 'none'}")
        time.sleep(_WAIT_S)
