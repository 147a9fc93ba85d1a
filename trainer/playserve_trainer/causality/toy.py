"""The claim of Open P2P's toy environment, run again: does depth make plain SGD find the causal policy faster?

c = log p(brake | obstacle, no light) - log p(brake | no obstacle, light), both without noise, says which of the two
inputs a network brakes for: 0 neither more than the other, 10 for a linear policy made by hand (weight 20, bias -10).
Networks are as in the published notebook: linear, or 1 to 4 hidden layers of 10 ReLU units, torch's initial weights,
batch 1, plain SGD at 1e-4 on the driver's endless stream (:mod:`.toy_world`). The notebook's linear network has no
bias, while the paper says that it has one and the one made by hand needs one: here every network is run with and
without. Every network of a replica sees the same stream, so that differences are taken in pairs. A second learning
rate, 100 times as high, shows what much longer training would do.

Intervals are 95%, Student's t over replicas; nothing is corrected for the number of comparisons.

Shape legend: P points of a curve, R replicas.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from playserve.errors import BadSettingError
from playserve_trainer.causality.toy_nets import Net, NetStack
from playserve_trainer.causality.toy_world import LIGHT_ONLY, OBSTACLE_ONLY, Streams

__all__ = ["DEPTHS", "HAND_MADE", "Curve", "ToySettings", "mean_interval", "run_toy"]

#: Hidden layers, the deepest first; 0: linear.
DEPTHS = (4, 3, 2, 1, 0)
#: c of the linear policy made by hand.
HAND_MADE = 10.0

_BLOCK = 1000
_DTYPES: dict[str, type[np.floating[Any]]] = {"float32": np.float32, "float64": np.float64}


@dataclass(frozen=True, slots=True, kw_only=True)
class ToySettings:
    """What is run.

    Attributes:
        steps: Steps of SGD; the published figure ends at 3 million.
        replicas: Streams, and networks of each kind.
        seed: Of the first replica; the others count up from it.
        lrs: Learning rates.
        points: Points of a curve after the first.
        dtype: "float32", as the notebook's torch computes, or "float64".
    """

    steps: int = 3_000_000
    replicas: int = 10
    seed: int = 0
    lrs: tuple[float, ...] = (1e-4, 1e-2)
    points: int = 50
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("replicas", 2), ("points", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise BadSettingError(f"toy: {name} is at least {least}, not {getattr(self, name)}")
        if not self.lrs or len(set(self.lrs)) < len(self.lrs) or not all(0 < lr < math.inf for lr in self.lrs):
            raise BadSettingError(f"toy: learning rates are positive and told apart, not {self.lrs}")
        if self.dtype not in _DTYPES:
            raise BadSettingError(f"toy: dtype is one of {', '.join(_DTYPES)}, not {self.dtype!r}")

    def marks(self) -> list[int]:
        """Return the steps after which c is taken, from 0 on."""
        return sorted({0, *(round(self.steps * point / self.points) for point in range(1, self.points + 1))})

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        return {**asdict(self), "lrs": list(self.lrs)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """c of the networks of one kind.

    Attributes:
        depth: Hidden layers, 0: linear.
        bias: Whether they have biases.
        lr: Learning rate.
        steps: Steps behind each point.
        c_PR: c at each point of each replica.
    """

    depth: int
    bias: bool
    lr: float
    steps: tuple[int, ...]
    c_PR: NDArray[np.float64]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object; means and intervals are over replicas."""
        intervals = [mean_interval(c_R) for c_R in self.c_PR]
        return {
            "depth": self.depth,
            "bias": self.bias,
            "lr": self.lr,
            "steps": list(self.steps),
            "c": [[round(c, 4) for c in row] for row in self.c_PR.T.tolist()],
            **{name: [round(i[n], 5) for i in intervals] for n, name in enumerate(("mean", "low", "high"))},
        }


def mean_interval(values_R: Sequence[float] | NDArray[np.float64]) -> tuple[float, float, float]:
    """Return the mean of independent values, at least two, and its 95% interval."""
    values = np.asarray(values_R, np.float64)
    freedom, mean = len(values) - 1, float(values.mean())
    half = float(stats.t.ppf(0.975, freedom)) * float(values.std(ddof=1)) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def run_toy(settings: ToySettings, progress: Callable[[int, int], None] | None = None) -> list[Curve]:
    """Return the curve of each kind of network; `progress` is called with (steps made, steps)."""
    kinds = [(depth, bias, lr) for depth in DEPTHS for lr in settings.lrs for bias in (True, False)]
    seeds = tuple(range(settings.seed, settings.seed + settings.replicas))
    nets = [
        Net(depth=depth, bias=bias, lr=lr, replica=replica, seed=seed)
        for depth, bias, lr in kinds
        for replica, seed in enumerate(seeds)
    ]
    dtype = _DTYPES[settings.dtype]
    stack, streams = NetStack(nets, dtype), Streams(seeds)
    replica_N = np.array([net.replica for net in nets])
    marks, taken, done = settings.marks(), [], 0
    for mark in marks:
        while done < mark:
            count = min(_BLOCK, mark - done)
            inputs_KIR, targets_KR = streams.next(count)
            stack.learn(inputs_KIR.astype(dtype)[:, :, replica_N], targets_KR.astype(dtype)[:, replica_N])
            done += count
            if progress is not None:
                progress(done, settings.steps)
        taken.append(_metric(stack))
    c_PKR = np.stack(taken).reshape(len(marks), len(kinds), len(seeds))
    return [
        Curve(depth=depth, bias=bias, lr=lr, steps=tuple(marks), c_PR=c_PKR[:, number])
        for number, (depth, bias, lr) in enumerate(kinds)
    ]


def _metric(stack: NetStack) -> NDArray[np.float64]:
    """Return c of each network."""
    obstacle_N, light_N = stack.logits(np.array([OBSTACLE_ONLY, LIGHT_ONLY])).astype(np.float64)
    found: NDArray[np.float64] = np.logaddexp(0.0, -light_N) - np.logaddexp(0.0, -obstacle_N)
    return found
