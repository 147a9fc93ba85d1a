"""A policy whose answer is a hash of everything that it has seen: any leak, loss or swap of memory changes it.

:class:`HashPolicy` is the policy; :class:`HashReference` is the same arithmetic in plain Python.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from playserve.specs import DiscreteActionSpec, GapMode, GapRule, PolicySpec, TensorSpec
from playserve_trainer.models.policy import ForwardOutput, Memory, Policy, Sampler, StateTensor, StepOutput

_PRIME = 1_000_003
NUM_ACTIONS = 251


class HashReference:
    """The memory of one game."""

    def __init__(self) -> None:
        self.state = 0

    def enter(self, observation: int, executed: int) -> int:
        """Take one frame; return the action."""
        self.state = (self.state * 31 + observation + 257 * (executed + 2)) % _PRIME
        return self.state % NUM_ACTIONS


class HashPolicy(Policy):
    """Input: `observation` int32 [1]. Memory: one int64. Deterministic whatever the sampling."""

    def __init__(self, gap_rule: GapRule | None = None, rate_hz: float = 0.0) -> None:
        super().__init__()
        self._gap_rule = gap_rule or GapRule()
        self._rate_hz = rate_hz
        self.fail = False  # set by tests: the next steps raise
        self.register_parameter("unused", torch.nn.Parameter(torch.zeros(1)))

    def spec(self) -> PolicySpec:
        return PolicySpec(
            name="hash",
            family="hash",
            inputs=(TensorSpec(name="observation", dtype="int32", shape=(1,)),),
            action=DiscreteActionSpec(n=NUM_ACTIONS),
            context_frames=0,
            rate_hz=self._rate_hz,
            gap_rule=self._gap_rule,
            uses_executed_actions=True,
        )

    def state_layout(self) -> Mapping[str, StateTensor]:
        return {"hash": StateTensor((1,), torch.int64)}

    def forward(self, inputs, executed_BTH, first_BT, state=None) -> ForwardOutput:  # type: ignore[no-untyped-def]
        raise NotImplementedError

    def step(self, inputs: Mapping[str, Tensor], executed_BH: Tensor, memory: Memory, sample: Sampler) -> StepOutput:
        if self.fail:
            raise RuntimeError("asked to fail")
        old = memory.read("hash")
        new = (old * 31 + inputs["observation"].long() + 257 * (executed_BH + 2)) % _PRIME
        memory.write("hash", new)
        logits = torch.full((len(new), NUM_ACTIONS), -1e9)
        logits.scatter_(1, new % NUM_ACTIONS, 0.0)
        return StepOutput(actions_BH=sample(logits, 0)[:, None])


def live_skip() -> HashPolicy:
    return HashPolicy(GapRule(mode=GapMode.SKIP), rate_hz=20.0)


def live_catch_up() -> HashPolicy:
    return HashPolicy(GapRule(mode=GapMode.CATCH_UP, catch_up_frames=3), rate_hz=20.0)


def lockstep() -> HashPolicy:
    return HashPolicy()
