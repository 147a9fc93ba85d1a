"""What turns a frame into one image token: EfficientNet-B0's first stages, or three convolutions, and a projection.

Frames are uint8 [X, S, S, 3] RGB. They become (u8 -> bfloat16) / 255 rounded in bfloat16, without ImageNet's mean and
deviation, as Open P2P trained on them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from playserve.errors import BadSettingError, DataLossError, NotFoundError
from playserve_trainer.models.p2p.config import P2PConfig

__all__ = ["Conv3Trunk", "EfficientNetTrunk", "ImageTokenizer", "load_torchvision_trunk", "pixels"]

# Stages of EfficientNet-B0's features[1:6]: channels, kernel, stride, expansion, repeats.
_STAGES = ((16, 3, 1, 1, 1), (24, 3, 2, 6, 2), (40, 5, 2, 6, 2), (80, 3, 2, 6, 3), (112, 5, 1, 6, 3))
_STEM = 32
# What the first of three convolutions takes pixels to be, 0 to 1: their mean, and the inverse of their deviation.
_MEAN_PIXEL, _SPREAD = 0.3, 4.0
_DROP_STEP = 0.0125  # stochastic depth: 0.2 over the 16 blocks of the whole net


def pixels(frames: Tensor, dtype: torch.dtype) -> Tensor:
    """Return [X, 3, S, S] in `dtype`, channels last in memory, from uint8 [X, S, S, 3]."""
    return (frames.permute(0, 3, 1, 2).to(torch.bfloat16) / 255).to(dtype)


class ImageTokenizer(nn.Module):
    """Frames to the contents of image tokens."""

    def __init__(self, config: P2PConfig) -> None:
        super().__init__()
        self.trunk: EfficientNetTrunk | Conv3Trunk
        self.trunk = EfficientNetTrunk() if config.trunk == "efficientnet_b0" else Conv3Trunk()
        side = self.trunk.side(config.frame_size)
        self.project = nn.Linear(self.trunk.channels * side * side, config.width)
        self.norm = nn.LayerNorm(config.width, eps=1e-5)
        if isinstance(self.trunk, Conv3Trunk):
            nn.init.normal_(self.project.weight, std=self.project.in_features**-0.5)
            nn.init.zeros_(self.project.bias)

    def forward(self, frames: Tensor) -> Tensor:
        """Return [X, D] of uint8 frames [X, S, S, 3]."""
        seen = self.trunk(pixels(frames, self.project.weight.dtype))
        token: Tensor = self.norm(self.project(seen.flatten(1)))
        return token


class Conv3Trunk(nn.Module):
    """Three convolutions, each with a ReLU: what a CPU can afford.

    They begin so that the token differs from frame to frame: the first one takes a mean brightness away and spreads
    what is left. With torch's own initial weights it hardly does (a deviation of 0.08 over the frames of a Doom
    recording instead of 0.3 to 0.4), and training finds it easier to repeat past actions than to look: after 110 steps
    on ViZDoom's basic the cross-entropy of keys that change was 0.51 so, and 0.15 and 0.31 from here (two draws).
    """

    channels = 64

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 8, stride=4, padding=2)
        self.conv2 = nn.Conv2d(32, 64, 4, stride=2, padding=1)
        self.conv3 = nn.Conv2d(64, 64, 3, stride=2, padding=1)
        for conv in (self.conv1, self.conv2, self.conv3):
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]  # it has one
        with torch.no_grad():
            self.conv1.weight *= _SPREAD
            self.conv1.bias.copy_(-_MEAN_PIXEL * self.conv1.weight.sum((1, 2, 3)))  # type: ignore[union-attr]

    @staticmethod
    def side(size: int) -> int:
        """Return the side of the output for frames of a size that 16 divides."""
        return size // 16

    def forward(self, x: Tensor) -> Tensor:
        """Return [X, 64, S / 16, S / 16] of [X, 3, S, S]."""
        for conv in (self.conv1, self.conv2, self.conv3):
            x = torch.relu(conv(x))
        return x


class EfficientNetTrunk(nn.Sequential):
    """EfficientNet-B0's features[0:6], with torchvision's names of weights."""

    channels = 112

    def __init__(self) -> None:
        stages: list[nn.Module] = [_norm_conv(3, _STEM, 3, stride=2)]
        channels, index = _STEM, 0
        for out, kernel, stride, expansion, repeats in _STAGES:
            blocks = []
            for repeat in range(repeats):
                blocks.append(_MBConv(channels, out, kernel, 1 if repeat else stride, expansion, _DROP_STEP * index))
                channels, index = out, index + 1
            stages.append(nn.Sequential(*blocks))
        super().__init__(*stages)
        self._initialise()

    @staticmethod
    def side(size: int) -> int:
        """Return the side of the output for frames of a size that 16 divides."""
        return size // 16

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


def _norm_conv(
    channels: int, out: int, kernel: int, *, stride: int = 1, groups: int = 1, activation: bool = True
) -> nn.Sequential:
    """Return a convolution without bias, BatchNorm, and SiLU."""
    layers: list[nn.Module] = [
        nn.Conv2d(channels, out, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out, eps=1e-5),
    ]
    return nn.Sequential(*layers, *([nn.SiLU(inplace=True)] if activation else []))


class _SqueezeExcite(nn.Module):
    """Scales each channel by what the mean of all channels says."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return [X, C, S, S]."""
        mean = x.mean((2, 3), keepdim=True)
        scale: Tensor = torch.sigmoid(self.fc2(nn.functional.silu(self.fc1(mean))))
        return x * scale


