"""What the families on the core share: a frame becomes its tokens' vectors, the core reads them, heads read the core.

Shape legend: B rows, T frames (steps), H numbers of an action, P tokens of a frame, D width, A choices of a head.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from playserve.errors import NotImplementedHereError
from playserve_trainer.models.gpt.core import Core, initialise
from playserve_trainer.models.gpt.shape import Shape
from playserve_trainer.models.policy import (
    UNKNOWN_ACTION,
    ForwardOutput,
    Memory,
    Policy,
    Sampler,
    StateTensor,
    StepOutput,
)

__all__ = ["ActionEmbedding", "GptPolicy", "known_actions"]


class GptPolicy(Policy):
    """A policy on the core.

    Whole sequences are computed at once, from an empty memory; from a memory they are computed step by step, as play
    computes them, and take no gradient.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.core = Core(shape)

    def tokens_per_sample(self) -> int:
        """Return P: what a frame is to the core."""
        return self.core.shape.tokens

    def state_layout(self) -> Mapping[str, StateTensor]:
        """Return keys and values of the window, and two counts."""
        return self.core.layout()

    @abstractmethod
    def tokens(self, inputs: Mapping[str, Tensor], executed_BTH: Tensor, first_BT: Tensor) -> Tensor:
        """Return the vectors [B, T, P, D] of the tokens of each frame."""

    @abstractmethod
    def read(self, y_BTPD: Tensor) -> tuple[Tensor, ...]:
        """Return the logits of what the core made of the tokens."""

    def forward(
        self,
        inputs: Mapping[str, Tensor],
        executed_BTH: Tensor,
        first_BT: Tensor,
        state: Mapping[str, Tensor] | None = None,
    ) -> ForwardOutput:
        """See :class:`Policy`. While training, no memory is returned.

        Raises:
            NotImplementedHereError: A state is given where gradients are wanted.
        """
        learns = torch.is_grad_enabled() and self.training
        if learns and state is not None:
            raise NotImplementedHereError("a transformer on tokens learns from whole clips: no state between batches")
        x_BTPD = self.tokens(inputs, executed_BTH, first_BT)
        if state is None and (learns or x_BTPD.device.type == "meta" or first_BT.shape[1] > 1):
            y_BND, after = self.core(x_BTPD.flatten(1, 2), first_BT, keep=not self.training)
            return ForwardOutput(self.read(y_BND.unflatten(1, (*first_BT.shape[1:], -1))), after)
        return self._forward_steps(x_BTPD, first_BT, state)

    @torch.no_grad()
    def _forward_steps(self, x_BTPD: Tensor, first_BT: Tensor, state: Mapping[str, Tensor] | None) -> ForwardOutput:
        rows, device = len(first_BT), first_BT.device
        pools = {name: tensor.to(device, copy=True) for name, tensor in (state or {}).items()} or {
            n: torch.zeros(rows, *t.shape, dtype=t.dtype, device=device) for n, t in self.state_layout().items()
        }
        slots_B, seen = torch.arange(rows, device=device), []
        for t in range(first_BT.shape[1]):
            first_B = first_BT[:, t] if t or state is not None else torch.ones_like(first_BT[:, t])
            slots = self.core.open(Memory(pools, slots_B, first_B))
            seen.append(self.core.advance(x_BTPD[:, t], 0, slots))
            slots.close()
        return ForwardOutput(self.read(torch.stack(seen, dim=1)), pools)

    @torch.no_grad()
    def step(self, inputs: Mapping[str, Tensor], executed_BH: Tensor, memory: Memory, sample: Sampler) -> StepOutput:
        """See :class:`Policy`: one pass over the tokens of the frame."""
        one = {name: tensor.unsqueeze(1) for name, tensor in inputs.items()}
        x_B1PD = self.tokens(one, executed_BH.unsqueeze(1), memory.reset_B.unsqueeze(1))
        slots = self.core.open(memory)
        y_BPD = self.core.advance(x_B1PD.squeeze(1), 0, slots)
        slots.close()
        logits = self.read(y_BPD.unsqueeze(1))
        drawn = [sample(logits_B1A.squeeze(1).float(), head) for head, logits_B1A in enumerate(logits)]
        return StepOutput(torch.stack(drawn, dim=1))


class ActionEmbedding(nn.Module):
    """Vectors of the numbers of an action; each number has one more for "unknown".

    Args:
        choices: Choices of each of the H numbers.
        width: D.
    """

    def __init__(self, choices: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(count + 1, width) for count in choices)
        initialise(self)

    def forward(self, actions_XH: Tensor) -> Tensor:
        """Return vectors [..., H, D]; UNKNOWN_ACTION is the first row of a table."""
        return torch.stack([table(actions_XH[..., i] - UNKNOWN_ACTION) for i, table in enumerate(self.tables)], dim=-2)


def known_actions(executed_BTH: Tensor, first_BT: Tensor) -> Tensor:
    """Return the actions before each step, UNKNOWN_ACTION where an episode begins: they were another episode's."""
    return executed_BTH.masked_fill(first_BT.unsqueeze(2), UNKNOWN_ACTION)
