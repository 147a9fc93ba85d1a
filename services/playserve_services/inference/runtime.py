"""Running one policy version over slots: from frames of numpy arrays to actions. Engine thread only.

A `Runtime` knows nothing of sessions, queues or gRPC; the engine hands it rows and gets rows back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from playserve.errors import BadSettingError, NotImplementedHereError
from playserve.specs import DiscreteActionSpec, PolicyKind, PolicySpec
from playserve_services.inference.sampling import BatchSampler
from playserve_services.inference.slots import SlotPool
from playserve_trainer.models.policy import UNKNOWN_ACTION, Memory, Policy

__all__ = ["Array", "Row", "Rows", "Runtime", "TorchRuntime", "num_heads"]

Array = npt.NDArray[Any]


@dataclass(slots=True)
class Row:
    """One frame of one slot.

    Attributes:
        slot: Its row in the pool.
        reset: Whether the memory is empty before this frame.
        inputs: Arrays [*shape] by input name.
        executed: The action executed before this frame, one number a head; None: unknown.
        seed: Of the sampling.
        counter: Frames that entered the memory under that seed before this one.
        temperature: Of the sampling.
        argmax: Take the most probable action.
    """

    slot: int
    reset: bool
    inputs: Mapping[str, Array]
    executed: tuple[int, ...] | None
    seed: int
    counter: int
    temperature: float
    argmax: bool


@dataclass(slots=True)
class Rows:
    """What B rows gave.

    Attributes:
        actions: B lists of one number a head.
        log_probs: float32 [B, H], when wanted.
        values: float32 [B], when the policy has them.
        outputs: Arrays [B, ...] by output name.
    """

    actions: list[list[int]]
    log_probs: npt.NDArray[np.float32] | None
    values: npt.NDArray[np.float32] | None
    outputs: Mapping[str, Array]


class Runtime(Protocol):
    """Runs one policy version."""

    spec: PolicySpec
    pool: SlotPool

    def run(self, rows: Sequence[Row], want_log_prob: bool) -> Rows:
        """Advance the rows' slots by one frame each, and draw actions. A slot appears at most once."""

    def padded(self, rows: int) -> int:
        """Return the batch size that `rows` rows are computed at."""

    def warm_up(self) -> None:
        """Run every batch size that will be used once, on the scratch slot."""


def num_heads(spec: PolicySpec) -> int:
    """Return the number of heads of an action: one for a discrete choice."""
    if spec.kind is PolicyKind.WORLD:
        raise NotImplementedHereError(f"policy {spec.name!r}: worlds are not served by this version")
    if isinstance(spec.action, DiscreteActionSpec):
        return 1
    raise NotImplementedHereError(f"policy {spec.name!r}: desktop actions are not served by this version")


