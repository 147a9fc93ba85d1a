"""The codebook of a tokenizer: `vector-quantize-pytorch` learns it, by moving averages; looking up is ours.

Codes begin where k-means over the first batch puts them; one that hardly any vector is nearest to any more is put on a
vector of the batch, so that no code stays dead.

Shape legend: M frames, K tokens of a frame, V codes, D width of a code, X = M * K.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from playserve.errors import BadSettingError

__all__ = ["Codebook"]

# What a code that was put elsewhere counts as having been used, so that it is not moved again at once.
_FRESH_USE = 1.0


class Codebook(nn.Module):
    """V codes of width D, learnt without gradient.

    Args:
        codes: V.
        width: D.
        decay: Of the moving averages, a batch.
        dead_below: A code is dead whose moving average of uses in a batch is below this; 0: none is ever moved.
    """

    def __init__(self, codes: int, width: int, decay: float, dead_below: float) -> None:
        super().__init__()
        self.codes, self.width = codes, width
        self.learner: Any = _learner(codes, width, decay, dead_below)

    def forward(self, features_MKD: Tensor) -> tuple[Tensor, Tensor]:
        """Return each vector's code [M, K, D] and its index int64 [M, K].

        In training the gradient of the code goes straight to the vector, and the codes move.
        """
        if features_MKD.is_meta:  # FLOPs are counted on shapes: there is nothing to look up, or to learn from
            return features_MKD, torch.empty(features_MKD.shape[:2], dtype=torch.int64, device="meta")
        if self.training:
            codes_MKD, tokens_MK, _ = self.learner(features_MKD.float())
            return codes_MKD, tokens_MK
        tokens_MK = self.nearest(features_MKD)
        return self.vectors(tokens_MK), tokens_MK

    def nearest(self, features_MKD: Tensor) -> Tensor:
        """Return the index int64 [M, K] of the code nearest to each vector."""
        codes_VD = self.table
        flat_XD = features_MKD.reshape(-1, self.width).to(codes_VD.dtype)
        with torch.autocast(flat_XD.device.type, enabled=False):  # which of two codes is nearer takes all the digits
            # |x - e|^2 / 2 without |x|^2, which is the same for every code.
            half_V = 0.5 * codes_VD.square().sum(-1)
            distances_XV = torch.addmm(half_V, flat_XD, codes_VD.T, alpha=-1.0)
        return _argmin(distances_XV.detach()).view(features_MKD.shape[:2])

    def vectors(self, tokens_MK: Tensor) -> Tensor:
        """Return the codes [M, K, D] of some indices."""
        return nn.functional.embedding(tokens_MK, self.table)

    @property
    def table(self) -> Tensor:
        """The codes [V, D]."""
        return cast(Tensor, self.learner.codebook)

    def forward_flops(self, arguments: tuple[Any, ...], output: Any) -> int:
        """Return the FLOPs of one call: a product with every code for each vector (see playserve_trainer.flops)."""
        return 2 * int(arguments[0].numel()) * self.codes


def _argmin(distances_XV: Tensor) -> Tensor:
    """Return the index int64 [X] of the least of each row, the first of equals."""
    if distances_XV.device.type != "cpu":
        return distances_XV.argmin(-1)
    return torch.from_numpy(distances_XV.numpy().argmin(-1))  # torch takes six times as long on a CPU


def _learner(codes: int, width: int, decay: float, dead_below: float) -> Any:
    try:
        from vector_quantize_pytorch import VectorQuantize
    except ImportError as error:
        raise BadSettingError(
            'tokenizers with a codebook need vector-quantize-pytorch: pip install "playserve[train]" (or [serve])'
        ) from error
    learner = VectorQuantize(
        dim=width, codebook_size=codes, decay=decay, kmeans_init=True, threshold_ema_dead_code=dead_below,
        commitment_weight=0.0, rotation_trick=False,
    )  # fmt: skip
    learner._codebook.reset_cluster_size = _FRESH_USE  # no argument of the wrapper reaches it
    return learner
