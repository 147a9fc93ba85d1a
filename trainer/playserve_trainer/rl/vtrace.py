"""V-trace (Espeholt et al., 1802.01561): value targets and advantages from what another policy did.

With behaviour policy mu, learner's policy pi and discount gamma (0 where an episode ends)::

    rho_t = min(rho_clip, pi(a_t|x_t) / mu(a_t|x_t)),  c_t = min(c_clip, pi(a_t|x_t) / mu(a_t|x_t))
    delta_t = rho_t * (r_t + gamma_t * V(x_{t+1}) - V(x_t))
    v_t = V(x_t) + delta_t + gamma_t * c_t * (v_{t+1} - V(x_{t+1})),  v_T = V(x_T)
    advantage_t = rho_t * (r_t + gamma_t * v_{t+1} - V(x_t))

Shape legend: B unrolls, T steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["VTrace", "vtrace"]


@dataclass(frozen=True, slots=True)
class VTrace:
    """What the losses are made of; no gradient flows through it.

    Attributes:
        targets_BT: float32 [B, T], v_t, what the values are drawn to.
        advantages_BT: float32 [B, T], weights of the policy gradient; rho is in them.
        ratios_BT: float32 [B, T], pi / mu before any clipping.
    """

    targets_BT: Tensor
    advantages_BT: Tensor
    ratios_BT: Tensor


@torch.no_grad()
def vtrace(
    *,
    behaviour_log_probs_BT: Tensor,
    log_probs_BT: Tensor,
    rewards_BT: Tensor,
    discounts_BT: Tensor,
    values_BT: Tensor,
    bootstrap_B: Tensor,
    rho_clip: float = 1.0,
    c_clip: float = 1.0,
) -> VTrace:
    """Return targets and advantages.

    Args:
        behaviour_log_probs_BT: float32 [B, T], log mu(a_t|x_t).
        log_probs_BT: float32 [B, T], log pi(a_t|x_t).
        rewards_BT: float32 [B, T], r_t, what action a_t brought.
        discounts_BT: float32 [B, T], gamma_t; 0 where a_t ended the episode.
        values_BT: float32 [B, T], V(x_t).
        bootstrap_B: float32 [B], V(x_T), of the observation after the last action.
        rho_clip: Largest rho; it decides what the targets converge to.
        c_clip: Largest c; it decides how fast.
    """
    ratios_BT = (log_probs_BT - behaviour_log_probs_BT).exp()
    rhos_BT, cs_BT = ratios_BT.clamp(max=rho_clip), ratios_BT.clamp(max=c_clip)
    next_values_BT = torch.cat([values_BT[:, 1:], bootstrap_B.unsqueeze(1)], dim=1)
    deltas_BT = rhos_BT * (rewards_BT + discounts_BT * next_values_BT - values_BT)
    corrections, ahead_B = [], torch.zeros_like(bootstrap_B)  # v_t - V(x_t), from the last step to the first
    for t in reversed(range(values_BT.shape[1])):
        ahead_B = deltas_BT[:, t] + discounts_BT[:, t] * cs_BT[:, t] * ahead_B
        corrections.append(ahead_B)
    targets_BT = values_BT + torch.stack(corrections[::-1], dim=1)
    next_targets_BT = torch.cat([targets_BT[:, 1:], bootstrap_B.unsqueeze(1)], dim=1)
    advantages_BT = rhos_BT * (rewards_BT + discounts_BT * next_targets_BT - values_BT)
    return VTrace(targets_BT, advantages_BT, ratios_BT)
