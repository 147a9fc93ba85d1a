"""Weights made for a CPU's steps: half-precision matrices computed in float32, and convolutions without BatchNorm.

A step of one session reads all weights and does little with each, so it takes as long as its bytes; matrices in float16
(11 bits of precision; bfloat16 has 8) halve them, and FBGEMM's kernels for few rows come near the memory's speed where
the usual ones stay at a third of it. The policy can play afterwards, and neither learn nor be saved.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

__all__ = ["HalfLinear", "can_pack", "computes_bfloat16", "fold_batch_norms", "pack_linears"]

_SMALLEST = 1 << 16  # parameters; packing gains nothing for less


def can_pack() -> bool:
    """Return whether this build of torch has the kernels (x86 with AVX2)."""
    return "fbgemm" in torch.backends.quantized.supported_engines


def computes_bfloat16() -> bool:
    """Return whether the CPU has instructions for bfloat16; others emulate it, ten times slower than float32."""
    able = torch.cpu.get_capabilities()
    return bool(able.get("amx_bf16") or able.get("avx512_bf16"))


class HalfLinear(nn.Module):
    """A linear layer with weights in float16, computed in float32 on a CPU."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach().float().contiguous()
        bias = None if linear.bias is None else linear.bias.detach().float()
        self._packed: Any = torch.ops.quantized.linear_prepack_fp16(weight, bias)
        self.weight = torch.empty(0)  # says the type of the computation

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., out] of float32 [..., in]."""
        y: Tensor = torch.ops.quantized.linear_dynamic_fp16(x.contiguous(), self._packed)
        return y


def pack_linears(module: nn.Module) -> None:
    """Replace the large linear layers inside a module."""
    for name, child in list(module.named_children()):
        if type(child) is nn.Linear and child.weight.numel() >= _SMALLEST:
            setattr(module, name, HalfLinear(child))
        else:
            pack_linears(child)


class _FoldedConv(nn.Module):
    """A convolution and the SiLU after it."""

    def __init__(self, conv: nn.Conv2d, *, activation: bool) -> None:
        super().__init__()
        self.conv, self.activation = conv, activation

    def forward(self, x: Tensor) -> Tensor:
        """Return [X, C, S, S]."""
        conv = self.conv
        if x.dtype == torch.float32 and x.device.type == "cpu" and torch._C._has_mkldnn:
            # One pass over the output instead of two; compiled models call the same operator.
            y: Tensor = torch.ops.mkldnn._convolution_pointwise(
                x, conv.weight, conv.bias, conv.padding, conv.stride, conv.dilation, conv.groups,
                "swish" if self.activation else "none", [], "",
            )  # fmt: skip
            return y
        y = conv(x)
        return F.silu(y, inplace=True) if self.activation else y


def fold_batch_norms(module: nn.Module) -> None:
    """Replace each (convolution, BatchNorm[, SiLU]) inside a module, in eval mode, by one convolution."""
    for name, child in list(module.named_children()):
        parts = list(child) if isinstance(child, nn.Sequential) else []
        if len(parts) >= 2 and isinstance(parts[0], nn.Conv2d) and isinstance(parts[1], nn.BatchNorm2d):
            conv = fuse_conv_bn_eval(parts[0], parts[1])
            setattr(module, name, _FoldedConv(conv, activation=len(parts) == 3))
        else:
            fold_batch_norms(child)