class TorchRuntime:
    """Runs a `playserve_trainer` policy.

    Args:
        spec: Spec of the version, with name and version.
        policy: In eval mode, on its device.
        pool: Of the policy's layout, on the same device.
        max_batch: Most rows of one run.
        buckets: Batch sizes that rows are padded to, ascending, the last at least max_batch; None: no padding.
            One bucket makes results independent of batch mates bit for bit.
        autocast: Compute in bfloat16 where the operators allow it.
    """

    def __init__(
        self,
        spec: PolicySpec,
        policy: Policy,
        pool: SlotPool,
        *,
        max_batch: int,
        buckets: Sequence[int] | None = None,
        autocast: bool = False,
    ) -> None:
        self.spec = spec
        self.pool = pool
        self._policy = policy
        self._device = policy.device()
        self._buckets = list(buckets) if buckets is not None else None
        if self._buckets is not None and (sorted(self._buckets) != self._buckets or self._buckets[-1] < max_batch):
            raise BadSettingError(f"batch buckets {self._buckets} do not ascend to at least max_batch {max_batch}")
        self._max_batch = max_batch
        self._heads = num_heads(spec)
        self._autocast = autocast
        size = self._buckets[-1] if self._buckets else max_batch
        self._host: dict[str, Array] = {}
        for tensor in spec.inputs:
            if -1 in tensor.shape:
                raise BadSettingError(f"policy {spec.name!r}: input {tensor.name!r} has an open shape {tensor.shape}")
            self._host[tensor.name] = np.zeros((size, *tensor.shape), dtype=tensor.numpy_dtype)
        self._slots = np.zeros(size, dtype=np.int64)
        self._reset = np.ones(size, dtype=np.bool_)
        self._executed = np.full((size, self._heads), UNKNOWN_ACTION, dtype=np.int64)
        # One set of views a batch size, made once: making tensors costs more than a small batch does.
        self._views: dict[int, tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor, torch.Tensor]] = {}

    def _staging(self, size: int) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return views of the first `size` staged rows: inputs, slots, reset, executed."""
        views = self._views.get(size)
        if views is None:
            inputs = {name: torch.from_numpy(array[:size]) for name, array in self._host.items()}
            arrays = (self._slots, self._reset, self._executed)
            slots, reset, executed = (torch.from_numpy(array[:size]) for array in arrays)
            views = self._views[size] = inputs, slots, reset, executed
        return views

    def padded(self, rows: int) -> int:
        """See :class:`Runtime`."""
        if self._buckets is None:
            return rows
        return next(size for size in self._buckets if size >= rows)

    def run(self, rows: Sequence[Row], want_log_prob: bool) -> Rows:
        """See :class:`Runtime`."""
        n, size = len(rows), self.padded(len(rows))
        pad = size - n
        self._stage(rows, size)
        inputs, slots_B, reset_B, executed_BH = self._staging(size)
        if self._device.type != "cpu":
            inputs = {name: tensor.to(self._device) for name, tensor in inputs.items()}
            slots_B, reset_B = slots_B.to(self._device), reset_B.to(self._device)
            executed_BH = executed_BH.to(self._device)
        sampler = BatchSampler(
            [r.seed for r in rows] + [0] * pad,
            [r.counter for r in rows] + [0] * pad,
            self._heads,
            [r.temperature for r in rows] + [1.0] * pad,
            [r.argmax for r in rows] + [True] * pad,
            self._device,
            want_log_prob,
        )
        with torch.inference_mode():
            memory = Memory(self.pool.tensors, slots_B, reset_B)
            # Entering autocast costs as much as a small batch, even when it is off.
            if self._autocast:
                with torch.autocast(self._device.type, torch.bfloat16):
                    out = self._policy.step(inputs, executed_BH, memory, sampler)
            else:
                out = self._policy.step(inputs, executed_BH, memory, sampler)
        log_probs = sampler.log_probs()
        return Rows(
            actions=out.actions_BH[:n].tolist(),
            log_probs=None if log_probs is None else log_probs[:n],
            values=None if out.value_B is None else out.value_B[:n].float().cpu().numpy(),
            outputs={name: tensor[:n].cpu().numpy() for name, tensor in out.outputs.items()},
        )

    def _stage(self, rows: Sequence[Row], size: int) -> None:
        """Copy the rows into the staging arrays; rows from len(rows) on are padding on the scratch slot."""
        n = len(rows)
        for name, host in self._host.items():
            for i, row in enumerate(rows):
                host[i] = row.inputs[name]
        self._slots[:n] = [r.slot for r in rows]
        self._reset[:n] = [r.reset for r in rows]
        unknown = (UNKNOWN_ACTION,) * self._heads
        self._executed[:n] = [r.executed or unknown for r in rows]
        if size > n:
            for host in self._host.values():
                host[n:size] = 0
            self._slots[n:size], self._reset[n:size], self._executed[n:size] = 0, True, UNKNOWN_ACTION

    def warm_up(self) -> None:
        """See :class:`Runtime`."""
        sizes = self._buckets or sorted({1, min(2, self._max_batch), self._max_batch})
        zero = {t.name: np.zeros(t.shape, dtype=t.numpy_dtype) for t in self.spec.inputs}
        for size in sizes:
            row = Row(0, True, zero, None, 0, 0, 1.0, False)
            self.run([row] * size, want_log_prob=True)
