"""The curves of runs as one figure: return, entropy, and how far behind the actors' policies were."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from playserve.errors import DataLossError, NotFoundError
from playserve.files import replacing
from playserve_trainer.rl.curve import CURVE_NAME, EPISODES_NAME, WINDOW

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_runs", "read_lines"]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's .jsonl file.

    Raises:
        NotFoundError: It is not there.
        DataLossError: A line is no JSON.
    """
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError:
        raise NotFoundError(f"{path} is not there: is its folder one of a run of `playserve rl`?") from None
    except ValueError as error:
        raise DataLossError(f"{path} has a line that is no JSON: {error}") from error


def draw_runs(folders: Sequence[Path], out: Path, goal: float | None = None) -> Path:
    """Write the figure of some runs as a PNG; return its path.

    Args:
        folders: Of the runs.
        out: The file.
        goal: A return to draw a line at.

    Raises:
        NotFoundError, DataLossError: As :func:`read_lines`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13.5, 3.9), layout="constrained")
    axes = list(figure.subplots(1, 3))
    for folder in folders:
        lines, episodes = read_lines(folder / CURVE_NAME), read_lines(folder / EPISODES_NAME)
        _returns(axes[0], folder.name, lines, episodes)
        frames = [line["frames"] / 1e6 for line in lines]
        axes[1].plot(frames, [line["entropy"] for line in lines], label=folder.name)
        (drawn,) = axes[2].plot(frames, [line["lag_updates"] for line in lines], label=f"{folder.name}, updates")
        axes[2].plot(
            frames, [line["lag_versions"] for line in lines], color=drawn.get_color(), linestyle=":",
            label=f"{folder.name}, versions",
        )  # fmt: skip
    if goal is not None:
        axes[0].axhline(goal, color="#d62728", linewidth=0.8, linestyle="--", label=f"goal {goal:g}")
    names = ("return of training episodes (sampled)", "entropy, nats", "versions and updates behind")
    for ax, name in zip(axes, names, strict=True):
        ax.set_title(name, fontsize=10)
        ax.set_xlabel("frames, millions")
        ax.grid(alpha=0.3)
        if ax.lines:
            ax.legend(fontsize=8)
    with replacing(out) as temporary:
        figure.savefig(temporary, dpi=130, facecolor="white")
    return out


def _returns(ax: Axes, name: str, lines: Sequence[dict[str, Any]], episodes: Sequence[dict[str, Any]]) -> None:
    """Draw each episode as a dot, and the mean of the newest ones as a line."""
    if not lines or not lines[-1]["steps"]:
        return
    frame_skip = lines[-1]["frames"] / lines[-1]["steps"]
    frames = [episode["steps"] * frame_skip / 1e6 for episode in episodes]
    ax.plot(frames, [episode["score"] for episode in episodes], ".", markersize=2, alpha=0.25, color="#7f7f7f")
    known = [line for line in lines if line["return_mean"] is not None]
    ax.plot(
        [line["frames"] / 1e6 for line in known], [line["return_mean"] for line in known],
        label=f"{name}, mean of the last {WINDOW}",
    )  # fmt: skip
