"""The commands that make a study's data, and what its variants begin from: what is made already is not made again.

Recorders and ``data label`` look at their own folders. A training that is finished is left out here, and one that was
stopped goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

__all__ = ["going_on"]

_OUT, _RESUME = "--out", "--resume"


def going_on(command: Sequence[str]) -> list[str] | None:
    """Return the ``playserve`` command as it is to be run now; None: what it makes is there."""
    from playserve_trainer.checkpoint import is_complete
    from playserve_trainer.train.finish import CHECKPOINT_NAME
    from playserve_trainer.train.state import STATE_NAME

    if command[0] != "train" or _OUT not in command[:-1]:
        return list(command)
    out = Path(command[command.index(_OUT) + 1])
    if is_complete(out / CHECKPOINT_NAME):
        return None
    return [*command, *([_RESUME] if (out / STATE_NAME).exists() else [])]
