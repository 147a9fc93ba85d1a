"""Budget of the transformer core: a step at step 50,000 of an episode takes at most 5% longer than at step 500.

One slot plays `--old` steps, another `--young`; then both step in turns, in rounds whose order turns.

    python tests/bench/bench_step_age.py --out runs/bench/step_age.json
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from harness import machine, report_console, write_json
from torch import Tensor

from playserve_trainer.models.nethack import NetHackConfig, NetHackPolicy
from playserve_trainer.models.policy import Memory

_LIMIT = 1.05
_STEPS = 300  # of each slot in a round


def _screens(count: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)

    def draw(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, (1, *shape), generator=generator)

    return [
        {
            "tty_chars": draw(32, 127, 24, 80).to(torch.uint8),
            "tty_colors": draw(0, 16, 24, 80).to(torch.int8),
            "tty_cursor": torch.cat([draw(1, 22, 1), draw(0, 80, 1)], 1).to(torch.uint8),
        }
        for _ in range(count)
    ]


class _Player:
    """Steps one slot at a time."""

    def __init__(self, policy: NetHackPolicy) -> None:
        self._policy, self._screens = policy, _screens(64)
        self._pools = {name: torch.zeros(3, *t.shape, dtype=t.dtype) for name, t in policy.state_layout().items()}
        self._action, self._never = torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, dtype=torch.bool)

    def play(self, slot: int, steps: int) -> float:
        """Play; return seconds a step."""
        memory = Memory(self._pools, torch.tensor([slot]), self._never)
        began = time.perf_counter()
        for step in range(steps):
            self._policy.step(self._screens[step % 64], self._action, memory, lambda logits, _head: logits.argmax(-1))
        return (time.perf_counter() - began) / steps


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; 1 where the budget is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--context", type=int, default=64)
    parser.add_argument("--old", type=int, default=50_000)
    parser.add_argument("--young", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    policy = NetHackPolicy(NetHackConfig(width=args.width, core="transformer", context=args.context)).eval()
    player = _Player(policy)
    report: dict[str, Any] = {
        "benchmark": "step_age",
        "limit": _LIMIT,
        "arguments": {k: str(v) for k, v in vars(args).items()},
    }
    with machine(report), torch.inference_mode():
        player.play(1, args.old)
        player.play(2, args.young)
        rounds: list[dict[str, float]] = []
        for number in range(args.rounds):
            order = (("old", 1), ("young", 2)) if number % 2 else (("young", 2), ("old", 1))
            rounds.append({name: 1e3 * player.play(slot, _STEPS) for name, slot in order})
    ratios = [item["old"] / item["young"] for item in rounds]
    best = min(item["old"] for item in rounds) / min(item["young"] for item in rounds)
    median = statistics.median(ratios)
    verdict = "met" if median <= _LIMIT else "missed"
    report |= {"rounds_ms": rounds, "ratio": {"median": median, "best": best}, "verdict": verdict}
    console = report_console()
    for name in ("old", "young"):
        times = [item[name] for item in rounds]
        console.print(
            f"step {getattr(args, name):>6,}: best {min(times):.3f} ms, median {statistics.median(times):.3f} ms"
        )
    console.print(f"{policy.num_params():,} parameters, context {args.context}; ratio median {median:.3f}, of the best "
                  f"{best:.3f}; limit {_LIMIT}: {verdict}")  # fmt: skip
    write_json(args.out, report)
    return 0 if verdict == "met" else 1


if __name__ == "__main__":
    raise SystemExit(main())
