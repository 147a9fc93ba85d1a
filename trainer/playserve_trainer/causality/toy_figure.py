"""The toy's figure: c against steps, by depth, with and without bias, at each learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from playserve.files import replacing
from playserve_trainer.causality.toy import DEPTHS, Curve

__all__ = ["draw_toy"]

_COLOURS = {0: "#7f7f7f", 1: "#1f77b4", 2: "#2ca02c", 3: "#ff7f0e", 4: "#d62728"}


def draw_toy(curves: Sequence[Curve], folder: Path) -> list[Path]:
    """Write toy.png and toy.svg into a folder that exists; return their paths."""
    import matplotlib
    from matplotlib.figure import Figure

    lrs = sorted({curve.lr for curve in curves})
    replicas = curves[0].c_PR.shape[1]
    with matplotlib.rc_context({"svg.hashsalt": "playserve", "font.size": 9}):
        figure = Figure(figsize=(4.6 * len(lrs), 6.4), layout="constrained")
        axes = figure.subplots(2, len(lrs), squeeze=False, sharex=True)
        for row, bias in enumerate((True, False)):
            for column, lr in enumerate(lrs):
                ax = axes[row][column]
                for depth in sorted(DEPTHS):
                    curve = next(c for c in curves if (c.depth, c.bias, c.lr) == (depth, bias, lr))
                    shown = curve.to_json()
                    millions = [step / 1e6 for step in curve.steps]
                    label = f"{depth} hidden" if depth else "linear"
                    ax.plot(millions, shown["mean"], color=_COLOURS[depth], label=label, linewidth=1.4)
                    ax.fill_between(
                        millions, shown["low"], shown["high"], color=_COLOURS[depth], alpha=0.2, linewidth=0
                    )
                ax.axhline(0, color="black", linewidth=0.6)
                ax.set_title(f"{'with' if bias else 'without'} bias, lr {lr:g}")
                ax.grid(alpha=0.3)
                if row:
                    ax.set_xlabel("SGD steps, millions")
                if not column:
                    ax.set_ylabel("c")
        axes[0][0].legend(loc="upper left", fontsize=8)
        figure.suptitle(
            "Toy environment: c = log p(brake | obstacle only) - log p(brake | light only)\n"
            f"mean and 95% interval over {replicas} replicas",
            fontsize=9,
        )
        paths = []
        for ending in ("png", "svg"):
            paths.append(folder / f"toy.{ending}")
            with replacing(paths[-1]) as temporary:
                # No date: the same curves are the same file.
                figure.savefig(temporary, dpi=130, metadata={"Date": None} if ending == "svg" else None)
    return paths
