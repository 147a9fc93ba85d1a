"""The three losses: policy gradient by V-trace's advantages, values, entropy.

Shape legend: B unrolls, T steps, A actions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from playserve_trainer.rl.config import RLConfig
from playserve_trainer.rl.vtrace import vtrace

__all__ = ["Losses", "losses", "shaped"]


@dataclass(frozen=True, slots=True)
class Losses:
    """Means over steps; tensors of the device, to be read now and then.

    Attributes:
        total: What is made small.
        policy: Policy gradient's part.
        value: Half the mean squared error of the values.
        entropy: Nats.
        ratio: Mean of pi / mu, over all steps.
        clipped: Share of steps whose ratio is above rho_clip (by more than rounding).
        divergence: Mean of log(mu / pi), what the policy has moved away from who acted.
    """

    total: Tensor
    policy: Tensor
    value: Tensor
    entropy: Tensor
    ratio: Tensor
    clipped: Tensor
    divergence: Tensor


def shaped(rewards: Tensor, config: RLConfig) -> Tensor:
    """Return what is learnt from rewards, of any shape."""
    match config.reward:
        case "clip":
            return rewards.clamp(-1.0, 1.0)
        case "tanh":
            return torch.tanh(rewards / config.reward_scale)
        case _:
            return rewards / config.reward_scale


def losses(
    config: RLConfig,
    *,
    logits_BTA: Tensor,
    values_BT: Tensor,
    bootstrap_B: Tensor,
    actions_BT: Tensor,
    behaviour_log_probs_BT: Tensor,
    rewards_BT: Tensor,
    ends_BT: Tensor,
) -> Losses:
    """Return the losses of a batch.

    Args:
        config: Costs, discount, clips.
        logits_BTA: float32, of the learner's policy.
        values_BT: float32.
        bootstrap_B: float32, value of the observation after the last action; no gradient flows through it.
        actions_BT: int64.
        behaviour_log_probs_BT: float32, from the wire.
        rewards_BT: float32, as the environment gave them.
        ends_BT: bool, actions behind which nothing is worth anything.
    """
    all_BTA = logits_BTA.log_softmax(-1)
    log_probs_BT = all_BTA.gather(-1, actions_BT.unsqueeze(-1)).squeeze(-1)
    trace = vtrace(
        behaviour_log_probs_BT=behaviour_log_probs_BT,
        log_probs_BT=log_probs_BT.detach(),
        rewards_BT=shaped(rewards_BT, config),
        discounts_BT=config.discount * (~ends_BT).float(),
        values_BT=values_BT.detach(),
        bootstrap_B=bootstrap_B.detach(),
        rho_clip=config.rho_clip,
        c_clip=config.c_clip,
    )
    policy = -(trace.advantages_BT * log_probs_BT).mean()
    value = 0.5 * (trace.targets_BT - values_BT).square().mean()
    entropy = -(all_BTA.exp() * all_BTA).sum(-1).mean()
    return Losses(
        total=policy + config.value_cost * value - config.entropy_cost * entropy,
        policy=policy.detach(),
        value=value.detach(),
        entropy=entropy.detach(),
        ratio=trace.ratios_BT.mean(),
        clipped=(trace.ratios_BT > 1.001 * config.rho_clip).float().mean(),
        divergence=(behaviour_log_probs_BT - log_probs_BT.detach()).mean(),
    )
