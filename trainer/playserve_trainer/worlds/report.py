"""Sums up what was measured of a world: at each horizon, over starts, with intervals over their episodes.

Units: PSNR in dB, at most 100, of the mean squared error over starts; the error of probes is a root mean square, in
spreads of the value over held-in real frames; rewards as the game gives them.

Shape legend: S starts, P probes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from playserve_trainer.worlds import clouds, outcomes
from playserve_trainer.worlds.judged import Change, Judged, as_it_is
from playserve_trainer.worlds.measures import DREAM, OTHER, REPEAT, Floats
from playserve_trainer.worlds.probes import READABLE, FittedProbes

__all__ = ["FORMAT_VERSION", "probes_as_json", "report"]

FORMAT_VERSION = 1

# Mean squared error below which frames count as equal: a PSNR of 100 dB.
_LEAST_SQUARED = 255.0**2 * 1e-10


def _psnr(squared: Any) -> Any:
    return 10 * np.log10(255.0**2 / np.maximum(squared, _LEAST_SQUARED))


def report(judged: Judged, horizons: Sequence[int]) -> dict[str, Any]:
    """Return everything as a JSON value.

    "at" holds a part for each horizon: "starts" and "episodes" that reach it, "psnr", "ssim", "tokens", "probe_error"
    (of the probes that can be read), "probe_error_all", "probes" (each by name), "uncertainty", "reward", "end" and
    "frechet"; within, a mean with bounds for each of what is shown, and "versus_repeat", the world less the start.
    """
    subject = judged.subject
    return {
        "format_version": FORMAT_VERSION,
        **subject.about,
        "notes": list(subject.notes),
        "starts": [{"episode": subject.cache.names_E[s.episode], "frame": s.frame, "steps": s.steps,
                    "other": subject.cache.names_E[s.other] if s.other >= 0 else None}
                   for s in judged.starts],
        "intervals": "95%, percentile bootstrap over the episodes of the starts",
        "probes": None if judged.probes is None else probes_as_json(judged.probes),
        "features": clouds.described(judged),
        "at": {str(horizon): _at(judged, horizon, before)
               for before, horizon in zip((0, *horizons), horizons, strict=False)},
        "curve": _curve(judged),
    }  # fmt: skip


def probes_as_json(probes: FittedProbes) -> dict[str, Any]:
    """Return what is said of probes: how well each reads real frames, in spreads."""
    each = zip(probes.names, probes.readable_P, probes.left_out_P, probes.real_P, probes.spread_P, strict=True)
    return {
        "features": probes.features, "frames": probes.frames, "unit": "spread over held-in real frames",
        "readable_below": READABLE, "readable": int(probes.readable_P.sum()), "all": len(probes.names),
        "each": {
            name: {"readable": bool(readable), "left_out_error": float(left), "held_out_error": _number(real),
                   "spread": float(spread)}
            for name, readable, left, real, spread in each
        },
    }  # fmt: skip


def _at(judged: Judged, horizon: int, before: int) -> dict[str, Any] | None:
    """Return what is measured at a horizon; None where no start has so many steps after it."""
    found_L = np.flatnonzero(judged.looked_L == horizon)
    reached = [start for start in judged.starts if start.steps >= horizon]
    if not len(found_L) or not reached:
        return None
    at, measured = int(found_L[0]), judged.measured
    part: dict[str, Any] = {"starts": len(reached), "episodes": len({start.episode for start in reached})}
    for name, values, change in (
        ("psnr", measured.squared, _psnr), ("ssim", measured.ssim, as_it_is), ("tokens", measured.tokens, as_it_is)
    ):  # fmt: skip
        part[name] = _compared(judged, {key: of[:, at] for key, of in values.items()}, change)
    part |= _read(judged, at)
    part["uncertainty"] = judged.summary(measured.uncertainty[:, at])
    part |= outcomes.outcomes(judged, horizon)
    part["frechet"] = clouds.distances(judged, before, horizon)
    return part


def _compared(judged: Judged, values: Mapping[str, Floats], change: Change) -> dict[str, Any] | None:
    """Return the summary of each of what is shown; None where nothing of it can be measured."""
    if all(np.isnan(of).all() for of in values.values()):
        return None
    found: dict[str, Any] = {name: judged.summary(of, change) for name, of in values.items()}
    for baseline in (REPEAT, OTHER):
        found[f"versus_{baseline}"] = judged.difference(values[DREAM], values[baseline], change)
    return found


def _read(judged: Judged, at: int) -> dict[str, Any]:
    probes, squared = judged.probes, judged.measured.probes
    if probes is None:
        return {"probe_error": None, "probe_error_all": None, "probes": None}
    found: dict[str, Any] = {}
    for key, chosen_P in (("probe_error", probes.readable_P), ("probe_error_all", np.ones(len(probes.names), bool))):
        values = {name: _mean_of(of[:, at][:, chosen_P]) for name, of in squared.items()}
        found[key] = _compared(judged, values, np.sqrt)
    found["probes"] = {
        probe: {name: judged.summary(of[:, at, p], np.sqrt) for name, of in squared.items()}
        for p, probe in enumerate(probes.names)
    }
    return found


def _mean_of(values_SP: Floats) -> Floats:
    """Return the mean over probes of each start, float64 [S]; nan where there is none."""
    if not values_SP.shape[1]:
        return np.full(len(values_SP), math.nan)
    means_S: Floats = values_SP.mean(1)
    return means_S


def _curve(judged: Judged) -> list[dict[str, Any]]:
    """Return the means at every step that was looked at, without intervals, for drawings."""
    measured, probes = judged.measured, judged.probes
    rows = []
    for at, step in enumerate(judged.looked_L.tolist()):
        row: dict[str, Any] = {"step": step, "starts": sum(start.steps >= step for start in judged.starts)}
        row["psnr"] = {name: _mean(of[:, at], _psnr) for name, of in measured.squared.items()}
        row["tokens"] = {name: _mean(of[:, at], as_it_is) for name, of in measured.tokens.items()}
        if probes is not None:
            readable_P = probes.readable_P
            row["probe_error"] = {
                name: _mean(_mean_of(of[:, at][:, readable_P]), np.sqrt) for name, of in measured.probes.items()
            }
        row["uncertainty"] = _mean(measured.uncertainty[:, at], as_it_is)
        rows.append(row)
    return rows


def _mean(values_S: Floats, change: Change) -> float | None:
    known = values_S[~np.isnan(values_S)]
    return float(change(known.mean())) if len(known) else None


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
