"""An exponential moving average of the weights: what is evaluated and published where a run keeps one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from playserve_trainer.train.parallel import shard_like

__all__ = ["MovingAverage"]


class MovingAverage:
    """float32 averages of the trained parameters; buffers and frozen parameters are not averaged.

    The decay rises with the steps, min(decay, (1 + step) / (10 + step)), so that the first weights are soon forgotten.

    Args:
        policy: Whose parameters are averaged; they must not be replaced afterwards.
        decay: Share of the average that a step keeps, 0 to below 1.
    """

    def __init__(self, policy: nn.Module, decay: float) -> None:
        self._parameters = {name: p for name, p in policy.named_parameters() if p.requires_grad}
        self._averages = {name: p.detach().clone() for name, p in self._parameters.items()}
        self._decay = decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after optimizer step `step` (from 1)."""
        weight = 1.0 - min(self._decay, (1 + step) / (10 + step))
        for name, average in self._averages.items():
            average.lerp_(self._parameters[name].detach(), weight)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Put the averages in the policy's place, and its own weights back afterwards."""
        own = {name: p.detach().clone() for name, p in self._parameters.items()}
        self._assign(self._averages)
        try:
            yield
        finally:
            self._assign(own)

    def tensors(self) -> Mapping[str, Tensor]:
        """Return the averages by name of the parameter."""
        return self._averages

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up averages that were saved, whole."""
        for name, average in self._averages.items():
            average.copy_(shard_like(tensors[name], average))

    @torch.no_grad()
    def _assign(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(values[name])
