"""The backbone: whole sequences under a banded mask for training, one pass a frame over rings for play.

The last layer is computed for action_out alone, which is all that anything reads of it. Shape legend: B rows, T steps,
K tokens of a step, N = T * K, Q = H + 4 tokens of a pass, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from playserve_trainer.models.p2p.blocks import Block, merge_heads
from playserve_trainer.models.p2p.config import P2PConfig
from playserve_trainer.models.p2p.ring import Rings, columns, pool_name, ring_layout
from playserve_trainer.models.p2p.rotary import Rotation, rotation
from playserve_trainer.models.p2p.tokens import ACTION_OUT, NEW_TOKENS, window_mask
from playserve_trainer.models.policy import StateTensor

__all__ = ["Backbone"]


class Backbone(nn.Module):
    """See the module's docstring."""

    def __init__(self, config: P2PConfig, num_actions: int) -> None:
        super().__init__()
        self.histories, self.heads, self.width = config.histories, config.heads, config.width
        self.num_actions, self.step_tokens = num_actions, NEW_TOKENS + num_actions
        self.ahead = config.inverse
        self.head_size = config.width // config.heads
        self.state_dtype: torch.dtype = getattr(torch, config.state_dtype)
        self.layers = nn.ModuleList(_BackboneBlock(config, num_actions, layer) for layer in range(config.layers))

    def blocks(self) -> list[_BackboneBlock]:
        """Return the layers."""
        return [layer for layer in self.layers if isinstance(layer, _BackboneBlock)]

    def layout(self) -> dict[str, StateTensor]:
        """Return the memory tensors of one slot."""
        return ring_layout(self.histories, self.heads, self.head_size, self.num_actions, self.state_dtype)

    def forward(self, tokens_BTKD: Tensor, first_BT: Tensor, *, keep: bool) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return action_out [B, T, D], and the state after the last step if `keep`, else nothing.

        Args:
            tokens_BTKD: float32; the memory is empty before them.
            first_BT: bool, steps that begin an episode.
            keep: Whether the state is wanted.
        """
        segment_BT, age_BT = _episodes(first_BT)
        role_K = torch.arange(self.step_tokens, device=first_BT.device)
        by = rotation((age_BT.unsqueeze(2) * self.step_tokens + role_K).flatten(1), self.head_size)
        masks: dict[tuple[int, bool], Tensor] = {}
        x_BND, state = tokens_BTKD.flatten(1, 2), {}
        for layer, block in enumerate(self.blocks()):
            kind = (block.history, block.only_out)
            if kind not in masks:
                masks[kind] = window_mask(
                    segment_BT, block.history, self.num_actions, only_out=block.only_out, ahead=self.ahead
                )
            x_BND, key, value = block(x_BND, by, masks[kind])
            if keep:
                state[pool_name(layer)] = self._ring(key.detach(), value.detach(), age_BT, block.history)
        if keep:
            state["steps"] = (age_BT[:, -1] + 1).expand(len(tokens_BTKD)).clone()
        return x_BND, state

    def step(self, tokens_BQD: Tensor, rings: Rings) -> Tensor:
        """Return action_out [B, D] of one pass: the actions of the step before, then the new tokens."""
        query = torch.arange(self.step_tokens, device=tokens_BQD.device) - self.num_actions
        by = rotation(rings.steps_B.unsqueeze(1) * self.step_tokens + query, self.head_size)
        x_BQD = tokens_BQD
        for layer, block in enumerate(self.blocks()):
            rows = slice(self.num_actions + ACTION_OUT, None) if block.only_out else slice(0, None)
            read = rings.attend(layer, *block.project(x_BQD, by), rows)
            x_BQD = block.finish(x_BQD[:, rows], merge_heads(read))
        rings.close()
        return x_BQD.squeeze(1)

    def _ring(self, key_BANE: Tensor, value_BANE: Tensor, age_BT: Tensor, history: int) -> Tensor:
        """Return a layer's memory [B, 2, A, C, E] after a sequence, as steps would have left it."""
        ring, num_steps, device = history + 1, age_BT.shape[1], age_BT.device
        last_B1 = age_BT[:, -1:]
        place_R = torch.arange(ring, device=device)
        age_BR = last_B1 - (last_B1 - place_R) % ring
        index_BR = age_BR + num_steps - 1 - last_B1
        kept_K = torch.tensor([r for r in range(self.step_tokens) if r != ACTION_OUT], device=device)
        index_BX = (index_BR.clamp(min=0).unsqueeze(2) * self.step_tokens + kept_K).flatten(1)
        empty_BX = (age_BR < 0).unsqueeze(2).expand(-1, -1, len(kept_K)).flatten(1)
        both = torch.stack([key_BANE, value_BANE], dim=1)
        where = index_BX.expand(len(both), -1)[:, None, None, :, None].expand(*both.shape[:3], -1, both.shape[4])
        held = both.gather(3, where).masked_fill(empty_BX[:, None, None, :, None], 0)
        result = both.new_zeros(*both.shape[:3], columns(history, self.num_actions), both.shape[4])
        result[..., NEW_TOKENS:, :] = held
        return result.to(self.state_dtype)


class _BackboneBlock(Block):
    """A block over whole sequences."""

    def __init__(self, config: P2PConfig, num_actions: int, layer: int) -> None:
        super().__init__(config.width, config.heads, config.hidden, config.dropout)
        self.history, self.num_actions, self.ahead = config.histories[layer], num_actions, config.inverse
        self.only_out = layer == config.layers - 1

    def forward(self, x_BND: Tensor, by: Rotation, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the residual stream [B, N, D], or [B, T, D] of action_out alone, and keys and values [B, A, N, E]."""
        query, key, value = self.project(x_BND, by)
        if self.only_out:
            rows = slice(ACTION_OUT, None, NEW_TOKENS + self.num_actions)
            query, x_BND = query[:, :, rows], x_BND[:, rows]
        read = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.finish(x_BND, merge_heads(read)), key, value

    def forward_flops(self, args: tuple[Any, ...], output: Any) -> int:
        """Return the FLOPs of attention at the full window: two products of size D with each visible token."""
        num_actions, steps = self.num_actions, self.history * (1 + self.ahead)
        past = steps * (ACTION_OUT + num_actions)
        seen = past + NEW_TOKENS
        if not self.only_out:
            seen += ACTION_OUT * (past + ACTION_OUT) + num_actions * (past + ACTION_OUT + num_actions)
        tokens = int(args[0].shape[0] * args[0].shape[1])
        return 2 * 2 * self.width * seen * (tokens // (NEW_TOKENS + num_actions))


def _episodes(first_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Return the episode of each step, int64 [B, T], and the steps before it in that episode; [1, T] if all are one.

    (Only a CPU can look without waiting; elsewhere all rows are told apart.)
    """
    step_T = torch.arange(first_BT.shape[1], device=first_BT.device)
    compiling = torch.compiler.is_compiling()
    if first_BT.device.type == "cpu" and not compiling and not bool(first_BT[:, 1:].any()):
        return torch.zeros_like(step_T).unsqueeze(0), step_T.unsqueeze(0)
    begins_BT = first_BT.clone()
    begins_BT[:, 0] = True
    begin_BT = (step_T * begins_BT).cummax(1).values
    return begins_BT.cumsum(1), step_T - begin_BT
