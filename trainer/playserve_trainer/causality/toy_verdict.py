"""What the toy's curves say of the claim "depth speeds up finding the causal policy; linear SGD makes no progress".

Each half is judged for networks with and without bias, at each learning rate, and the first at several numbers of
steps, since a claim that holds at one need not hold at another. A difference counts where its interval leaves out 0;
"open" says that these replicas cannot tell.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from playserve_trainer.causality.toy import DEPTHS, HAND_MADE, Curve, mean_interval

__all__ = ["judge", "sentences"]

# Shares of the run at which depths are compared.
_SHARES = (0.1, 1 / 3, 1.0)


def judge(curves: Sequence[Curve]) -> dict[str, Any]:
    """Return the verdict, a JSON object.

    "depth" holds, for each bias, learning rate and number of steps, the difference in c of each network to the one that
    is a layer shallower, and of the deepest to one hidden layer, in pairs by replica. "linear" holds, for each bias and
    learning rate, what c was at the start and the end, and its growth over the whole run and over the second half.
    "bias" holds, for each learning rate and depth, what biases add to c at the end.
    """
    by_kind = {(curve.depth, curve.bias, curve.lr): curve for curve in curves}
    settings = sorted({(curve.bias, curve.lr) for curve in curves}, key=lambda item: (item[1], item[0]))
    steps = curves[0].steps
    depth, linear = [], []
    for bias, lr in settings:
        at = sorted({int(np.abs(np.array(steps) - share * steps[-1]).argmin()) for share in _SHARES} - {0})
        for point in at:
            of = {d: by_kind[d, bias, lr].c_PR[point] for d in DEPTHS}
            depth.append({"bias": bias, "lr": lr, "steps": steps[point], **_by_layer(of)})
        c_PR = by_kind[0, bias, lr].c_PR
        half = int(np.abs(np.array(steps) - 0.5 * steps[-1]).argmin())
        linear.append(
            {
                "bias": bias,
                "lr": lr,
                "steps": steps[-1],
                "start": _interval(c_PR[0]),
                "end": _interval(c_PR[-1]),
                "growth": _interval(c_PR[-1] - c_PR[0]),
                "growth_second_half": _interval(c_PR[-1] - c_PR[half]),
                "verdict": _progress(c_PR[-1] - c_PR[0], c_PR[-1] - c_PR[half]),
            }
        )
    biases = [
        {
            "lr": lr,
            "steps": steps[-1],
            "adds": {str(d): _interval(by_kind[d, True, lr].c_PR[-1] - by_kind[d, False, lr].c_PR[-1]) for d in DEPTHS},
        }
        for lr in sorted({lr for _, lr in settings})
    ]
    verdict = {"hand_made": HAND_MADE, "depth": depth, "linear": linear, "bias": biases}
    return {**verdict, "sentences": sentences(verdict)}


def sentences(verdict: dict[str, Any]) -> list[str]:
    """Return the verdict for people."""
    said, depth, linear = [], verdict["depth"], verdict["linear"]
    for entry in depth:
        layers = ", ".join(
            f"{_name(layer['from'])} to {layer['to']} {_shown(layer)} {layer['verdict']}"
            for layer in (*entry["layers"], entry["whole"])
        )
        said.append(f"{_setting(entry)}, {entry['steps']:,} steps: deeper is faster {entry['verdict']} ({layers})")
    said += [
        f"{_setting(entry)}: linear {entry['verdict']}: c {_shown(entry['start'])} at first, "
        f"{_shown(entry['end'])} after {entry['steps']:,} steps; growth {_shown(entry['growth'])}, in the second half "
        f"{_shown(entry['growth_second_half'])} (made by hand: {HAND_MADE:g})"
        for entry in linear
    ]
    for entry in verdict["bias"]:
        adds = ", ".join(f"{_name(int(depth))} {_shown(added)}" for depth, added in reversed(entry["adds"].items()))
        said.append(f"lr {entry['lr']:g}, {entry['steps']:,} steps: what biases add to c, by hidden layers: {adds}")
    return said


def _by_layer(of: dict[int, NDArray[np.float64]]) -> dict[str, Any]:
    """Return what each layer adds to c, and what follows for the claim among networks with hidden layers."""

    def added(shallow: int, deep: int) -> dict[str, Any]:
        found = _interval(of[deep] - of[shallow])
        verdict = "faster" if found["low"] > 0 else "slower" if found["high"] < 0 else "open"
        return {"from": shallow, "to": deep, **found, "verdict": verdict}

    depths = sorted(of)
    layers = [added(*two) for two in itertools.pairwise(depths)]
    verdicts = {layer["verdict"] for layer in layers if layer["from"] > 0}
    partly = "at some layers only" if "faster" in verdicts else "at no layer"
    return {
        "mean": {str(d): _interval(c_R) for d, c_R in of.items()},
        "layers": layers,
        "whole": added(1, depths[-1]),
        "verdict": "at every layer" if verdicts == {"faster"} else partly,
    }


def _progress(growth_R: NDArray[np.float64], late_R: NDArray[np.float64]) -> str:
    whole, late = _interval(growth_R), _interval(late_R)
    if late["low"] > 0:
        return "makes progress and goes on" if whole["low"] > 0 else "creeps on, not yet told apart from its start"
    if whole["low"] > 0:
        return "makes progress and stops"
    return "goes back" if whole["high"] < 0 else "makes no progress that can be seen"


def _interval(values_R: NDArray[np.float64]) -> dict[str, float]:
    mean, low, high = mean_interval(values_R)
    return {"mean": round(mean, 6), "low": round(low, 6), "high": round(high, 6)}


def _shown(interval: dict[str, Any]) -> str:
    return f"{interval['mean']:.2f} [{interval['low']:.2f}, {interval['high']:.2f}]"


def _setting(entry: dict[str, Any]) -> str:
    return f"{'with' if entry['bias'] else 'without'} bias, lr {entry['lr']:g}"


def _name(depth: int) -> str:
    return str(depth) if depth else "linear"