class _MBConv(nn.Module):
    """Expand, depthwise, squeeze-excite, project; the block is left out at random in training (stochastic depth)."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int, expansion: int, drop: float) -> None:
        super().__init__()
        inner = channels * expansion
        layers = [] if expansion == 1 else [_norm_conv(channels, inner, 1)]
        layers += [_norm_conv(inner, inner, kernel, stride=stride, groups=inner)]
        self.block = nn.Sequential(
            *layers, _SqueezeExcite(inner, max(1, channels // 4)), _norm_conv(inner, out, 1, activation=False)
        )
        self.drop = drop
        self.residual = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        """Return [X, out, S / stride, S / stride]."""
        y: Tensor = self.block(x)
        if not self.residual:
            return y
        if self.training and self.drop:
            kept = torch.rand(len(x), 1, 1, 1, device=x.device) >= self.drop
            y = y * kept.to(y.dtype) / (1 - self.drop)
        return x + y


def load_torchvision_trunk(tokenizer: ImageTokenizer, path: str | Path) -> tuple[str, ...]:
    """Load ImageNet weights of EfficientNet-B0 from a torchvision state dict file; return its keys that were not used.

    Raises:
        NotFoundError: There is no such file.
        DataLossError: It is no state dict of EfficientNet-B0.
        BadSettingError: The tokenizer has another trunk.
    """
    path = Path(path)
    if not isinstance(tokenizer.trunk, EfficientNetTrunk):
        raise BadSettingError(f"{path}: weights for EfficientNet-B0, but the policy sees with three convolutions")
    if not path.is_file():
        raise NotFoundError(f"{path}: no such file; torchvision's efficientnet_b0 state dict was wanted")
    try:
        loaded: Mapping[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise DataLossError(f"{path}: not a file of weights ({error})") from error
    wanted = tokenizer.trunk.state_dict()
    found = {
        key.removeprefix("features."): value for key, value in loaded.items() if key.removeprefix("features.") in wanted
    }
    missing = sorted(set(wanted) - set(found))
    odd = [key for key, value in found.items() if value.shape != wanted[key].shape]
    if missing or odd:
        raise DataLossError(f"{path}: lacks {missing[:4]} ({len(missing)} in all), other shapes {odd[:4]}")
    tokenizer.trunk.load_state_dict(found)
    used: Callable[[str], bool] = lambda key: key.removeprefix("features.") in found  # noqa: E731
    return tuple(sorted(key for key in loaded if not used(key)))
