"""What turns the backbone's answer, one vector, into the vectors that predict the tokens of an action.

:class:`ActionDecoder` is Open P2P's: a small causal transformer, token by token. A learnt sink stands before its keys
and values: neither normalised nor turned, visible to all positions. :class:`DirectHeads` is the control without a
transformer. Shape legend: M actions, H heads of an action (positions), D width, A attention heads, E = D / A.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from playserve_trainer.models.p2p.blocks import Block, RMSNorm, merge_heads
from playserve_trainer.models.p2p.config import P2PConfig
from playserve_trainer.models.p2p.rotary import Rotation, rotation

__all__ = ["ActionDecoder", "DecoderCache", "DirectHeads", "make_decoder"]

_POSITION_STD = 3.0
_SINK_STD = 0.05


class DecoderCache(NamedTuple):
    """What has been decoded so far.

    Attributes:
        layers: Keys and values [M, 2, A, 1 + H, E] of each layer, the sink first; of direct heads the vectors [M, H, D]
            of all tokens.
        rotations: Angles of the positions, or None.
    """

    layers: list[Tensor]
    rotations: Rotation | None = None


class ActionDecoder(nn.Module):
    """See the module's docstring."""

    def __init__(self, config: P2PConfig, num_actions: int) -> None:
        super().__init__()
        width, heads = config.width, config.decoder_heads
        self.num_actions, self.head_size = num_actions, width // heads
        self.input = nn.Linear(width, width)
        # One more than there are inputs: Open P2P's decoder also reads the last token, and throws away what comes out.
        self.position = nn.Parameter(torch.randn(num_actions + 1, width) * _POSITION_STD)
        self.layers = nn.ModuleList(
            _DecoderBlock(width, heads, config.hidden, config.dropout) for _ in range(config.decoder_layers)
        )

    def blocks(self) -> list[_DecoderBlock]:
        """Return the layers."""
        return [layer for layer in self.layers if isinstance(layer, _DecoderBlock)]

    def forward(self, out_MD: Tensor, embedded_MHD: Tensor) -> Tensor:
        """Return vectors [M, H, D], of which vector i predicts token i from the tokens before it.

        Args:
            out_MD: action_out, as the backbone left it.
            embedded_MHD: Embeddings of the action's tokens; the last is not read.
        """
        x = torch.cat([self._begin(out_MD).unsqueeze(1), embedded_MHD[:, :-1].float()], dim=1)
        x = x + self.position[: self.num_actions].float()
        by = self._rotations(x)
        for layer in self.layers:
            x = layer(x, by)
        return x

    def begin(self, out_MD: Tensor) -> tuple[Tensor, DecoderCache]:
        """Return the first input [M, D], and an empty cache."""
        layers = [block.cache(len(out_MD), self.num_actions) for block in self.blocks()]
        return self._begin(out_MD), DecoderCache(layers, self._rotations(out_MD))

    def advance(self, x_MND: Tensor, head: int, cache: DecoderCache) -> Tensor:
        """Return the vectors [M, N, D] that predict the tokens from `head` on.

        Args:
            x_MND: What :meth:`begin` gave, or embeddings of the tokens before.
            head: Which position the first of the N is, from 0.
            cache: Advanced in place; what it holds of these positions and later ones is overwritten.
        """
        its = slice(head, head + x_MND.shape[1])
        x = x_MND.float() + self.position[its].float()
        by = (cache.rotations or self._rotations(x_MND)).part(its)
        for block, keys_values in zip(self.blocks(), cache.layers, strict=True):
            x = block.advance(x, by, keys_values, 1 + head)
        return x

    def forward_flops(self, args: tuple[Any, ...], output: Any) -> int:
        """Return 0: layers count themselves."""
        return 0

    def _begin(self, out_MD: Tensor) -> Tensor:
        first: Tensor = self.input(out_MD.to(self.input.weight.dtype)).float()
        return first

    def _rotations(self, like: Tensor) -> Rotation:
        return rotation(torch.arange(self.num_actions, device=like.device), self.head_size)


