"""Drawing actions: a counter-based generator and the sampler that policies call.

Randomness is a pure function of (seed, counter, head), so neither batch mates, nor the order of batches, nor a move to
another server can change an action. A counter is the number of frames that entered the memory before this one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["BatchSampler", "StaticSampler", "derive_seed", "uniforms"]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_HEAD = np.uint64(0xD1342543DE82EF95)
_S30, _S27, _S31, _S11 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(11)


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finalizer of SplitMix64 (Steele, Lea and Flood 2014): a bijection of 64-bit integers that mixes all bits."""
    x = (x ^ (x >> _S30)) * _MIX_1
    x = (x ^ (x >> _S27)) * _MIX_2
    return x ^ (x >> _S31)


def uniforms(seeds: Sequence[int], counters: Sequence[int], heads: int) -> npt.NDArray[np.float64]:
    """Return float64 [B, heads] in [0, 1), a pure function of each row's (seed, counter) and the head.

    Args:
        seeds: B integers, taken modulo 2**64.
        counters: B integers from 0.
        heads: Number of draws a row.
    """
    seed = np.array([s & 0xFFFFFFFFFFFFFFFF for s in seeds], dtype=np.uint64)
    counter = np.array(counters, dtype=np.uint64)
    head = np.arange(heads, dtype=np.uint64)
    # Hash the seed first: neighbouring seeds must not give shifted copies of one stream.
    row = _mix(_mix(seed + _GOLDEN) + counter * _GOLDEN)
    bits = _mix(row[:, None] + (head * _HEAD)[None, :])
    return (bits >> _S11).astype(np.float64) * 2.0**-53


def _invert(scaled_BA: Tensor, u_B1: Tensor) -> Tensor:
    """Return int64 [B]: where the cumulative distribution of softmax(scaled) passes u."""
    cdf_BA = torch.softmax(scaled_BA, -1).cumsum_(-1)
    # Scaling by the last entry rather than 1 keeps rounding from ever drawing past the end.
    target_B1 = u_B1 * cdf_BA[:, -1:]
    return (cdf_BA <= target_B1).sum(-1).clamp_(max=scaled_BA.shape[-1] - 1)


def _log_prob(scaled_BA: Tensor, action_B: Tensor) -> Tensor:
    """Return float32 [B]: the log-probability of each row's action."""
    return torch.log_softmax(scaled_BA, -1).gather(-1, action_B[:, None])[:, 0].float()


def _in_order(log_probs: Mapping[int, Tensor], heads: int | None) -> list[Tensor]:
    return [log_probs[head] for head in sorted(log_probs) if heads is None or head < heads]


class BatchSampler:
    """Draws the actions of one batch; a `playserve_trainer.models.policy.Sampler`.

    Args:
        seeds: B seeds, as :func:`uniforms` takes them; nothing is drawn until the policy asks.
        counters: B counters.
        heads: H, number of draws a row.
        temperatures: B temperatures, more than 0; ignored where argmax.
        argmax: B flags: take the most probable action.
        device: Where the logits are.
        want_log_prob: Whether to keep log-probabilities.
    """

    __slots__ = (
        "_all_argmax", "_argmax_B", "_counters", "_device", "_heads", "_inv_temp_B1", "_log_probs", "_seeds", "_u_BH",
        "_want",
    )  # fmt: skip

    def __init__(
        self,
        seeds: Sequence[int],
        counters: Sequence[int],
        heads: int,
        temperatures: Sequence[float],
        argmax: Sequence[bool],
        device: torch.device,
        want_log_prob: bool,
    ) -> None:
        self._all_argmax = all(argmax)
        self._seeds, self._counters, self._heads, self._device = seeds, counters, heads, device
        self._u_BH: Tensor | None = None
        self._argmax_B = torch.tensor(argmax, device=device) if any(argmax) else None
        # Plain sampling at temperature 1 is the common case and needs no division.
        self._inv_temp_B1 = (
            None
            if all(t == 1.0 for t in temperatures)
            else torch.tensor([[1.0 / t] for t in temperatures], device=device, dtype=torch.float64)
        )
        self._want = want_log_prob
        self._log_probs: dict[int, Tensor] = {}

    def __call__(self, logits_BA: Tensor, head: int) -> Tensor:
        """Return int64 [B], drawn from softmax(logits / temperature) by inversion of the cumulative distribution."""
        scaled_BA = logits_BA.double()
        if self._inv_temp_B1 is not None:
            scaled_BA = scaled_BA * self._inv_temp_B1
        if self._all_argmax:
            action_B = logits_BA.argmax(-1)
        else:
            if self._u_BH is None:
                self._u_BH = torch.from_numpy(uniforms(self._seeds, self._counters, self._heads)).to(self._device)
            action_B = _invert(scaled_BA, self._u_BH[:, head : head + 1])
            if self._argmax_B is not None:
                action_B = torch.where(self._argmax_B, logits_BA.argmax(-1), action_B)
        if self._want:
            self._log_probs[head] = _log_prob(scaled_BA, action_B)
        return action_B

    def log_probs(self, heads: int | None = None) -> npt.NDArray[np.float32] | None:
        """Return float32 [B, heads drawn] in the order of the heads, or None when they were not wanted.

        Args:
            heads: Leave out those from here on: a world draws one more where an episode of some row begins.
        """
        found = _in_order(self._log_probs, heads)
        if not found:
            return None
        result: npt.NDArray[np.float32] = torch.stack(found, -1).cpu().numpy()
        return result


class StaticSampler:
    """Draws what :class:`BatchSampler` draws, by the same arithmetic, from tensors alone.

    Nothing in it depends on values that Python sees, so that it can be captured in a CUDA graph or compiled; the
    uniforms are still :func:`uniforms` of seeds and counters, computed on the host.

    Args:
        u_BH: float64 [B, H] uniforms.
        inv_temp_B1: float64 [B, 1], 1 / temperature.
        argmax_B: bool [B]: take the most probable action.
    """

    __slots__ = ("_argmax_B", "_inv_temp_B1", "_log_probs", "_u_BH")

    def __init__(self, u_BH: Tensor, inv_temp_B1: Tensor, argmax_B: Tensor) -> None:
        self._u_BH, self._inv_temp_B1, self._argmax_B = u_BH, inv_temp_B1, argmax_B
        self._log_probs: dict[int, Tensor] = {}

    def __call__(self, logits_BA: Tensor, head: int) -> Tensor:
        """Return int64 [B], one action a row."""
        scaled_BA = logits_BA.double() * self._inv_temp_B1
        drawn_B = _invert(scaled_BA, self._u_BH[:, head : head + 1])
        action_B = torch.where(self._argmax_B, logits_BA.argmax(-1), drawn_B)
        self._log_probs[head] = _log_prob(scaled_BA, action_B)
        return action_B

    def log_probs_BH(self, heads: int | None = None) -> Tensor | None:
        """Return float32 [B, heads drawn], or None when nothing was drawn; see :meth:`BatchSampler.log_probs`."""
        found = _in_order(self._log_probs, heads)
        return torch.stack(found, -1) if found else None


def derive_seed(seed: int, episode_id: int) -> int:
    """Return the seed of an episode that was given none, from its stream's seed; below 2**63."""
    mixed = _mix(
        np.array([(seed & 0xFFFFFFFFFFFFFFFF) ^ ((episode_id * int(_GOLDEN)) & 0xFFFFFFFFFFFFFFFF)], np.uint64)
    )
    return int(mixed[0]) >> 1
