"""The transformer core of the families on tokens: GPT-2's blocks over a sliding window of frames.

An episode is one row of tokens, P of them a frame. A token sees the F - 1 frames before its own, and of its own frame
those tokens that the shape says. Positions are rotary, from exact angles: what one token is to another hangs on how
far apart they stand, never on how long the episode is, so that keys may lie in a ring for as long as it lasts (see
:mod:`.ring`).

Shape legend: B rows, T frames (steps), P tokens of a frame, N = T * P, Q some tokens of one frame, D width, L layers,
A attention heads, E = D / A, J keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from playserve_trainer.models.gpt.ring import HELD, KEYS, STEPS, VALUES, Slots, looks, slots_layout
from playserve_trainer.models.gpt.shape import Shape
from playserve_trainer.models.p2p.rotary import Rotation, rotate, rotation
from playserve_trainer.models.policy import Memory, StateTensor

__all__ = ["Core", "initialise"]

_EXPANSION = 4  # of the feed-forward layers
# GPT-2's standard deviation of 0.02, at its width of 768, grown for smaller widths as the square root wants.
_SPREAD = 0.02 * 768**0.5
_EMBEDDING_SPREAD = 0.1


def initialise(module: nn.Module) -> None:
    """Draw the weights of every linear layer and embedding beneath a module anew, as GPT-2 does, biases 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=_SPREAD * layer.in_features**-0.5)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.Embedding):
            nn.init.normal_(layer.weight, std=_EMBEDDING_SPREAD)


class Core(nn.Module):
    """Pre-norm blocks; vectors of tokens in, vectors of tokens out."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.own_PP: Tensor
        own_PP = torch.arange(shape.tokens) < torch.tensor(shape.seen).unsqueeze(1)
        self.register_buffer("own_PP", own_PP, persistent=False)
        self.blocks = nn.ModuleList(_Block(shape) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.width)
        initialise(self)
        with torch.no_grad():
            for block in self._blocks():  # at first a block adds little to what comes in
                for linear in (block.out, block.down):
                    linear.weight.mul_((2 * shape.layers) ** -0.5)

    def _blocks(self) -> list[_Block]:
        return [block for block in self.blocks if isinstance(block, _Block)]

    def layout(self) -> dict[str, StateTensor]:
        """Return the memory tensors of one slot."""
        return slots_layout(self.shape)

    def open(self, memory: Memory) -> Slots:
        """Return the slots of a batch, for the tokens of one frame."""
        return Slots(self.shape, self.own_PP, memory)

    def forward(self, x_BND: Tensor, first_BT: Tensor, keep: bool = False) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return vectors [B, N, D] of whole sequences from an empty memory, and the memory afterwards if `keep`."""
        shape, num_rows = self.shape, len(x_BND)
        order = _Order.of(first_BT, shape, self.own_PP)
        turn = rotation(order.positions_XN, shape.head_size)
        kept: list[tuple[Tensor, Tensor]] = []
        for block in self._blocks():
            query, key, value = block.project(x_BND, turn)
            read = block.attention(query, key, value, order.mask)
            x_BND = block.finish(x_BND, read)
            if keep:
                kept.append((key.transpose(1, 2).flatten(2), value.transpose(1, 2).flatten(2)))
        state = order.memory(kept, shape, num_rows) if keep else {}
        y_BND: Tensor = self.norm(x_BND)
        return y_BND, state

    def advance(self, x_BQD: Tensor, begin: int, slots: Slots) -> Tensor:
        """Return vectors [B, Q, D] of the tokens `begin` to `begin` + Q - 1 of the frame that the slots are at."""
        num = x_BQD.shape[1]
        turn, mask = slots.turn(begin, num), slots.mask(begin, num)
        for layer, block in enumerate(self._blocks()):
            query, key, value = block.project(x_BQD, turn)
            kept_key, kept_value = slots.keep(layer, begin, key, value)
            read = block.attention(query, kept_key, kept_value, mask)
            x_BQD = block.finish(x_BQD, read)
        y_BQD: Tensor = self.norm(x_BQD)
        return y_BQD


