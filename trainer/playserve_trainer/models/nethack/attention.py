"""Attention over a sliding window of steps, with a learnt bias for each distance.

The bias makes attention a function of distances alone, never of positions: keys and values can lie in a ring for as
long as an episode lasts, and step 50,000 is computed as exactly, and as fast, as step 500. (Rotary positions would need
angles in float64 there, and turn each key at each step.)

Shape legend: B rows, T steps, W window (context), J = W + T, D width, H heads, E = D / H.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["SlidingAttention"]


class SlidingAttention(nn.Module):
    """Softmax attention of queries over the last `context` steps, their own included.

    Args:
        width: D.
        num_heads: H.
        context: W.
    """

    def __init__(self, width: int, num_heads: int, context: int) -> None:
        super().__init__()
        self.width, self.num_heads, self.context = width, num_heads, context
        # Heads begin with horizons of different length.
        slope_H = 2.0 ** torch.linspace(0.0, -6.0, num_heads)
        self.bias_HW = nn.Parameter(-slope_H.unsqueeze(1) * torch.arange(context))

    def flops_per_step(self) -> int:
        """Return the forward FLOPs of one step with a full window: two products of W vectors of size D."""
        return 2 * 2 * self.context * self.width

    def bias_in_order(self, num_queries: int, num_keys: int, mask_BTJ: Tensor | None) -> Tensor:
        """Return the bias [1 or B, H, T, J] of the last T of J steps in order of time.

        Args:
            num_queries: T.
            num_keys: J.
            mask_BTJ: bool, which steps belong to the query's episode; None: all.
        """
        step_J = torch.arange(num_keys, device=self.bias_HW.device)
        distance_TJ = step_J[num_keys - num_queries :].unsqueeze(1) - step_J
        outside_TJ = (distance_TJ < 0) | (distance_TJ >= self.context)
        bias_HTJ = self.bias_HW[:, distance_TJ.clamp(0, self.context - 1)].masked_fill(outside_TJ, -torch.inf)
        bias_BHTJ = bias_HTJ.unsqueeze(0)
        return bias_BHTJ if mask_BTJ is None else bias_BHTJ.masked_fill(~mask_BTJ.unsqueeze(1), -torch.inf)

    def bias_of_ring(self, distance_BW: Tensor) -> Tensor:
        """Return the bias [B, H, 1, W] of one query a row; `distance_BW` int64: how many steps ago, W: never."""
        bias_HW = F.pad(self.bias_HW, (0, 1), value=-torch.inf)
        return bias_HW[:, distance_BW].transpose(0, 1).unsqueeze(2)

    def forward(self, query_BTD: Tensor, key_BJD: Tensor, value_BJD: Tensor, bias_BHTJ: Tensor) -> Tensor:
        """Return what the queries read [B, T, D]; the values where the bias is -inf must be finite."""
        query, key, value = (
            x.view(*x.shape[:2], self.num_heads, -1).transpose(1, 2) for x in (query_BTD, key_BJD, value_BJD)
        )
        read_BHTE = F.scaled_dot_product_attention(query, key, value, attn_mask=bias_BHTJ.to(query.dtype))
        return read_BHTE.transpose(1, 2).flatten(2)
