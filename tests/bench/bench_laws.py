"""Budget of the laws: a whole `laws fit` of 200 cells with 1,000 resamples takes under 60 s on 2 cores, and agrees with
the many-start fit of the parametric law.

    python tests/bench/bench_laws.py --out runs/bench/laws.json

The table is a grid of a known surface (Epoch's refit of Hoffmann et al.) with 0.5% noise: 10 budgets, 10 sizes, 2
seeds. Each round fits another draw of the noise. The many-start fit takes all 4,500 starts once, and 100 of them in
the other rounds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from harness import machine, report_console, write_json

from playserve_trainer.laws.fitting import FitOptions, fit_laws

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))

_LIMIT_S = 60.0


def _round(number: int, processes: int, starts: int) -> dict[str, Any]:
    """Fit one draw of the noise, and check it with many starts."""
    from surfaces import EPOCH, grid

    rng = np.random.default_rng(number)
    table = grid(EPOCH, np.geomspace(1e18, 1e21, 10), sizes=10, noise=0.005, seeds=2, rng=rng)
    began = time.monotonic()
    found = fit_laws(table, FitOptions(resamples=1000, processes=processes, starts=0))
    fit_s = time.monotonic() - began
    began = time.monotonic()
    check = fit_laws(table, FitOptions(resamples=0, starts=starts))["groups"][0]["many_starts"]
    law = found["groups"][0]["laws"]["parametric"]["law"]
    return {
        "cells": len(table), "fit_s": fit_s, "starts": starts, "check_s": time.monotonic() - began,
        "verdict": check["verdict"], "alpha": law["alpha"], "alpha_many_starts": check["law"]["alpha"],
        "beta": law["beta"], "beta_many_starts": check["law"]["beta"],
    }  # fmt: skip


def main() -> int:
    """Measure; return 1 if the budget is missed or the fits disagree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--starts", type=int, default=4500, help="of the check in the first round")
    parser.add_argument("--out", type=Path, default=Path("runs/bench/laws.json"))
    args, console = parser.parse_args(), report_console()
    report: dict[str, Any] = {"benchmark": "laws", "limit_s": _LIMIT_S}
    with machine(report):
        rounds = []
        for number in range(args.rounds):
            rounds.append(_round(number, args.processes, args.starts if number == 0 else 100))
            console.print(rounds[-1])
    seconds = [row["fit_s"] for row in rounds]
    agree = all(row["verdict"] == "agree" for row in rounds)
    met = agree and statistics.median(seconds) < _LIMIT_S
    report |= {
        "rounds": rounds, "best_s": min(seconds), "median_s": statistics.median(seconds), "fits_agree": agree,
        "met": met,
    }  # fmt: skip
    write_json(args.out, report)
    console.print(f"best {min(seconds):.1f} s, median {statistics.median(seconds):.1f} s, limit {_LIMIT_S:.0f} s")
    return 0 if met else 1


if __name__ == "__main__":
    raise SystemExit(main())
