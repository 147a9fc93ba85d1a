"""The transformer core: causal blocks over a sliding window, whose keys and values are the memory.

A slot holds the last `context` keys and values of each layer in a ring: the step at position p of an episode lies at
p mod `context`. Nothing grows, and a step costs the same whenever it comes.

Shape legend: B rows, T steps, W window (context), D width, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from playserve_trainer.models.nethack.attention import SlidingAttention
from playserve_trainer.models.nethack.config import NetHackConfig
from playserve_trainer.models.policy import Memory, Ring, StateTensor

__all__ = ["TransformerCore"]

_EXPANSION = 4  # of the feed-forward layers

# (layer, "keys" or "values", new [B, D]) -> all [B, W, D]
_Rings = Callable[[int, str, Tensor], Tensor]


class TransformerCore(nn.Module):
    """Pre-norm blocks; no gradient flows into what came before the sequence."""

    def __init__(self, config: NetHackConfig) -> None:
        super().__init__()
        self.width, self.layers, self.context = config.width, config.layers, config.context
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)

    def _blocks(self) -> list[_Block]:
        return [block for block in self.blocks if isinstance(block, _Block)]

    def layout(self) -> dict[str, StateTensor]:
        """Return the memory tensors of one slot."""
        ring = StateTensor((self.layers, self.context, self.width), torch.float32, Ring(axis=1, places=self.context))
        return {"keys": ring, "values": ring, "steps": StateTensor((), torch.int64)}

    def forward(
        self, x_BTD: Tensor, first_BT: Tensor, state: Mapping[str, Tensor] | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return vectors [B, T, D] and the state afterwards; the memory is empty where `first_BT` is True."""
        if first_BT.shape[1] == 1:
            return self._forward_one(x_BTD, first_BT, state)
        steps_B = torch.zeros_like(first_BT[:, 0], dtype=torch.int64) if state is None else state["steps"]
        window = _Window(steps_B, first_BT, self.context, known_past=state is not None)
        rings: dict[str, list[Tensor]] = {"keys": [], "values": []}
        for layer, block in enumerate(self._blocks()):
            query_BTD, *new = block.project(x_BTD)
            whole = []
            for (name, layers), new_BTD in zip(rings.items(), new, strict=True):
                past = None if state is None else state[name][:, layer].to(new_BTD.dtype)
                whole.append(window.join(past, new_BTD))
                layers.append(window.ring(whole[-1].detach()))
            bias = block.attention.bias_in_order(query_BTD.shape[1], whole[0].shape[1], window.mask_BTJ)
            x_BTD = block.finish(x_BTD, block.attention(query_BTD, *whole, bias))
        after = {name: torch.stack(layers, dim=1).float() for name, layers in rings.items()}
        y_BTD: Tensor = self.norm(x_BTD)
        return y_BTD, {**after, "steps": window.steps_after_B}

    def step(self, x_BD: Tensor, memory: Memory) -> Tensor:
        """Advance the slots by one step; return vectors [B, D]."""
        steps_B = memory.read("steps")
        for name in ("keys", "values"):
            _clear(memory, name)

        def rings(layer: int, name: str, new_BD: Tensor) -> Tensor:
            pool = memory.pools[name]
            pool[memory.slots_B, layer, steps_B % self.context] = new_BD.to(pool.dtype)
            return pool[:, layer].index_select(0, memory.slots_B).to(new_BD.dtype)

        y_BD = self._advance(x_BD, steps_B, rings)
        memory.write("steps", steps_B + 1)
        return y_BD

    def _forward_one(
        self, x_B1D: Tensor, first_B1: Tensor, state: Mapping[str, Tensor] | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Forward over one step, computed as :meth:`step` does."""
        now: dict[str, Tensor] = {}
        for name, tensor in self.layout().items():
            rows = x_B1D.new_zeros(len(x_B1D), *tensor.shape, dtype=tensor.dtype) if state is None else state[name]
            now[name] = rows.masked_fill(first_B1.view(-1, *([1] * len(tensor.shape))), 0)
        row_B = torch.arange(len(x_B1D), device=x_B1D.device)
        place_B = now["steps"] % self.context

        def rings(layer: int, name: str, new_BD: Tensor) -> Tensor:
            ring_BWD = now[name][:, layer].to(new_BD.dtype).index_put((row_B, place_B), new_BD)
            now[name] = now[name].index_put((row_B, torch.tensor(layer), place_B), new_BD.detach().float())
            return ring_BWD

        y_BD = self._advance(x_B1D.squeeze(1), now["steps"], rings)
        return y_BD.unsqueeze(1), {**now, "steps": now["steps"] + 1}

    def _advance(self, x_BD: Tensor, steps_B: Tensor, rings: _Rings) -> Tensor:
        """Return vectors [B, D]; `rings` stores a layer's new key or value, and returns all of them [B, W, D]."""
        place_W = torch.arange(self.context, device=x_BD.device)
        distance_BW = (steps_B.unsqueeze(1) - place_W) % self.context
        distance_BW = distance_BW.masked_fill(distance_BW > steps_B.unsqueeze(1), self.context)
        for layer, block in enumerate(self._blocks()):
            query_BD, key_BD, value_BD = block.project(x_BD)
            key_BWD, value_BWD = rings(layer, "keys", key_BD), rings(layer, "values", value_BD)
            bias = block.attention.bias_of_ring(distance_BW)
            read_B1D = block.attention(query_BD.unsqueeze(1), key_BWD, value_BWD, bias)
            x_BD = block.finish(x_BD, read_B1D.squeeze(1))
        y_BD: Tensor = self.norm(x_BD)
        return y_BD


class _Block(nn.Module):
    """One pre-norm block, without what remembers."""

    def __init__(self, config: NetHackConfig) -> None:
        super().__init__()
        width = config.width
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.attention = SlidingAttention(width, config.num_heads, config.context)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, _EXPANSION * width)
        self.down = nn.Linear(_EXPANSION * width, width)
        with torch.no_grad():
            # At first a block adds little to what comes in.
            for linear in (self.out, self.down):
                linear.weight.mul_((2 * config.layers) ** -0.5)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values [..., D]."""
        query, key, value = self.qkv(self.norm1(x)).chunk(3, dim=-1)
        return query, key, value

    def finish(self, x: Tensor, read: Tensor) -> Tensor:
        """Return what goes on to the next block [..., D]."""
        x = x + self.out(read)
        y: Tensor = x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))
        return y


class _Window:
    """How the steps of a sequence and the ring before it belong together.

    Args:
        steps_B: int64, how many steps of the episode came before.
        first_BT: bool, steps that begin an episode.
        context: W.
        known_past: Whether there is a ring at all.

    Attributes:
        mask_BTJ: bool, which of the W + T steps belong to each step's episode; None: all do.
        steps_after_B: int64.
    """

    def __init__(self, steps_B: Tensor, first_BT: Tensor, context: int, *, known_past: bool) -> None:
        num_steps = first_BT.shape[1]
        self.context = context
        device = first_BT.device
        segment_BT = first_BT.cumsum(1)
        step_T = torch.arange(1, num_steps + 1, device=device)
        # Steps since the last begin, the present one included; or since before the sequence.
        begin_BT = (step_T * first_BT).cummax(1).values
        age_BT = torch.where(segment_BT > 0, step_T - begin_BT + 1, steps_B.unsqueeze(1) + step_T)
        self.steps_after_B = age_BT[:, -1]
        self.mask_BTJ: Tensor | None = None
        place_W = torch.arange(context, device=device)
        alike_BTT = segment_BT.unsqueeze(2) == segment_BT.unsqueeze(1)
        if known_past:
            filled_BW = place_W >= (context - steps_B).unsqueeze(1)
            past_BTW = filled_BW.unsqueeze(1) & (segment_BT == 0).unsqueeze(2)
            alike_BTT = torch.cat([past_BTW, alike_BTT], dim=2)
        # Mostly all steps belong together, and one bias serves all rows. (Only a CPU can look without waiting.)
        if device.type != "cpu" or not bool(alike_BTT.all()):
            self.mask_BTJ = alike_BTT
        self._in_order_BW = (place_W + steps_B.unsqueeze(1)) % context
        after_B1 = self.steps_after_B.unsqueeze(1)
        self._to_ring_BW = (place_W - after_B1) % context
        self._in_ring_BW = self._to_ring_BW >= context - after_B1

    def join(self, ring_BWD: Tensor | None, new_BTD: Tensor) -> Tensor:
        """Return the ring in order of time, and behind it the new steps: [B, W + T, D]."""
        if ring_BWD is None:
            return new_BTD
        index_BWD = self._in_order_BW.unsqueeze(2).expand(-1, -1, ring_BWD.shape[2])
        return torch.cat([ring_BWD.gather(1, index_BWD), new_BTD], dim=1)

    def ring(self, whole_BJD: Tensor) -> Tensor:
        """Return the ring [B, W, D] after the sequence; zeros where the episode is younger than W."""
        last_BWD = whole_BJD[:, -self.context :]
        last_BWD = F.pad(last_BWD, (0, 0, self.context - last_BWD.shape[1], 0))
        index_BWD = self._to_ring_BW.unsqueeze(2).expand_as(last_BWD)
        return last_BWD.gather(1, index_BWD).masked_fill(~self._in_ring_BW.unsqueeze(2), 0)


def _clear(memory: Memory, name: str) -> None:
    """Empty the slots of the rows that are reset: no step reads what an earlier session left."""
    if memory.reset_B.device.type == "cpu":
        memory.pools[name].index_fill_(0, memory.slots_B[memory.reset_B], 0)
    else:
        memory.write(name, memory.read(name))  # does not look at the data, as CUDA graphs want it
