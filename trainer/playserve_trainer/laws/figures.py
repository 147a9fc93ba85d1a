"""Figures in the papers' form, drawn by matplotlib: SVG for the page, PNG beside it.

Colours go from dark to light with the budget (viridis), so that order shows without a legend; held-out cells are
crosses, and what was forecast is drawn before what was trained.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["figures_of", "narrow_log", "png", "svg"]

_HELD_OUT = "#d62728"
_LAW = "#444444"


def figures_of(group: Mapping[str, Any]) -> dict[str, Figure]:
    """Return the figures of one task and variant by name; those that have nothing to show are absent."""
    found = {
        "isoflop": _isoflop(group, "loss"),
        "optima": _optima(group),
        "isoflop-return": _isoflop(group, "return_mean"),
        "loss-return": _loss_return(group),
        "loss-data": _by_data(group, ("loss",), "held-out loss, nats a label"),
        "return-data": _by_data(group, ("return_mean", "transfer_mean"), "mean return"),
    }
    return {name: figure for name, figure in found.items() if figure is not None}


def svg(figure: Figure) -> str:
    """Return the figure as an SVG element, without the XML header; the same figure gives the same text."""
    import matplotlib

    buffer = BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "playserve", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    text = buffer.getvalue().decode()
    return text[text.index("<svg") :]


def png(figure: Figure) -> bytes:
    """Return the figure as a PNG of 150 dots an inch."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=150, facecolor="white")
    return buffer.getvalue()


def _figure(columns: int = 1) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure as NewFigure

    figure = NewFigure(figsize=(5.4 * columns, 3.9), layout="constrained")
    axes = [figure.add_subplot(1, columns, 1 + at) for at in range(columns)]
    for ax in axes:
        ax.grid(visible=True, which="major", linewidth=0.4, alpha=0.5)
        for side in ("top", "right"):
            ax.spines[side].set_visible(False)
    return figure, axes


def _colour(at: int, count: int) -> Any:
    from matplotlib import colormaps

    return colormaps["viridis"](0.9 * at / max(1, count - 1))


def _isoflop(group: Mapping[str, Any], target: str) -> Figure | None:
    """Loss (or return) over N, one curve a budget, with the parabola's optimum where there is one."""
    budgets = next(curve["budgets"] for curve in group["curves"] if curve["target"] == target)
    if not budgets:
        return None
    figure, (ax,) = _figure()
    for at, curve in enumerate(budgets):
        held_out = curve["held_out"]
        colour = _HELD_OUT if held_out else _colour(at, len(budgets))
        ax.plot(
            curve["params"], curve["value"], "x--" if held_out else "o-", color=colour, markersize=4, linewidth=1,
            label=f"{curve['budget']:.1e}" + (" (held out)" if held_out else ""),
        )  # fmt: skip
    if target == "loss":
        points = group["laws"]["parabola"].get("optima", [])
        ax.plot(
            [point["params"] for point in points], [point["value"] for point in points], "*", color=_LAW, markersize=9,
            label="optimum",
        )  # fmt: skip
        ax.set_yscale("log")
    ax.set_xscale("log")
    ax.set_xlabel("parameters N")
    ax.set_ylabel("held-out loss, nats a label" if target == "loss" else "mean return")
    ax.legend(title="training FLOPs C", fontsize=7, title_fontsize=7)
    return figure


def _optima(group: Mapping[str, Any]) -> Figure | None:
    """N_opt, D_opt and L_opt over C: optima, laws, forecasts with their intervals, and what was trained."""
    law = next((group["laws"][name] for name in ("parabola", "argmin") if "optima" in group["laws"][name]), None)
    if law is None:
        return None
    figure, axes = _figure(3)
    points = law["optima"]
    budgets = np.array([point["budget"] for point in points])
    forecasts = _forecasts(group, points[0]["estimator"])
    ends = [*budgets, *(of["flops"] for of in forecasts), *(of["budget"] for of in _held_out(group))]
    line = np.geomspace(min(ends), max(ends), 60)
    for ax, name in zip(axes, ("params", "samples", "loss"), strict=True):
        key = "value" if name == "loss" else name
        ax.plot(budgets, [point[key] for point in points], "o", color=_colour(0, 2), markersize=5, label="optimum")
        ax.plot(line, _law_values(law, name, line), "-", color=_LAW, linewidth=1, label=_law_label(law, name))
        _draw_forecasts(ax, forecasts, name)
        measured = [(of["budget"], of["loss" if name == "loss" else "params"]) for of in _held_out(group)]
        if name != "samples" and measured:
            ax.plot(*zip(*measured, strict=True), "x", color=_HELD_OUT, markersize=8, label="trained, held out")
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_xlabel("training FLOPs C")
        ax.set_ylabel({"params": "N_opt", "samples": "D_opt", "loss": "L_opt, nats a label"}[name])
        ax.legend(fontsize=7)
    return figure