class _Attention(nn.Module):
    """Softmax attention; it has no weights, and is a module so that its FLOPs are counted."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.window = shape.window

    def forward_flops(self, arguments: tuple[Any, ...], output: Tensor) -> int:
        """Return the FLOPs of a call: two products of each query with as many keys as the window, or there, are."""
        return 2 * 2 * output.numel() * min(self.window, int(arguments[1].shape[2]))

    def forward(self, query_BAQE: Tensor, key_BAJE: Tensor, value_BAJE: Tensor, mask: Tensor | None) -> Tensor:
        """Return what the queries read [B, Q, D].

        Args:
            query_BAQE: Queries.
            key_BAJE: Keys.
            value_BAJE: Values; finite, seen or not.
            mask: [1 or B, 1, Q, J], which keys a query sees: bool, or what is added, of the values' dtype; None:
                causal, and there are as many as queries.
        """
        query_BAQE = query_BAQE.to(value_BAJE.dtype)
        key_BAJE = key_BAJE.to(value_BAJE.dtype)
        read = F.scaled_dot_product_attention(query_BAQE, key_BAJE, value_BAJE, attn_mask=mask, is_causal=mask is None)
        return read.transpose(1, 2).flatten(2)


class _Block(nn.Module):
    """One pre-norm block, without what remembers."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width = shape.width
        self.heads = shape.heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.attention = _Attention(shape)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, _EXPANSION * width)
        self.down = nn.Linear(_EXPANSION * width, width)

    def project(self, x_BQD: Tensor, turn: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries and keys, turned by their positions, and values [B, A, Q, E]."""
        qkv = self.qkv(self.norm1(x_BQD)).unflatten(-1, (3 * self.heads, -1))
        turned = rotate(qkv[:, :, : 2 * self.heads], turn).transpose(1, 2)
        return turned[:, : self.heads], turned[:, self.heads :], qkv[:, :, 2 * self.heads :].transpose(1, 2)

    def finish(self, x_BQD: Tensor, read_BQD: Tensor) -> Tensor:
        """Return what goes on to the next block [B, Q, D]."""
        x_BQD = x_BQD + self.out(read_BQD)
        y_BQD: Tensor = x_BQD + self.down(F.gelu(self.up(self.norm2(x_BQD)), approximate="tanh"))
        return y_BQD


class _Order(NamedTuple):
    """How the tokens of a sequence stand to each other.

    Attributes:
        age_BT: int64, frames of the episode before each frame; [1, T] where all rows are alike.
        positions_XN: int64, X = B or 1: place of each token in its episode.
        mask: bool [X, 1, N, N], or None: plainly causal.
    """

    age_BT: Tensor
    positions_XN: Tensor
    mask: Tensor | None

    @classmethod
    def of(cls, first_BT: Tensor, shape: Shape, own_PP: Tensor) -> _Order:
        """Return the order of sequences in which episodes begin where `first_BT` says.

        Args:
            first_BT: bool.
            shape: Of the core.
            own_PP: bool, which tokens of its own frame each token sees.
        """
        num_steps, device = first_BT.shape[1], first_BT.device
        step_T, place_P = torch.arange(num_steps, device=device), torch.arange(shape.tokens, device=device)
        # A compiler, or a GPU, must not look at the data, and masks what may be no more than causal.
        whole = num_steps == 1 or (looks(first_BT) and not bool(first_BT[:, 1:].any()))
        age_XT = step_T.unsqueeze(0) if whole else step_T - (step_T * first_BT).cummax(1).values
        positions_XN = (age_XT.unsqueeze(2) * shape.tokens + place_P).flatten(1)
        if whole and shape.causal and num_steps <= shape.frames:
            return cls(age_XT, positions_XN, None)
        ago_TT = step_T.unsqueeze(1) - step_T
        before_XTT = (ago_TT > 0) & (ago_TT < shape.frames) & (ago_TT <= age_XT.unsqueeze(2))
        # [X, T, P, T, P]: another frame is seen as a whole, the token's own as far as the shape says.
        mask = before_XTT[:, :, None, :, None] | ((ago_TT == 0)[:, None, :, None] & own_PP[None, :, None, :])
        size = num_steps * shape.tokens
        return cls(age_XT, positions_XN, mask.reshape(-1, 1, size, size))

    def memory(self, kept: list[tuple[Tensor, Tensor]], shape: Shape, num_rows: int) -> dict[str, Tensor]:
        """Return the memory after the sequence, of each layer's keys and values [B, N, D]."""
        last_X = self.age_BT[:, -1]
        last_B = last_X.expand(num_rows) if len(last_X) == 1 else last_X
        place_F = torch.arange(shape.frames, device=last_B.device)
        ago_BF = (last_B.unsqueeze(1) - place_F) % shape.frames
        num_steps = self.age_BT.shape[1]
        step_BF = (num_steps - 1 - ago_BF).clamp(min=0)
        gone_BF = ago_BF > last_B.unsqueeze(1)

        def ring(new_BND: Tensor) -> Tensor:
            frames_BTX = new_BND.float().reshape(num_rows, num_steps, -1)
            index = step_BF.unsqueeze(2).expand(-1, -1, frames_BTX.shape[2])
            ring_BFX = frames_BTX.gather(1, index).masked_fill(gone_BF.unsqueeze(2), 0)
            return ring_BFX.reshape(num_rows, shape.window, shape.width)

        return {
            KEYS: torch.stack([ring(key) for key, _ in kept], dim=1),
            VALUES: torch.stack([ring(value) for _, value in kept], dim=1),
            STEPS: last_B + 1,
            HELD: (last_B + 1).clamp(max=shape.frames),
        }
