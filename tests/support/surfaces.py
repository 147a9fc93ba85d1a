"""Tables of cells from surfaces that are known, so that a fit can be held against the truth."""

import numpy as np

from playserve_trainer.laws.table import CellTable

#: Epoch's refit of Hoffmann et al. (2404.10102): A, B, E, alpha, beta.
EPOCH = {"a": 482.01, "b": 2085.43, "e": 1.8172, "alpha": 0.3478, "beta": 0.3658}

#: A surface of the size that two cores train: a = beta / (alpha + beta) = 0.6.
SMALL = {"a": 30.0, "b": 200.0, "e": 0.1, "alpha": 0.4, "beta": 0.6}


def loss_of(n, d, *, a, b, e, alpha, beta):
    return e + a * n**-alpha + b * d**-beta


def best_size(c, *, a, b, e, alpha, beta):
    g = (alpha * a / (beta * b)) ** (1 / (alpha + beta))
    return g * (c / 6) ** (beta / (alpha + beta))


def grid(surface, budgets, *, sizes=7, reach=8.0, noise=0.0, seeds=1, rng=None, cost=lambda n: 6 * n, held_out=()):
    """Return a table: at each budget geometric sizes around the best one, C = cost(N) D."""
    rng = rng or np.random.default_rng(0)
    rows = []
    for budget in budgets:
        centre = best_size(budget, **surface)
        for at, n in enumerate(np.geomspace(centre / reach, centre * reach, sizes)):
            for seed in range(seeds):
                d = budget / cost(n)
                loss = loss_of(n, d, **surface) * np.exp(rng.normal(0, noise))
                rows.append(
                    {"run": f"b{budget:.0e}n{at}s{seed}", "task": "toy", "size": f"{n:.6g}", "flops": budget,
                     "budget": budget, "params": n, "samples": d, "loss": loss, "seed": seed,
                     "held_out": budget in held_out}
                )  # fmt: skip
    return table_of(rows)


def table_of(rows):
    return CellTable.from_columns({name: [row.get(name) for row in rows] for name in rows[0]})
