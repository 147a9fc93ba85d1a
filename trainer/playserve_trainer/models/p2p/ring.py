"""Keys and values of a session: a ring for each layer, written in place, one pass a frame.

One pass at step t holds the action executed at t - 1 and the new tokens of t (`p2p.md` §4.2 b): its queries are the
8 actions of t - 1, then text, image, thinking and action_out of t. A layer that looks back over `history` steps keeps
R = history + 1 of them; step s lies in place s mod R, its first three tokens written at step s and its action at step
s + 1, when it is known. Columns of a layer's tensor [2, heads, columns, E] (keys, values):

    0..3                    the tokens of the present step, among them action_out, whose key nothing later sees
    4 + 11 * place + 0..10  text, image, thinking, and the 8 actions of a step

so that what a session of t steps sees is the first 4 + 11 * min(t, R) columns, and one view reads them without a copy.
Place t mod R holds step t - R, which the actions of t - 1 still see and the new tokens do not; after the pass the first
three tokens of t overwrite it. Keys are stored turned by their absolute positions; angles are exact at any step, so
only the differences matter, for as long as a session lasts.

:class:`RowRings` reads each row through a view, as a CPU does it fastest; :class:`BatchRings` gathers rows with fixed
shapes and looks at no data, so that it can be captured in a CUDA graph or compiled. Shape legend: B rows, A attention
heads, Q = 8 + 4 queries (H + 4), E head size, C columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from playserve_trainer.models.p2p.tokens import ACTION_OUT, NEW_TOKENS
from playserve_trainer.models.policy import Memory, Ring, StateTensor

__all__ = ["BatchRings", "Rings", "RowRings", "columns", "make_rings", "pool_name", "ring_layout"]

_STEPS = "steps"

# Keys and values of another type are converted for so many bytes at a time: they are read again from the cache.
_CONVERT_BYTES = 4 << 20


def pool_name(layer: int) -> str:
    """Return the name of a layer's memory tensor."""
    return f"layer{layer:02}"


def columns(history: int, num_actions: int) -> int:
    """Return C of a layer."""
    return NEW_TOKENS + (history + 1) * (ACTION_OUT + num_actions)


def ring_layout(
    histories: Sequence[int], heads: int, head_size: int, num_actions: int, dtype: torch.dtype
) -> dict[str, StateTensor]:
    """Return the memory tensors of one slot."""
    size = ACTION_OUT + num_actions
    layout = {
        pool_name(layer): StateTensor(
            (2, heads, columns(history, num_actions), head_size),
            dtype,
            Ring(axis=2, places=history + 1, size=size, head=NEW_TOKENS),
        )
        for layer, history in enumerate(histories)
    }
    return {**layout, _STEPS: StateTensor((), torch.int64)}


class Rings(Protocol):
    """The memory of B rows during one step."""

    @property
    def steps_B(self) -> Tensor:
        """int64, steps that the episode had before this one."""

    def attend(self, layer: int, query_BAQE: Tensor, key_BAQE: Tensor, value_BAQE: Tensor, rows: slice) -> Tensor:
        """Store a layer's keys and values of this pass, and return what the queries `rows` read [B, A, Q', E]."""

    def close(self) -> None:
        """Count the step."""


def make_rings(memory: Memory, histories: Sequence[int], num_actions: int) -> Rings:
    """Return the rings that are fastest where the memory is."""
    if memory.slots_B.device.type == "cpu" and not torch.compiler.is_compiling():
        return RowRings(memory, histories, num_actions)
    return BatchRings(memory, histories, num_actions)


