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
    """Cosines and signed sines, float32 [..., 1, E]: the 1 stands for attention heads."""

    cos: Tensor
    sin: Tensor


def rotation(positions: Tensor, head_size: int) -> Rotation:
    """Return the rotation of int64 positions [...] for heads of an even size E."""
    exponent = torch.arange(0, head_size, 2, dtype=torch.float64, device=positions.device) / -head_size
    angle = positions.to(torch.float64).unsqueeze(-1) * torch.pow(_BASE, exponent)
    cos, sin = angle.cos().float(), angle.sin().float()
    return Rotation(
        torch.stack([cos, cos], -1).flatten(-2).unsqueeze(-2), torch.stack([-sin, sin], -1).flatten(-2).unsqueeze(-2)
    )


def rotate(x: Tensor, by: Rotation) -> Tensor:
    """Return float32 vectors [..., heads, E] turned by their positions."""
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        # One operator instead of three, of which one copies pair by pair; compilers know no complex numbers.
        turn = torch.complex(by.cos[..., 0::2], by.sin[..., 1::2])
        return torch.view_as_real(torch.view_as_complex(x.float().view(*x.shape[:-1], -1, 2)) * turn).flatten(-2)
    swapped = x.view(*x.shape[:-1], -1, 2).flip(-1).flatten(-2)
    return torch.addcmul(x * by.cos, swapped, by.sin)
