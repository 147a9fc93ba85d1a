"""What a tokenizer's training looks at beside pixels: an adversary, which learns, and LPIPS, which does not.

After Esser et al. (VQGAN, 2012.09841): a discriminator of patches with the hinge loss, and LPIPS (1801.03924). Both
belong to the training alone: what they hold is neither counted in N, nor does it decide a token. Their weights are
fixed numbers here, where VQGAN balances them by gradients at the last layer.

Shape legend: M frames, C channels, H, W sides, F filters, Q patches of a frame.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from playserve.errors import BadSettingError

__all__ = ["PERCEPTUAL_NETS", "Adversary", "perceptual_distance"]

#: Nets that torchmetrics has linear weights of LPIPS for; the nets' own weights come with torchvision, from its hub.
PERCEPTUAL_NETS = ("alex", "vgg", "squeeze")

# What LPIPS takes is no smaller: its nets halve the image five times.
_LEAST_SIDE = 64


class Adversary(nn.Module):
    """Says of each patch whether it is of a real frame (above 0) or of a reconstruction.

    Args:
        channels: C.
        filters: F of the first convolution; twice and four times that behind it.
    """

    def __init__(self, channels: int, filters: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, filters, 4, 2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(filters, 2 * filters, 4, 2, padding=1),
            nn.GroupNorm(1, 2 * filters),  # no statistics of a batch, which processes would have to share
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * filters, 4 * filters, 3, padding=1),
            nn.GroupNorm(1, 4 * filters),
            nn.LeakyReLU(0.2),
            nn.Conv2d(4 * filters, 1, 3, padding=1),
        )

    def forward(self, pixels_MCHW: Tensor) -> Tensor:
        """Return [M, Q] for standardised pixels."""
        y_M1HW: Tensor = self.layers(pixels_MCHW)
        return y_M1HW.flatten(1)

    def losses(self, real_MCHW: Tensor, made_MCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tokenizer's loss [M] and the adversary's own [M], so that one backward pass serves both.

        The gradient of the first reaches what made the frames and not the adversary; that of the second the adversary
        alone.
        """
        fixed = {name: value.detach() for name, value in self.named_parameters()}
        fooled_M: Tensor = -functional_call(self, fixed, (made_MCHW,)).mean(1)
        right_MQ, wrong_MQ = self(real_MCHW), self(made_MCHW.detach())
        return fooled_M, (F.relu(1.0 - right_MQ) + F.relu(1.0 + wrong_MQ)).mean(1)


def perceptual_distance(net: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Return LPIPS of two batches of pixels [M, C, H, W] of 0 to 255, as [M]; the net moves to their device.

    Args:
        net: One of :data:`PERCEPTUAL_NETS`.

    Raises:
        BadSettingError: torchvision is not installed, or its weights cannot be had.
    """
    try:
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        judge: Any = LearnedPerceptualImagePatchSimilarity(net_type=net).net  # type: ignore[arg-type]  # one of them
    except (ModuleNotFoundError, OSError) as error:
        raise BadSettingError(
            f"the perceptual loss wants torchvision and the weights that it fetches for {net}: {error}"
        ) from error
    judge = judge.eval().requires_grad_(False)

    def distance(real_MCHW: Tensor, made_MCHW: Tensor) -> Tensor:
        pair = [_for_lpips(pixels_MCHW) for pixels_MCHW in (real_MCHW, made_MCHW)]
        found: Tensor = judge.to(real_MCHW.device)(*pair)
        return found.flatten()

    return distance


def _for_lpips(pixels_MCHW: Tensor) -> Tensor:
    """Return RGB of -1 to 1, large enough for the nets."""
    x_MCHW = (pixels_MCHW.float() / 127.5 - 1.0).clamp(-1.0, 1.0)
    if x_MCHW.shape[1] == 1:
        x_MCHW = x_MCHW.expand(-1, 3, -1, -1)
    scale = _LEAST_SIDE / min(x_MCHW.shape[-2:])
    return F.interpolate(x_MCHW, scale_factor=scale, mode="bilinear") if scale > 1 else x_MCHW
