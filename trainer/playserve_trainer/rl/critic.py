"""A policy with a critic beside it. The critic reads what the policy's last layer reads, and is never published.

Shape legend: B unrolls, T steps, D features, A actions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from playserve.errors import NotImplementedHereError
from playserve_trainer.flops import count_flops
from playserve_trainer.models.policy import Policy

__all__ = ["ActorCritic"]


class ActorCritic(nn.Module):
    """A policy of a family as it is, and a critic of one hidden layer that shares its features.

    A value is no sum of what is seen here and what is seen there, as the family's linear head makes its logits: a
    critic without a hidden layer could not say that the ball misses the paddle.

    Args:
        policy: One action head, a linear layer named `head`: its input are the features.
        hidden: Units of the critic's hidden layer.

    Raises:
        NotImplementedHereError: The policy has several heads, or no linear layer `head`.
    """

    def __init__(self, policy: Policy, hidden: int) -> None:
        super().__init__()
        head = getattr(policy, "head", None)
        if not isinstance(head, nn.Linear) or len(policy.heads()) != 1:
            raise NotImplementedHereError(f"{type(policy).__name__} has no single linear head to put a critic beside")
        self.policy = policy
        self.critic = nn.Sequential(nn.Linear(head.in_features, hidden), nn.ReLU(), nn.Linear(hidden, 1))
        last = self.critic[2]
        assert isinstance(last, nn.Linear)  # noqa: S101 - made above
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self._features: Tensor | None = None
        head.register_forward_pre_hook(self._keep)

    def _keep(self, _head: nn.Module, arguments: tuple[Any, ...]) -> None:
        self._features = arguments[0]

    def forward(
        self,
        inputs: Mapping[str, Tensor],
        executed_BTH: Tensor,
        first_BT: Tensor,
        state: Mapping[str, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor, Mapping[str, Tensor]]:
        """Return logits [B, T, A], values float32 [B, T] and the memory after the last step; see `Policy.forward`."""
        output = self.policy(inputs, executed_BTH, first_BT, state)
        features, self._features = self._features, None
        assert features is not None  # noqa: S101 - the policy has called its head
        values_BT = self.critic(features.float()).view(first_BT.shape)
        return output.logits[0].float(), values_BT, output.state

    def flops(self) -> tuple[int, int]:
        """Return the FLOPs of acting for a step, and of learning from one, the critic's included."""
        critic = sum(
            2 * layer.in_features * layer.out_features for layer in self.critic if isinstance(layer, nn.Linear)
        )
        count = count_flops(self.policy)
        return count.forward, count.training + 3 * critic

    def num_params(self) -> int:
        """Return the parameters of policy and critic."""
        return sum(parameter.numel() for parameter in self.parameters())