class RowRings:
    """Row by row, each through a view of its slot. It looks at steps and slots, so a CPU's only.

    A reset empties the slot: no later export shows what an earlier session left.
    """

    def __init__(self, memory: Memory, histories: Sequence[int], num_actions: int) -> None:
        self._memory, self._histories, self._actions = memory, histories, num_actions
        self.steps_B = memory.read(_STEPS)
        self._rows = list(zip(memory.slots_B.tolist(), self.steps_B.tolist(), strict=True))
        if bool(memory.reset_B.any()):
            reset = memory.slots_B[memory.reset_B]
            for layer in range(len(histories)):
                memory.pools[pool_name(layer)].index_fill_(0, reset, 0)
        self._masks: dict[tuple[int, int], Tensor] = {}
        self._converter = _Converter()

    def attend(self, layer: int, query_BAQE: Tensor, key_BAQE: Tensor, value_BAQE: Tensor, rows: slice) -> Tensor:
        """See :class:`Rings`."""
        pool, ring = self._memory.pools[pool_name(layer)], self._histories[layer] + 1
        size, num = ACTION_OUT + self._actions, self._actions
        new_B2AQE = torch.stack([key_BAQE, value_BAQE], dim=1).to(pool.dtype)
        read = torch.empty_like(query_BAQE[:, :, rows])
        for i, (slot, step) in enumerate(self._rows):
            kept, new = pool[slot], new_B2AQE[i]
            if step:
                begin = NEW_TOKENS + (step - 1) % ring * size + ACTION_OUT
                kept[:, :, begin : begin + num] = new[:, :, :num]
            kept[:, :, :NEW_TOKENS] = new[:, :, num:]
            seen = kept[:, :, : NEW_TOKENS + size * min(step, ring)]
            mask = self._mask(step, ring, query_BAQE.dtype)
            read[i] = self._converter.attend(query_BAQE[i, :, rows], seen, mask[rows])
            begin = NEW_TOKENS + step % ring * size
            kept[:, :, begin : begin + ACTION_OUT] = new[:, :, num : num + ACTION_OUT]
        return read

    def close(self) -> None:
        """See :class:`Rings`."""
        self._memory.write(_STEPS, self.steps_B + 1)

    def _mask(self, step: int, ring: int, dtype: torch.dtype) -> Tensor:
        """Return what is added to the scores [Q, seen columns]."""
        found = self._masks.get((step, ring))
        if found is not None:
            return found
        num, size = self._actions, ACTION_OUT + self._actions
        mask = torch.zeros(num + NEW_TOKENS, NEW_TOKENS + size * min(step, ring), dtype=dtype)
        mask[:num, int(step == 0) : NEW_TOKENS] = -math.inf  # with nothing to see a softmax is no number
        mask[num : num + ACTION_OUT, ACTION_OUT] = -math.inf
        if step >= ring:
            begin = NEW_TOKENS + step % ring * size
            mask[num:, begin : begin + size] = -math.inf
        self._masks[step, ring] = mask
        return mask


