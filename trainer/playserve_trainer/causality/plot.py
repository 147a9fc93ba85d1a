"""Many measurements of one kind against data, size or training: a table and a figure.

Only what is comparable stands in one figure: the same measure and definition, clips of the same length, the same draws,
the same recordings. Anything else is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from playserve.errors import BadSettingError, DataLossError, NotFoundError
from playserve.files import replacing

__all__ = ["Point", "draw_points", "read_points"]

_SCORE, _INTERVENTION = "causality score", "causality intervention"

#: What stands on the y axis, by measure.
LABELS = {
    _SCORE: "causality score (95%, by recording)",
    _INTERVENTION: "towards the frames less towards the history (95%)",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One measurement.

    Attributes:
        file: Where it is from.
        x: Value of the key on the x axis.
        line: Value of the key that tells lines apart.
        y: The score, or how much more often an answer follows the frames than the history.
        low: Lower end of its interval, None: unknown.
        high: Upper end.
    """

    file: str
    x: float
    line: str
    y: float
    low: float | None
    high: float | None


def read_points(paths: Sequence[Path], x: str, line: str) -> tuple[str, list[Point]]:
    """Return what was measured, and a point for each file, by line and x.

    Args:
        paths: JSON files of `playserve causality score` or `intervene`.
        x: Key of a number: one of the labels that were given when it was measured, or of the checkpoint, such as
            params, samples_seen, flops.
        line: Key that tells lines apart, such as size or seed.

    Raises:
        NotFoundError: A file is not there.
        DataLossError: A file is no measurement.
        BadSettingError: They are not comparable, or one lacks a key.
    """
    values = [_read(path) for path in paths]
    kinds = {json.dumps(_kind(value), sort_keys=True): path for value, path in zip(values, paths, strict=True)}
    if len(kinds) > 1:
        told = "; ".join(f"{path}: {kind}" for kind, path in kinds.items())
        raise BadSettingError(f"measurements that cannot be compared: {told}")
    points = []
    for value, path in zip(values, paths, strict=True):
        summary = value["all"]["frames_minus_history"]
        if value["measure"] == _SCORE:
            summary = {**value["intervals"]["by_recording"], "mean": value["score"]}
        number = _get(value, x, path)
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise BadSettingError(f"{path}: {x} is {number!r}, wanted a number")
        points.append(
            Point(
                file=str(path), x=float(number), line=str(_get(value, line, path)), y=summary["mean"],
                low=summary["low"], high=summary["high"],
            )
        )  # fmt: skip
    return values[0]["measure"], sorted(points, key=lambda point: (_in_order(point.line), point.x))


def _in_order(name: str) -> tuple[tuple[int, str], ...]:
    """Return a key by which 6m comes before 16m."""
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name))


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise NotFoundError(f"{path} is not there") from error
    except ValueError as error:
        raise DataLossError(f"{path}: not JSON ({error})") from error
    if not isinstance(value, dict) or value.get("measure") not in LABELS:
        raise DataLossError(f"{path}: no measurement; wanted {' or '.join(map(repr, LABELS))}")
    return {"all": {"frames_minus_history": None}, **value}


def _kind(value: dict[str, Any]) -> dict[str, Any]:
    """Return what has to be equal."""
    return {"measure": value["measure"], "definition": value["definition"], "data": value["data"]["digest"],
            "held_out": value["data"]["held_out"], "settings": value["settings"]}  # fmt: skip


def _get(value: dict[str, Any], key: str, path: Path) -> Any:
    known = {**value["checkpoint"], **value.get("labels", {})}
    if key not in known:
        raise BadSettingError(f"{path} has no {key!r}; it has {', '.join(known)} (more can be given: --label)")
    return known[key]


def draw_points(measure: str, points: Sequence[Point], x: str, line: str, folder: Path) -> list[Path]:
    """Write causality.png and causality.svg into a folder that exists; return their paths."""
    import matplotlib
    from matplotlib.figure import Figure

    from playserve_trainer.laws.figures import narrow_log

    with matplotlib.rc_context({"svg.hashsalt": "playserve", "font.size": 9}):
        figure = Figure(figsize=(6.4, 4.2), layout="constrained")
        ax = figure.subplots()
        for name in dict.fromkeys(point.line for point in points):
            its = [point for point in points if point.line == name]
            xs, ys = [point.x for point in its], [point.y for point in its]
            (drawn,) = ax.plot(xs, ys, marker="o", markersize=4, label=f"{line} {name}")
            bars = [(p.x, p.low, p.high) for p in its if p.low is not None and p.high is not None]
            for at, low, high in bars:
                ax.vlines(at, low, high, color=drawn.get_color(), linewidth=1)
        if min(point.x for point in points) > 0 and len({point.x for point in points}) > 1:
            ax.set_xscale("log")
            narrow_log(ax.xaxis)
        ax.set_xlabel(x.replace("_", " "))
        ax.set_ylabel(LABELS[measure])
        ax.grid(alpha=0.3)
        ax.legend(fontsize=8)
        paths = []
        for ending in ("png", "svg"):
            paths.append(folder / f"causality.{ending}")
            with replacing(paths[-1]) as temporary:
                figure.savefig(temporary, dpi=130, metadata={"Date": None} if ending == "svg" else None)
    return paths
