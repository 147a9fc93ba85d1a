"""Rotary positions from exact angles: step 10,000,000 of a session is turned as exactly as step 10.

Angles are formed in float64, where position times frequency keeps all digits that matter; cosines and sines are then
float32. Pairs are neighbours (x[2i], x[2i+1]), as Open P2P's weights want them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Rotation", "rotate", "rotation"]

_BASE = 10_000.0


class Rotation(NamedTuple):
    """How vectors of heads are turned.

    Attributes:
        cos: Cosines, float32 [..., 1, E]: the 1 stands for attention heads.
        sin: Signed sines, as `cos`.
        turn: The same as complex64 [..., 1, E / 2], where a turn is one operator: on a CPU, and nothing is compiled.
    """

    cos: Tensor
    sin: Tensor
    turn: Tensor | None

    def part(self, index: slice | tuple[slice, ...]) -> Rotation:
        """Return the rotation of some of the positions."""
        return Rotation(self.cos[index], self.sin[index], None if self.turn is None else self.turn[index])


def rotation(positions: Tensor, head_size: int) -> Rotation:
    """Return the rotation of int64 positions [...] for heads of an even size E."""
    exponent = torch.arange(0, head_size, 2, dtype=torch.float64, device=positions.device) / -head_size
    angle = positions.to(torch.float64).unsqueeze(-1) * torch.pow(_BASE, exponent)
    cos, sin = angle.cos().float(), angle.sin().float()
    # Compilers know no complex numbers.
    plain = positions.device.type == "cpu" and not torch.compiler.is_compiling()
    return Rotation(
        torch.stack([cos, cos], -1).flatten(-2).unsqueeze(-2),
        torch.stack([-sin, sin], -1).flatten(-2).unsqueeze(-2),
        torch.complex(cos, sin).unsqueeze(-2) if plain else None,
    )


def rotate(x: Tensor, by: Rotation) -> Tensor:
    """Return float32 vectors [..., heads, E] turned by their positions."""
    if by.turn is not None:
        # One operator instead of three, of which one copies pair by pair.
        pairs = torch.view_as_complex(x.float().view(*x.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * by.turn).flatten(-2)
    swapped = x.view(*x.shape[:-1], -1, 2).flip(-1).flatten(-2)
    return torch.addcmul(x * by.cos, swapped, by.sin)
