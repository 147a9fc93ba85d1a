"""Exact FLOPs of a policy, layer by layer, with the convention named.

Convention (:data:`CONVENTION`): a multiply-add is 2; a convolution is counted at the size of its *output*; biases,
nonlinearities, normalisation, pooling, embedding look-ups and the additions of embedding bags are 0; attention over a
sliding window is counted at the full window, as after `context` steps of an episode; a backward pass costs twice the
forward pass, so training is 3 times it. Counting runs one forward pass on torch's meta device: shapes only, nothing
is computed.

Shape legend: B rows, T steps.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from playserve.errors import NotImplementedHereError
from playserve_trainer.models.nethack.attention import SlidingAttention
from playserve_trainer.models.policy import UNKNOWN_ACTION, Policy

__all__ = ["CONVENTION", "TUYLS_CONVENTION", "FlopCount", "count_flops", "flops_6nd", "tuyls_atari_flops"]

#: Name of this module's convention, for results.
CONVENTION = (
    "per layer, multiply-add 2, convolutions by output size, attention at the full window, biases, nonlinearities and "
    "embedding look-ups 0, training 3x forward"
)

#: Name of the convention of :func:`tuyls_atari_flops`, for results.
TUYLS_CONVENTION = "as published by Tuyls et al. 2023: per layer, convolutions by INPUT size (an error), training 3x"

# Layers that have parameters and count as nothing.
_FREE = (nn.Embedding, nn.EmbeddingBag, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)
_GATES = {nn.LSTMCell: 4, nn.GRUCell: 3, nn.RNNCell: 1}
_GATES_BY_MODE = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}


@dataclass(frozen=True, slots=True)
class FlopCount:
    """FLOPs of one sample (one step of one row) by layer.

    Attributes:
        by_layer: Forward FLOPs by module name, in order of first use.
        convention: How they were counted.
    """

    by_layer: Mapping[str, int]
    convention: str = CONVENTION

    @property
    def forward(self) -> int:
        """FLOPs of a forward pass."""
        return sum(self.by_layer.values())

    @property
    def training(self) -> int:
        """FLOPs of a forward and a backward pass."""
        return 3 * self.forward


def count_flops(policy: Policy, num_steps: int = 1, open_size: int | None = None) -> FlopCount:
    """Return the FLOPs of one sample, as the mean over a sequence of `num_steps`.

    Args:
        policy: Any policy; it is neither run nor changed.
        num_steps: Length of the sequence; it matters only where a step costs more the more came before it.
        open_size: Size taken for the open dimensions (-1) of the inputs that it is trained on.

    Raises:
        NotImplementedHereError: A layer with parameters is of a type that this module cannot count.
        ValueError: An input has an open dimension and `open_size` is None; or a layer's count is not a whole number
            per step.
    """
    # A copy whose tensors have shapes but no contents: the memo gives deepcopy the replacements.
    memo: dict[int, Any] = {}
    for parameter in policy.parameters():
        memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
    for buffer in policy.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    model = copy.deepcopy(policy, memo)

    counts: dict[str, int] = {}
    for name, module in model.named_modules():
        count = _counter(name, module)
        if count is not None:
            module.register_forward_hook(_hook(name, count, counts))
    with torch.no_grad():
        model(*_meta_arguments(model, num_steps, open_size))
    for name, total in counts.items():
        if total % num_steps:
            raise ValueError(f"layer {name!r} takes {total} FLOPs in {num_steps} steps, no whole number a step")
    return FlopCount({name: total // num_steps for name, total in counts.items()})


def flops_6nd(num_params: int, num_samples: int) -> int:
    """Return 6ND, the usual estimate of the training FLOPs of N parameters on D samples (tokens, frames)."""
    return 6 * num_params * num_samples


def tuyls_atari_flops(width: int, num_actions: int) -> int:
    """Return the training FLOPs of one sample of the `atari` family in the *published* convention.

    Tuyls et al.'s released code counts a convolution at the size of its input, 4.8 to 17 times too much. It is here so
    that results can be laid beside theirs; see :data:`TUYLS_CONVENTION`. Use :func:`count_flops` for everything else.
    """
    convolutions = ((84, 4, width, 8), (20, width, 2 * width, 4), (9, 2 * width, 2 * width, 3))
    forward = sum(2 * size**2 * c_out * kernel**2 * c_in for size, c_in, c_out, kernel in convolutions)
    return 3 * (forward + 2 * (7 * 7 * 2 * width) * num_actions)


_Count = Callable[[tuple[Any, ...], Any], int]


def _hook(name: str, count: _Count, counts: dict[str, int]) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
    def add(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        counts[name] = counts.get(name, 0) + count(args, output)

    return add


def _counter(name: str, module: nn.Module) -> _Count | None:
    """Return the function of (arguments, output) that counts one call of `module`; None where there is none to count.

    A layer with parameters of its own that is not known is refused: a missing count must not look like 0. A layer that
    no table knows says what a call of it took, by a method `forward_flops(arguments, output)`; what its children take
    is not part of that.
    """
    match module:
        case nn.Linear():
            return lambda args, output: 2 * output.numel() * module.in_features
        case nn.Conv1d() | nn.Conv2d() | nn.Conv3d():
            per_output = 2 * module.in_channels // module.groups * math.prod(module.kernel_size)
            return lambda args, output: output.numel() * per_output
        case SlidingAttention():
            return lambda args, output: module.flops_per_step() * _rows(args[0], features=1)
        case nn.LSTMCell() | nn.GRUCell() | nn.RNNCell():
            gates = next(gates for cls, gates in _GATES.items() if isinstance(module, cls))
            cell_flops = 2 * gates * module.hidden_size * (module.input_size + module.hidden_size)
            return lambda args, output: cell_flops * _rows(args[0], features=1)
        case nn.RNNBase():
            per_step = _rnn_flops(module)
            return lambda args, output: per_step * _rows(args[0], features=1)
    own = getattr(module, "forward_flops", None)
    if callable(own):
        return cast(_Count, own)
    has_parameters = next(module.parameters(recurse=False), None) is not None
    if has_parameters and not isinstance(module, _FREE):
        raise NotImplementedHereError(f"layer {name!r} is a {type(module).__name__}: no rule counts its FLOPs")
    return None


def _rnn_flops(module: nn.RNNBase) -> int:
    """Return the FLOPs of one row and one step through all layers and directions."""
    if module.proj_size:
        raise NotImplementedHereError("an LSTM with a projection: no rule counts its FLOPs")
    directions = 2 if module.bidirectional else 1
    gates, hidden = _GATES_BY_MODE[module.mode], module.hidden_size
    inputs = [module.input_size] + [hidden * directions] * (module.num_layers - 1)
    return sum(2 * gates * hidden * (size + hidden) * directions for size in inputs)


def _rows(x: Tensor, features: int) -> int:
    """Return how many vectors the tensor holds, when its last `features` dimensions are one vector."""
    return math.prod(x.shape[: x.dim() - features])


def _meta_arguments(policy: Policy, num_steps: int, open_size: int | None) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Return the arguments of a policy's forward for one row of `num_steps` steps, on the meta device."""
    inputs = {}
    for name, row in policy.training_inputs().items():
        if -1 in row.shape and open_size is None:
            raise ValueError(f"input {name!r} has open dimensions {row.shape}: pass open_size")
        shape = [open_size or 0 if size == -1 else size for size in row.shape]
        inputs[name] = torch.zeros(1, num_steps, *shape, dtype=row.dtype, device="meta")
    for name, row in policy.context_inputs().items():
        inputs[name] = torch.zeros(1, num_steps, *row.shape, dtype=row.dtype, device="meta")
    executed_BTH = torch.full((1, num_steps, policy.executed_size()), UNKNOWN_ACTION, dtype=torch.int64, device="meta")
    first_BT = torch.zeros(1, num_steps, dtype=torch.bool, device="meta")
    return inputs, executed_BTH, first_BT