class _Converter:
    """Attention over keys and values that may be of another type: some heads at a time are converted, in one place.

    What was converted is read again from the processor's cache, and one buffer serves a whole step: fresh memory for
    each layer costs ten times what the conversion does.
    """

    def __init__(self) -> None:
        self._buffer: Tensor | None = None

    def attend(self, query_AQE: Tensor, kept_2ACE: Tensor, mask_QC: Tensor) -> Tensor:
        """Return what the queries read [A, Q, E]."""
        dtype = query_AQE.dtype
        if kept_2ACE.dtype == dtype:
            key, value = kept_2ACE.unsqueeze(1)
            return F.scaled_dot_product_attention(query_AQE.unsqueeze(0), key, value, attn_mask=mask_QC)[0]
        some = max(1, _CONVERT_BYTES // (kept_2ACE[:, 0].numel() * query_AQE.element_size()))
        read = torch.empty_like(query_AQE)
        for first in range(0, len(query_AQE), some):
            key, value = self._convert(kept_2ACE[:, first : first + some], dtype).unsqueeze(1)
            query = query_AQE[first : first + some].unsqueeze(0)
            read[first : first + some] = F.scaled_dot_product_attention(query, key, value, attn_mask=mask_QC)[0]
        return read

    def _convert(self, some: Tensor, dtype: torch.dtype) -> Tensor:
        if self._buffer is None or self._buffer.numel() < some.numel() or self._buffer.dtype != dtype:
            self._buffer = torch.empty(some.numel(), dtype=dtype)
        return self._buffer[: some.numel()].view(some.shape).copy_(some)


class BatchRings:
    """All rows at once, with fixed shapes: rows are gathered, which reads and writes them once more.

    A reset slot is not emptied but masked: emptying would write whole slots at each step.
    """

    def __init__(self, memory: Memory, histories: Sequence[int], num_actions: int) -> None:
        self._memory, self._histories, self._actions = memory, histories, num_actions
        self.steps_B = memory.read(_STEPS)
        self._by_history: dict[int, tuple[Tensor, Tensor, Tensor, Tensor]] = {}

    def attend(self, layer: int, query_BAQE: Tensor, key_BAQE: Tensor, value_BAQE: Tensor, rows: slice) -> Tensor:
        """See :class:`Rings`."""
        history = self._histories[layer]
        if history not in self._by_history:
            self._by_history[history] = self._places(history)
        before_BQ, after_BX, held_BC, mask_BQC = self._by_history[history]
        pool, slots_B = self._memory.pools[pool_name(layer)].flatten(1, 2), self._memory.slots_B
        new_BXQE = torch.cat([key_BAQE, value_BAQE], dim=1).to(pool.dtype)
        head_X = torch.arange(pool.shape[1], device=pool.device)
        where = (slots_B.view(-1, 1, 1), head_X.view(1, -1, 1))
        pool[(*where, before_BQ.unsqueeze(1))] = new_BXQE
        seen_BXCE = pool.index_select(0, slots_B).masked_fill_(~held_BC[:, None, :, None], 0)
        key, value = seen_BXCE.to(query_BAQE.dtype).chunk(2, dim=1)
        read = F.scaled_dot_product_attention(
            query_BAQE[:, :, rows], key, value, attn_mask=mask_BQC[:, rows].unsqueeze(1)
        )
        kept = slice(self._actions, self._actions + ACTION_OUT)
        pool[(*where, after_BX.unsqueeze(1))] = new_BXQE[:, :, kept]
        return read

    def close(self) -> None:
        """See :class:`Rings`."""
        self._memory.write(_STEPS, self.steps_B + 1)

    def _places(self, history: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return columns that are written before and after attention, columns that hold something, and who sees what.

        The action of a step before the first lands in the ring's last place, and is overwritten before it counts.
        """
        num, size, ring, device = self._actions, ACTION_OUT + self._actions, history + 1, self.steps_B.device
        steps_B1 = self.steps_B.unsqueeze(1)
        action_BH = NEW_TOKENS + (steps_B1 - 1) % ring * size + ACTION_OUT + torch.arange(num, device=device)
        now = torch.arange(NEW_TOKENS, device=device)
        before_BQ = torch.cat([action_BH, now.expand(len(steps_B1), -1)], dim=1)
        after_BX = NEW_TOKENS + steps_B1 % ring * size + now[:ACTION_OUT]
        place_C = (torch.arange(NEW_TOKENS, columns(history, num), device=device) - NEW_TOKENS) // size
        held_BC = place_C < steps_B1
        recent_BC = held_BC & (place_C != steps_B1 % ring)
        first_B1 = steps_B1 == 0
        query, column = torch.arange(num + NEW_TOKENS, device=device).unsqueeze(1), now
        is_new = query >= num
        own_QX = is_new & ((column < ACTION_OUT) | (query == num + ACTION_OUT))
        own_BQX = own_QX | (first_B1.unsqueeze(2) & ~is_new & (column == 0))
        ring_BQC = torch.where(is_new, recent_BC.unsqueeze(1), held_BC.unsqueeze(1))
        held = torch.cat([torch.ones_like(steps_B1, dtype=torch.bool).expand(-1, NEW_TOKENS), held_BC], dim=1)
        return before_BQ, after_BX, held, torch.cat([own_BQX, ring_BQC], dim=2)