class DirectHeads(nn.Module):
    """Every token predicted from action_out by itself, all at once: given it, tokens are drawn independently.

    Each head has a linear layer of its own in front of the one that its group shares: slots of one group want different
    keys. Called as :class:`ActionDecoder` is.
    """

    def __init__(self, config: P2PConfig, num_actions: int) -> None:
        super().__init__()
        self.num_actions = num_actions
        self.norm = RMSNorm(config.width)
        self.input = nn.Linear(config.width, num_actions * config.width)

    def forward(self, out_MD: Tensor, embedded_MHD: Tensor) -> Tensor:
        """Return vectors [M, H, D]; the action's tokens `embedded_MHD` are not read."""
        normed_MD = self.norm(out_MD.float()).to(self.input.weight.dtype)
        y_MHD: Tensor = self.input(normed_MD).float().unflatten(1, (self.num_actions, -1))
        return y_MHD

    def begin(self, out_MD: Tensor) -> tuple[Tensor, DecoderCache]:
        """Return `out_MD`, which nothing reads again, and the vectors of all tokens."""
        return out_MD, DecoderCache([self(out_MD, out_MD)])

    def advance(self, x_MND: Tensor, head: int, cache: DecoderCache) -> Tensor:
        """Return the vectors [M, N, D] that predict the tokens from `head` on; those before, `x_MND`, are not read."""
        return cache.layers[0][:, head : head + x_MND.shape[1]]


def make_decoder(config: P2PConfig, num_actions: int) -> ActionDecoder | DirectHeads:
    """Return the decoder that a config names."""
    return (DirectHeads if config.decoder == "direct" else ActionDecoder)(config, num_actions)


class _DecoderBlock(Block):
    """A block that attends causally, with a sink."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__(width, heads, hidden, dropout)
        self.sinks = nn.Parameter(torch.randn(2, heads, 1, width // heads) * _SINK_STD)

    def forward(self, x_MHD: Tensor, by: Rotation) -> Tensor:
        """Return [M, H, D]."""
        query, key, value = self.project(x_MHD, by)
        sink_key, sink_value = self.sinks.to(key.dtype).unsqueeze(1).expand(-1, len(x_MHD), -1, -1, -1)
        num = query.shape[2]
        seen = torch.ones(num, num + 1, dtype=torch.bool, device=query.device).tril(1)
        read = F.scaled_dot_product_attention(
            query, torch.cat([sink_key, key], 2), torch.cat([sink_value, value], 2), attn_mask=seen
        )
        return self.finish(x_MHD, merge_heads(read))

    def cache(self, num: int, num_actions: int) -> Tensor:
        """Return room for the keys and values of `num` actions, the sink in its place."""
        sinks = self.sinks
        cache = sinks.new_zeros(num, 2, self.heads, 1 + num_actions, sinks.shape[-1])
        cache[..., :1, :] = sinks
        return cache

    def advance(self, x_MND: Tensor, by: Rotation, cache: Tensor, place: int) -> Tensor:
        """Return [M, N, D]; the keys and values of the new positions go to `place` and after it."""
        query, key, value = self.project(x_MND, by)
        num = query.shape[2]
        cache[:, 0, :, place : place + num] = key
        cache[:, 1, :, place : place + num] = value
        seen = cache[..., : place + num, :].to(query.dtype)
        mask = None if num == 1 else torch.ones(num, place + num, dtype=torch.bool, device=query.device).tril(place)
        read = F.scaled_dot_product_attention(query, seen[:, 0], seen[:, 1], attn_mask=mask)
        return self.finish(x_MND, merge_heads(read))

    def forward_flops(self, args: tuple[Any, ...], output: Any) -> int:
        """Return the FLOPs of attention: position i reads the sink and i + 1 positions, in two products of size D."""
        num = output.shape[1]
        return int(output.shape[0] * 2 * 2 * self.width * sum(i + 2 for i in range(num)))
