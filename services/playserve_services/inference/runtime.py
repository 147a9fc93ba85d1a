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

from playserve.errors import BadSettingError
from playserve.specs import DiscreteActionSpec, PolicySpec
from playserve_services.inference.sampling import BatchSampler, uniforms
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
    if isinstance(spec.action, DiscreteActionSpec):
        return 1
    raise BadSettingError(f"policy {spec.name!r}: desktop actions are not served yet")


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
        # One view a bucket, so that the hot path makes no tensor from numpy.
        self._staging = {name: torch.from_numpy(array) for name, array in self._host.items()}

    def padded(self, rows: int) -> int:
        """See :class:`Runtime`."""
        if self._buckets is None:
            return rows
        return next(size for size in self._buckets if size >= rows)

    def run(self, rows: Sequence[Row], want_log_prob: bool) -> Rows:
        """See :class:`Runtime`."""
        n, size = len(rows), self.padded(len(rows))
        pad = size - n
        inputs = {}
        for name, host in self._host.items():
            for i, row in enumerate(rows):
                host[i] = row.inputs[name]
            host[n:size] = 0
            inputs[name] = self._staging[name][:size].to(self._device)
        unknown = (UNKNOWN_ACTION,) * self._heads
        executed_BH = torch.tensor([r.executed or unknown for r in rows] + [unknown] * pad, device=self._device)
        memory = Memory(
            self.pool.tensors,
            torch.tensor([r.slot for r in rows] + [0] * pad, device=self._device),
            torch.tensor([r.reset for r in rows] + [True] * pad, device=self._device),
        )
        u_BH = uniforms([r.seed for r in rows] + [0] * pad, [r.counter for r in rows] + [0] * pad, self._heads)
        sampler = BatchSampler(
            u_BH,
            [r.temperature for r in rows] + [1.0] * pad,
            [r.argmax for r in rows] + [True] * pad,
            self._device,
            want_log_prob,
        )
        with torch.inference_mode(), torch.autocast(self._device.type, torch.bfloat16, enabled=self._autocast):
            out = self._policy.step(inputs, executed_BH, memory, sampler)
        log_probs = sampler.log_probs()
        return Rows(
            actions=out.actions_BH[:n].tolist(),
            log_probs=None if log_probs is None else log_probs[:n],
            values=None if out.value_B is None else out.value_B[:n].float().cpu().numpy(),
            outputs={name: tensor[:n].cpu().numpy() for name, tensor in out.outputs.items()},
        )

    def warm_up(self) -> None:
        """See :class:`Runtime`."""
        sizes = self._buckets or sorted({1, 2, self._max_batch})
        zero = {t.name: np.zeros(t.shape, dtype=t.numpy_dtype) for t in self.spec.inputs}
        for size in sizes:
            row = Row(0, True, zero, None, 0, 0, 1.0, False)
            self.run([row] * size, want_log_prob=True)
