"""Policies of each family whose sessions bench_handoff.py moves, untrained: what they weigh is what counts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from bench_policies import TrivialPolicy

from playserve.specs import PolicySpec
from playserve_trainer.models.policy import Memory, Policy, Ring, Sampler, StateTensor, StepOutput
from playserve_trainer.models.registry import build

__all__ = ["RATES_HZ", "atari", "lstm", "p2p", "ring", "transformer"]

#: By name: steps a second of each session. Two cores do not carry 32 sessions of the larger ones at 20 Hz, and a server
#: that is behind with its answers says nothing of what a move costs.
RATES_HZ: Mapping[str, float] = {"atari": 20.0, "lstm": 20.0, "transformer": 5.0, "p2p": 2.0, "ring": 20.0}

_STEPS = "steps"


def _made(family: str, **config: Any) -> Policy:
    torch.manual_seed(0)
    return build(family, config).eval()


def atari() -> Policy:
    """No memory: a session is its place in the random stream, and its settings."""
    return _made("atari", game="breakout", num_actions=4, width=4)


def lstm() -> Policy:
    """Two vectors a layer."""
    return _made("nethack", num_actions=121, width=256, layers=2)


def transformer() -> Policy:
    """Keys and values of the last 256 screens, 4 MiB."""
    return _made("nethack", num_actions=121, width=256, core="transformer", layers=8, context=256)


def p2p() -> Policy:
    """The smallest of the released shapes, at a pace that a CPU keeps for 32 sessions."""
    from playserve_trainer.models.p2p.config import config_of_size
    from playserve_trainer.models.p2p.policy import P2PPolicy

    class Slower(P2PPolicy):
        def spec(self) -> PolicySpec:
            return dataclasses.replace(super().spec(), rate_hz=RATES_HZ["p2p"])

    torch.manual_seed(0)
    return Slower(config_of_size("1m", text_encoder="none")).eval()


class RingPolicy(TrivialPolicy):
    """Computes nothing and remembers as much as p2p-150M does: 10 layers of keys and values, 86 MiB a session."""

    _LAYERS, _SHAPE = 10, (2, 16, 2215, 64)
    _RING = Ring(axis=2, places=201, size=11, head=4)

    def state_layout(self) -> Mapping[str, StateTensor]:
        """See :class:`Policy`."""
        layers = {f"layer{n:02}": StateTensor(self._SHAPE, torch.bfloat16, self._RING) for n in range(self._LAYERS)}
        return {**layers, _STEPS: StateTensor((), torch.int64)}

    def step(self, inputs: Any, executed_BH: torch.Tensor, memory: Memory, sample: Sampler) -> StepOutput:
        """Write one place of each layer, and answer action 0."""
        steps_B = memory.read(_STEPS)
        for slot, step in zip(memory.slots_B.tolist(), steps_B.tolist(), strict=True):
            begin = self._RING.head + step % self._RING.places * self._RING.size
            for n in range(self._LAYERS):
                kept = memory.pools[f"layer{n:02}"][slot]
                kept[:, :, : self._RING.head] = step
                kept[:, :, begin : begin + self._RING.size] = step
        memory.write(_STEPS, steps_B + 1)
        return StepOutput(actions_BH=torch.zeros(executed_BH.shape[0], 1, dtype=torch.int64))


def ring() -> Policy:
    """See :class:`RingPolicy`."""
    return RingPolicy()
