"""What the commands that make a run in a folder have in common: `train` and `rl learn`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from playserve.errors import BadSettingError, NotFoundError, StateError
from playserve.files import read_json

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = ["CONFIG_NAME", "check_new", "check_publish", "print_summary", "saved_settings", "with_limits"]

#: Settings of the run, in its folder.
CONFIG_NAME = "config.json"


def check_publish(name: str | None, store: str | None) -> None:
    """Raise BadSettingError unless both are given or neither, or if the name is none for a policy."""
    from playserve.specs import check_policy_name

    if (name is None) != (store is None):
        raise BadSettingError(f"--publish and --store go together, not --publish {name} --store {store}")
    if name is not None:
        check_policy_name(name)


def check_new(out: Path) -> None:
    """Raise StateError if the folder holds a run."""
    from playserve_trainer.train.state import STATE_NAME

    if (out / STATE_NAME).exists():
        raise StateError(f"{out} holds a run already: go on with it (--resume), or choose another --out")


def saved_settings(out: Path) -> dict[str, Any]:
    """Return the settings of the run in a folder.

    Raises:
        NotFoundError: There is none.
        DataLossError: They are damaged.
    """
    value = read_json(out / CONFIG_NAME)
    if value is None:
        raise NotFoundError(f"{out / CONFIG_NAME} is not there: nothing to resume; leave --resume out to begin a run")
    return value


def with_limits(given: Mapping[str, Any], none: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings given to a resumed run: a new limit replaces the old one, instead of standing beside it.

    Args:
        given: The settings.
        none: Each limit's value that means no limit.
    """
    return {**none, **given} if not none.keys().isdisjoint(given) else dict(given)


def print_summary(console: Console, table: Table, summary: Mapping[str, Any], out: str | Path) -> None:
    """Print a run's table with what became of it: its checkpoint, or how to go on."""
    from rich.markup import escape

    if summary["finished"]:
        table.add_row("checkpoint", escape(summary["checkpoint"]))
    if summary["published"]:
        table.add_row("published", escape("{name} version {version} in {store}".format(**summary["published"])))
    console.print(table)
    if not summary["finished"]:
        console.print(f"stopped before its end; go on with --resume --out {out}", markup=False, soft_wrap=True)
