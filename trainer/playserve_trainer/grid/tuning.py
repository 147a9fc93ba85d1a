"""Which learning rate a size gets: of the short runs that tried one each, that with the lowest held-out loss.

A candidate under which training diverged is out. Of equal losses the lower rate wins. The result of each short run is a
file, so that the choice can be looked at, and made again by anybody.
"""

from __future__ import annotations

from dataclasses import dataclass

from playserve.errors import NotReadyError, StateError
from playserve.files import read_json
from playserve_trainer.grid.folder import GridFolder
from playserve_trainer.grid.plan import Run

__all__ = ["ChosenRate", "choose_rate"]


@dataclass(frozen=True, slots=True)
class ChosenRate:
    """A learning rate.

    Attributes:
        lr: It.
        at_edge: Whether it is the lowest or the highest candidate, so that a better one may lie beyond; None: not
            tuned.
    """

    lr: float
    at_edge: bool | None = None


def choose_rate(folder: GridFolder, run: Run) -> ChosenRate:
    """Return the learning rate of a run.

    Raises:
        NotReadyError: A short run is not finished.
        StateError: Every candidate diverged.
    """
    if run.lr is not None:
        return ChosenRate(run.lr)
    results = []
    for name in run.tuned_by:
        result = read_json(folder.tuning(name))
        if result is None:
            raise NotReadyError(f"run {run.name} waits for {name}, which tunes its learning rate")
        results.append((float(result["lr"]), result["loss"]))
    good = [(float(loss), lr) for lr, loss in results if loss is not None]
    if not good:
        raise StateError(f"run {run.name}: training diverged under every learning rate of {[lr for lr, _ in results]}")
    lr = min(good)[1]
    tried = [lr for lr, _ in results]
    return ChosenRate(lr, lr in (min(tried), max(tried)))
