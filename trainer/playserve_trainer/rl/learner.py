"""The learner: unrolls in, better weights out. It knows neither processes nor servers.

Memory of recurrent policies: an actor has none to send, it lives in the service. The learner keeps, for each
environment, the memory that its own net had after the environment's last unroll, and begins the next one with it.

Shape legend: B unrolls, T steps, A actions, H = 1 head.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from playserve_trainer.models.policy import Policy
from playserve_trainer.rl.config import RLConfig
from playserve_trainer.rl.critic import ActorCritic
from playserve_trainer.rl.loss import Losses, losses
from playserve_trainer.rl.unrolls import Unroll
from playserve_trainer.train.errors import TrainingDivergedError

__all__ = ["Learner", "LearnerMeans"]

_RMSPROP_EPS = 0.01
_RMSPROP_ALPHA = 0.99
_NAMES = tuple(f.name for f in dataclasses.fields(Losses))

Rows = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class _Held:
    """An unroll, and the memory before it, one row a tensor; empty for memoryless policies."""

    unroll: Unroll
    memory: Rows = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LearnerMeans:
    """Means over the updates since the last look.

    Attributes:
        updates: How many.
        values: By name: those of `Losses`, and "gradient_norm".
    """

    updates: int
    values: Mapping[str, float]


class Learner:
    """Policy, critic and optimizer of a run.

    Args:
        config: Of the run.
        policy: Freshly initialised, or loaded; it is trained in place.
        device: Where to.

    Attributes:
        updates: Made so far.
        steps: Environment steps learnt from at least once.
        flops: Training FLOPs so far, replayed steps included.
    """

    def __init__(self, config: RLConfig, policy: Policy, device: torch.device) -> None:
        self.config, self.device = config, device
        torch.manual_seed(config.seed)
        self.net = ActorCritic(policy, config.critic_hidden).to(device).train()
        parameters = list(self.net.parameters())
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.Adam(parameters, lr=config.lr, eps=1e-5)
            if config.optimizer == "adam"
            else torch.optim.RMSprop(parameters, lr=config.lr, alpha=_RMSPROP_ALPHA, eps=_RMSPROP_EPS)
        )
        self.updates, self.steps, self.flops = 0, 0, 0
        self.acting_flops_per_step, self.flops_per_step = self.net.flops()
        self._recurrent = bool(policy.state_layout())
        self._random = random.Random(config.seed)
        self._replay: deque[_Held] = deque(maxlen=config.replay_size)
        self._memories: dict[int, tuple[int, Rows]] = {}  # environment -> its next unroll's number, memory before it
        self._sums = torch.zeros(len(_NAMES) + 1, dtype=torch.float64, device=device)
        self._summed = 0

    @property
    def policy(self) -> Policy:
        """The policy that is trained."""
        return self.net.policy

    @property
    def recurrent(self) -> bool:
        """Whether an update may hold one new unroll an environment only, in order."""
        return self._recurrent

    def update(self, fresh: Sequence[Unroll], fraction: float) -> None:
        """Learn from new unrolls, and from some older ones.

        Args:
            fresh: One or more, of one length.
            fraction: Of the run that is done, 0 to 1.

        Raises:
            TrainingDivergedError: The loss or the gradient is no finite number.
        """
        config = self.config
        rows = [_Held(unroll, self._memory(unroll)) for unroll in fresh]
        rows += self._random.sample(self._replay, min(config.replay, len(self._replay)))
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate(self.updates, fraction)
        result, after = self._losses(rows)
        self.optimizer.zero_grad(set_to_none=True)
        result.total.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self.net.parameters(), config.clip_norm or math.inf)
        self._check(result, norm)
        self.optimizer.step()
        for index, held in enumerate(rows[: len(fresh)]):
            unroll = held.unroll
            memory = {name: tensor[index] for name, tensor in after.items()}
            self._memories[unroll.env_id] = (unroll.number + 1, memory)
            self._replay.append(held)
        self.updates += 1
        self.steps += sum(unroll.length for unroll in fresh)
        self.flops += self.flops_per_step * sum(held.unroll.length + 1 for held in rows)
        self._sums += torch.stack([*(getattr(result, name).detach() for name in _NAMES), norm]).double()
        self._summed += 1

    def take_means(self) -> LearnerMeans:
        """Return the means since the last call."""
        values = (self._sums / max(1, self._summed)).tolist()
        means = LearnerMeans(self._summed, dict(zip((*_NAMES, "gradient_norm"), values, strict=True)))
        self._sums.zero_()
        self._summed = 0
        return means

    def _check(self, result: Losses, norm: Tensor) -> None:
        if not bool(torch.isfinite(norm + result.total.detach())):
            hint = "a smaller lr, or a smaller clip_norm, may help; the state saved last is whole"
            raise TrainingDivergedError(self.updates + 1, result.total.item(), hint)

    def _memory(self, unroll: Unroll) -> Rows:
        """Return the memory before an unroll: empty where one before it is missing."""
        if not self._recurrent:
            return {}
        number, memory = self._memories.get(unroll.env_id, (-1, {}))
        if number == unroll.number:
            return memory
        return {
            name: torch.zeros(tensor.shape, dtype=tensor.dtype, device=self.device)
            for name, tensor in self.policy.state_layout().items()
        }

    def _losses(self, rows: Sequence[_Held]) -> tuple[Losses, Rows]:
        """Return the losses of some unrolls, and the memory after each, without gradient."""
        unrolls = [held.unroll for held in rows]
        inputs = {name: self._stack([u.inputs[name] for u in unrolls]) for name in unrolls[0].inputs}
        executed_BTH = self._stack([u.executed for u in unrolls]).unsqueeze(-1)
        first_BT = self._stack([u.first for u in unrolls])
        length, after = unrolls[0].length, {}
        if self._recurrent:
            before = {name: torch.stack([held.memory[name] for held in rows]) for name in rows[0].memory}
            seen = {name: tensor[:, :length] for name, tensor in inputs.items()}
            logits_BTA, values_BT, state = self.net(seen, executed_BTH[:, :length], first_BT[:, :length], before)
            after = {name: tensor.detach() for name, tensor in state.items()}
            with torch.no_grad():
                last = {name: tensor[:, length:] for name, tensor in inputs.items()}
                _, last_B1, _ = self.net(last, executed_BTH[:, length:], first_BT[:, length:], after)
            bootstrap_B = last_B1[:, 0]
        else:
            logits_BTA, values_BT, _ = self.net(inputs, executed_BTH, first_BT)
            logits_BTA, values_BT, bootstrap_B = logits_BTA[:, :length], values_BT[:, :length], values_BT[:, length]
        result = losses(
            self.config,
            logits_BTA=logits_BTA,
            values_BT=values_BT,
            bootstrap_B=bootstrap_B,
            actions_BT=self._stack([u.actions for u in unrolls]),
            behaviour_log_probs_BT=self._stack([u.log_probs for u in unrolls]),
            rewards_BT=self._stack([u.rewards for u in unrolls]),
            ends_BT=self._stack([u.ends for u in unrolls]),
        )
        return result, after

    def _stack(self, arrays: Sequence[np.ndarray[tuple[int, ...], np.dtype[np.generic]]]) -> Tensor:
        return torch.from_numpy(np.stack(arrays)).to(self.device, non_blocking=True)