def _draw_forecasts(ax: Axes, forecasts: Sequence[Mapping[str, Any]], name: str) -> None:
    for number, of in enumerate(forecasts):
        interval = of["intervals"].get(name)
        value = of["values"][name]
        if interval and interval["low"] is not None:
            ax.plot([of["flops"]] * 2, [interval["low"], interval["high"]], "-", color="#ff7f0e", linewidth=2)
        ax.plot(of["flops"], value, "D", color="#ff7f0e", markersize=5, label="forecast, 95%" if not number else None)


def _law_values(law: Mapping[str, Any], name: str, line: np.ndarray) -> np.ndarray:
    if name == "loss":
        offset = law["offset"]
        if "coefficient" in offset:
            return np.asarray(offset["coefficient"] * line ** -offset["exponent"] + offset["offset"])
        return np.asarray(law["pure"]["coefficient"] * line ** law["pure"]["exponent"])
    return np.asarray(law[name]["coefficient"] * line ** law[name]["exponent"])


def _law_label(law: Mapping[str, Any], name: str) -> str:
    if name != "loss":
        return f"C^{law[name]['exponent']:.2f}"
    offset = law["offset"]
    if "coefficient" in offset:
        return f"C^-{offset['exponent']:.2f} + {offset['offset']:.3f}"
    return f"C^{law['pure']['exponent']:.2f}"


def _forecasts(group: Mapping[str, Any], estimator: str) -> list[Mapping[str, Any]]:
    value = group["forecasts"]
    if not value or "forecasts" not in value:
        return []
    return [of for of in value["forecasts"] if of["estimator"] == estimator]


def _held_out(group: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    return group["hold_out"] if isinstance(group["hold_out"], list) else []


def _by_data(group: Mapping[str, Any], names: Sequence[str], label: str) -> Figure | None:
    """Loss (or returns; where nothing was learnt they are dashed) over unique data, one colour a size."""
    curves = group["by_data"]
    known = [name for name in names if any(point[name] is not None for curve in curves for point in curve["points"])]
    if not known:
        return None
    figure, (ax,) = _figure()
    for at, curve in enumerate(curves):
        for name in known:
            points = [point for point in curve["points"] if point[name] is not None]
            transfer = name == "transfer_mean"
            ax.errorbar(
                [point["unique_samples"] for point in points], [point[name] for point in points],
                [point.get(name.replace("mean", "se")) or 0.0 for point in points] if name != "loss" else None,
                fmt="x--" if transfer else "o-", color=_colour(at, len(curves)), markersize=4, linewidth=1, capsize=2,
                label=f"{curve['size']}, N = {curve['params']:,.0f}" + (" (not learnt)" if transfer else ""),
            )  # fmt: skip
    ax.set_xscale("log")
    narrow_log(ax.xaxis)
    if known == ["loss"]:
        ax.set_yscale("log")
        narrow_log(ax.yaxis)
    ax.set_xlabel("unique samples")
    ax.set_ylabel(label)
    ax.legend(title="size", fontsize=7, title_fontsize=7)
    return figure


def narrow_log(axis: Any) -> None:
    """Label a logarithmic axis of one or two decades so that it can be read: at 1, 2 and 5 of each."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def _by_budget(group: Mapping[str, Any]) -> list[tuple[float, float, float]]:
    """Return loss, return and log10 of the budget of every size of every budget that has both."""
    by_target = {curve["target"]: curve["budgets"] for curve in group["curves"]}
    pairs = []
    for of_return in by_target["return_mean"]:
        of_loss = next((curve for curve in by_target["loss"] if curve["budget"] == of_return["budget"]), None)
        if of_loss is None:
            continue
        losses = dict(zip(of_loss["params"], of_loss["value"], strict=True))
        pairs += [
            (losses[size], value, math.log10(of_return["budget"]))
            for size, value in zip(of_return["params"], of_return["value"], strict=True)
            if size in losses
        ]
    return pairs


def _loss_return(group: Mapping[str, Any]) -> Figure | None:
    """Return over loss, every cell that has both."""
    points = [point for curve in group["by_data"] for point in curve["points"] if point["return_mean"] is not None]
    told = "unique samples" if points else "training FLOPs"
    pairs = [(of["loss"], of["return_mean"], math.log10(of["unique_samples"])) for of in points] or _by_budget(group)
    if len(pairs) < 3:
        return None
    figure, (ax,) = _figure()
    losses, returns, budgets = np.array(pairs).T
    drawn = ax.scatter(losses, returns, c=budgets, cmap="viridis", s=18)
    figure.colorbar(drawn, ax=ax, label=f"log10 of {told}")
    ax.set_xscale("log")
    narrow_log(ax.xaxis)
    ax.set_xlabel("held-out loss, nats a label")
    ax.set_ylabel("mean return")
    return figure
