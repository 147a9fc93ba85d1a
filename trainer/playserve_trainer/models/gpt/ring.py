"""Keys and values of a session: a ring of frames for each layer.

Frame t of an episode lies in place t mod F, its P tokens side by side. A step copies the slots of its rows once, the
tokens of the frame come in as many passes as it takes to draw them, each of which reads the copies, and at the end the
frame is written back. Keys are stored turned by their absolute positions (see :mod:`.core`). With fixed shapes, and
without looking at data where that is not a CPU's, a step can be captured in a CUDA graph.

Shape legend: B rows, F frames of the window, P tokens of a frame, W = F * P, Q some tokens of one frame, L layers,
A attention heads, E numbers of a head, D = A * E.
"""

from __future__ import annotations

import torch
from torch import Tensor

from playserve_trainer.models.gpt.shape import Shape
from playserve_trainer.models.p2p.rotary import Rotation, rotation
from playserve_trainer.models.policy import Memory, Ring, StateTensor

__all__ = ["HELD", "KEYS", "STEPS", "VALUES", "Slots", "looks", "slots_layout"]

KEYS, VALUES = "keys", "values"
#: int64, frames that the episode has had: where the next one lies.
STEPS = "steps"
#: int64, frames that the ring holds: more than STEPS where an episode began with several (a world's start).
HELD = "held"


def slots_layout(shape: Shape) -> dict[str, StateTensor]:
    """Return the memory tensors of one slot."""
    ring = Ring(axis=1, places=shape.frames, size=shape.tokens)
    row = StateTensor((shape.layers, shape.window, shape.width), torch.float32, ring)
    count = StateTensor((), torch.int64)
    return {KEYS: row, VALUES: row, STEPS: count, HELD: count}


def looks(tensor: Tensor) -> bool:
    """Return whether code may go by the contents of a tensor: on a CPU, where nothing is being compiled."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


class Slots:
    """The memory of B rows while the tokens of one frame come in; without gradients, since they are stored in place.

    Args:
        shape: Of the core.
        own_PP: bool, which tokens of its own frame each token sees.
        memory: The slots.
    """

    def __init__(self, shape: Shape, own_PP: Tensor, memory: Memory) -> None:
        self._shape, self._own_PP, self._memory = shape, own_PP, memory
        self.steps_B = memory.read(STEPS)
        self.held_B = memory.read(HELD)
        self._rows_B1 = torch.arange(len(self.steps_B), device=self.steps_B.device).unsqueeze(1)
        self._take({name: memory.read(name) for name in (KEYS, VALUES)})
        self.at(0, self.held_B)

    def at(self, back: int, held_B: Tensor) -> None:
        """Have the tokens that come be those of so many frames before the present one (0: the present one).

        Args:
            back: How many.
            held_B: int64, frames before that one which are in the rings.
        """
        self.held_B = held_B
        # Here, once for all tokens and layers of the frame: what each pass would compute anew.
        shape, frame_B1 = self._shape, (self.steps_B - back).unsqueeze(1)
        token_P = torch.arange(shape.tokens, device=frame_B1.device)
        self._columns_BP = frame_B1 % shape.frames * shape.tokens + token_P
        self._turn = rotation(frame_B1 * shape.tokens + token_P, shape.head_size)
        seen_BPW = self._visible(frame_B1)
        hidden = torch.zeros_like(seen_BPW, dtype=self._rings[VALUES].dtype)
        self._mask_B1PW = hidden.masked_fill_(~seen_BPW, -torch.inf).unsqueeze(1)

    def copy(self) -> dict[str, Tensor]:
        """Return the rings as they are."""
        return {name: ring.clone() for name, ring in self._rings.items()}

    def put_back(self, rings: dict[str, Tensor], rows_B: Tensor) -> None:
        """Have the rings of some rows (bool [B]) be again what :meth:`copy` returned."""
        rows_B111 = rows_B.view(-1, 1, 1, 1)
        self._take({name: torch.where(rows_B111, rings[name], ring) for name, ring in self._rings.items()})

    def turn(self, begin: int, num: int) -> Rotation:
        """Return how tokens of the frame are turned by their places in their episodes, [B, Q, 1, E]."""
        return self._turn.part((slice(None), slice(begin, begin + num)))

    def mask(self, begin: int, num: int) -> Tensor:
        """Return what tokens of the frame see, [B, 1, Q, W] to be added: 0, or minus infinity."""
        return self._mask_B1PW[:, :, begin : begin + num]

    def keep(self, layer: int, begin: int, key_BAQE: Tensor, value_BAQE: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer's keys and values of tokens of the frame; return all of them [B, A, W, E]."""
        columns_BQ = self._columns_BP[:, begin : begin + key_BAQE.shape[2]]
        found = []
        for name, new_BAQE in ((KEYS, key_BAQE), (VALUES, value_BAQE)):
            ring_BWD, ring_BAWE = self._layers[name][layer]
            ring_BWD[self._rows_B1, columns_BQ] = new_BAQE.transpose(1, 2).flatten(2).to(ring_BWD.dtype)
            found.append(ring_BAWE)
        return found[0], found[1]

    def close(self) -> None:
        """Write the frame into the slots, and count it."""
        memory = self._memory
        if looks(self.steps_B) and not bool(memory.reset_B.any()):
            columns_BP = self._columns_BP
            for name, ring in self._rings.items():
                new = ring[self._rows_B1, :, columns_BP]
                memory.pools[name][memory.slots_B.unsqueeze(1), :, columns_BP] = new.to(memory.pools[name].dtype)
        else:  # also what an earlier session left is overwritten
            for name, ring in self._rings.items():
                memory.write(name, ring)
        memory.write(STEPS, self.steps_B + 1)
        memory.write(HELD, (self.held_B + 1).clamp(max=self._shape.frames))

    def _take(self, rings: dict[str, Tensor]) -> None:
        """Have other rings: both views of each layer's, [B, W, D] and [B, A, W, E], are made once."""
        self._rings = rings
        self._layers = {name: [self._views(layer) for layer in ring.unbind(1)] for name, ring in rings.items()}

    def _views(self, layer_BWD: Tensor) -> tuple[Tensor, Tensor]:
        return layer_BWD, layer_BWD.view(*layer_BWD.shape[:2], self._shape.heads, -1).transpose(1, 2)

    def _visible(self, frame_B1: Tensor) -> Tensor:
        """Return which columns each token of a frame sees, bool [B, P, W]."""
        ago_BF = (frame_B1 - torch.arange(self._shape.frames, device=frame_B1.device)) % self._shape.frames
        past_BF = (ago_BF > 0) & (ago_BF <= self.held_B.unsqueeze(1))
        # [B, P, F, P]
        seen = past_BF[:, None, :, None] | ((ago_BF == 0)[:, None, :, None] & self._own_PP[None, :, None, :])
        return seen.flatten(2)
