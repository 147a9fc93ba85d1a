"""The transformer block of backbone and decoder: pre-norm, QK-norm over whole vectors, rotary positions, SwiGLU.

The residual stream and all norms are float32 whatever the weights are. Shape legend: B rows, N tokens, D width,
H heads, E = D / H.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from playserve_trainer.models.p2p.rotary import Rotation, rotate

__all__ = ["Block", "QKNorm", "RMSNorm", "SwiGLU", "merge_heads"]

_EPS = 1e-5


class RMSNorm(nn.Module):
    """x / rms(x) * scale, computed in float32; the result has the weights' type."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised vectors [..., D] of float32 ones."""
        scale = self.scale
        if scale.dtype == torch.float32:
            return F.rms_norm(x, scale.shape, scale, _EPS)
        return (F.rms_norm(x, scale.shape, None, _EPS) * scale).to(scale.dtype)

    def forward_flops(self, args: tuple[Any, ...], output: Any) -> int:
        """Return 0: see playserve_trainer.flops."""
        return 0


class QKNorm(nn.Module):
    """RMS norms of queries and keys as whole vectors, before they are split into heads; float32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2, width))

    def forward(self, qk: Tensor) -> Tensor:
        """Return the normalised queries and keys [..., 2, D]."""
        return F.rms_norm(qk.float(), self.scale.shape[1:], None, _EPS) * self.scale

    def forward_flops(self, args: tuple[Any, ...], output: Any) -> int:
        """Return 0: see playserve_trainer.flops."""
        return 0


class SwiGLU(nn.Module):
    """w2(silu(w1 x) * w3 x); the rows of w1 come before those of w3."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w13 = nn.Linear(width, 2 * hidden, bias=False)
        self.w2 = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., D]."""
        gate, up = self.w13(x).chunk(2, dim=-1)
        y: Tensor = self.w2(F.silu(gate) * up)
        return y


class Block(nn.Module):
    """One block without the attention itself: whoever owns keys and values attends between the two halves."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.width, self.heads = width, heads
        self.norm1 = RMSNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.qk_norm = QKNorm(width)
        self.out = nn.Linear(width, width, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.norm2 = RMSNorm(width)
        self.ffn = SwiGLU(width, hidden)

    def project(self, x_BND: Tensor, by: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values [B, H, N, E]; queries and keys are turned by their positions."""
        rows, tokens, width = x_BND.shape
        qkv = self.qkv(self.norm1(x_BND)).view(rows, tokens, 3, width)
        qk = self.qk_norm(qkv[:, :, :2]).reshape(rows, tokens, 2 * self.heads, -1)
        turned = rotate(qk, by).to(qkv.dtype).transpose(1, 2)
        value = qkv[:, :, 2].view(rows, tokens, self.heads, -1).transpose(1, 2)
        return turned[:, : self.heads], turned[:, self.heads :], value

    def finish(self, x: Tensor, read: Tensor) -> Tensor:
        """Return the residual stream after the block, float32, from what attention read, both [..., D]."""
        read = self.out(read)
        x = x + (self.dropout(read) if self.training else read)
        y: Tensor = x + self.ffn(self.norm2(x))
        return y


def merge_heads(read_BHNE: Tensor) -> Tensor:
    """Return [B, N, D]."""
    return read_BHNE.transpose(1, 2).flatten(2)
