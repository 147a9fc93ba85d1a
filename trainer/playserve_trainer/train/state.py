"""The whole state of a run in one file: safetensors, with the numbers as JSON in its header. Written atomically.

Tensors: ``model/<name>``, ``optim/<moment>/<name>``, ``ema/<name>`` (the moving average), ``memory/<name>`` (the
policy's memory between two batches, for sources that carry it), ``rng/cpu``, ``rng/cuda`` and, of further processes,
``rng/cpu.<rank>``. All are whole, however the run spread them: it may go on with another number of processes.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from playserve.errors import DataLossError, NotFoundError, StateError
from playserve.files import sync_directory
from playserve_trainer.train.ema import MovingAverage
from playserve_trainer.train.parallel import Group, full, shard_like

__all__ = ["STATE_NAME", "TrainState", "capture", "read_state", "restore", "write_state"]

STATE_NAME = "state.safetensors"
_HEADER_KEY = "playserve_train_state"
_FORMAT = 1


@dataclass(slots=True, kw_only=True)
class TrainState:
    """The numbers of a run.

    Attributes:
        step: Optimizer steps done; also the index of the next batch.
        samples: Samples seen (D), repeats counted.
        elapsed_s: Seconds of training, over all resumes.
        data_digest: Of the training data.
        best: The evaluation with the lowest held-out loss so far; empty before the first.
        config: The settings.
    """

    step: int = 0
    samples: int = 0
    elapsed_s: float = 0.0
    data_digest: str = ""
    best: dict[str, float] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)


def capture(
    policy: nn.Module,
    optimizer: torch.optim.Optimizer,
    memory: Mapping[str, Tensor],
    device: torch.device,
    average: MovingAverage | None = None,
    group: Group | None = None,
) -> dict[str, Tensor]:
    """Return every tensor of a run's state; all processes must call it, and get the same."""
    group = group or Group()
    tensors = {f"model/{name}": tensor for name, tensor in policy.state_dict().items()}
    for name, parameter in policy.named_parameters():
        for moment, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optim/{moment}/{name}"] = value
    tensors |= {f"ema/{name}": tensor for name, tensor in (average.tensors() if average else {}).items()}
    tensors |= {f"memory/{name}": torch.cat(group.gather(tensor)) for name, tensor in memory.items()}
    randoms = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        randoms["cuda"] = torch.cuda.get_rng_state(device)
    for kind, state in randoms.items():
        for rank, of_rank in enumerate(group.gather(state)):
            tensors[f"rng/{kind}.{rank}" if rank else f"rng/{kind}"] = of_rank
    return {name: full(tensor.detach()).cpu().contiguous() for name, tensor in tensors.items()}


def restore(
    tensors: Mapping[str, Tensor],
    policy: nn.Module,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
    average: MovingAverage | None = None,
    group: Group | None = None,
) -> dict[str, Tensor]:
    """Put captured tensors back; return the policy's memory of this process's rows.

    Raises:
        StateError: The state is of another model.
    """
    model = _under("model/", tensors)
    wanted = {name: tensor.shape for name, tensor in policy.state_dict().items()}
    if {name: tensor.shape for name, tensor in model.items()} != wanted:
        raise StateError(f"the saved state is of another model: it has {sorted(model)}, wanted {sorted(wanted)}")
    with torch.no_grad():
        for name, tensor in policy.state_dict().items():
            tensor.copy_(shard_like(model[name], tensor))  # devices and memory formats stay
    for moment_and_name, value in _under("optim/", tensors).items():
        moment, _, name = moment_and_name.partition("/")
        parameter = policy.get_parameter(name)
        like = parameter if value.shape == parameter.shape and value.dim() else None
        optimizer.state[parameter][moment] = value.to(device) if like is None else _like(value, like)
    if average is not None:
        average.load(_under("ema/", tensors))
    group = group or Group()
    suffix = f".{group.rank}" if group.rank else ""
    if f"rng/cpu{suffix}" in tensors:
        torch.set_rng_state(tensors[f"rng/cpu{suffix}"])
    if device.type == "cuda" and f"rng/cuda{suffix}" in tensors:
        torch.cuda.set_rng_state(tensors[f"rng/cuda{suffix}"], device)
    return {
        name: tensor[slice(*group.rows(len(tensor)))].to(device) for name, tensor in _under("memory/", tensors).items()
    }


def write_state(directory: Path, state: TrainState, tensors: Mapping[str, Tensor]) -> None:
    """Replace the state file of a run: a kill leaves the old one or the new one, whole."""
    numbers = {name: getattr(state, name) for name in TrainState.__slots__} | {"format": _FORMAT}
    path, temporary = directory / STATE_NAME, directory / f".{STATE_NAME}.tmp"
    save_file(dict(tensors), temporary, metadata={_HEADER_KEY: json.dumps(numbers, allow_nan=False)})
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_directory(directory)


def read_state(directory: Path) -> tuple[TrainState, dict[str, Tensor]]:
    """Return the numbers and tensors of a run's state file.

    Raises:
        NotFoundError: There is none.
        DataLossError: It is damaged, or of another format.
    """
    path = directory / STATE_NAME
    if not path.exists():
        raise NotFoundError(f"{path} is not there: nothing to resume; leave --resume out to begin a run")
    try:
        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {})[_HEADER_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        if header.pop("format") != _FORMAT:
            raise ValueError("it has another format version")
        return TrainState(**header), tensors
    except (SafetensorError, KeyError, ValueError, TypeError, OSError, struct.error) as error:
        raise DataLossError(f"{path} is no whole training state: {error}") from error


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _like(value: Tensor, parameter: Tensor) -> Tensor:
    """Return the value in the parameter's memory format: another order of sums would be another run."""
    if hasattr(parameter, "full_tensor"):
        return shard_like(value, parameter)
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)
