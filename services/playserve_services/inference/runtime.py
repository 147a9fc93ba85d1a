"""Running one policy version over slots: from frames of numpy arrays to actions. Engine thread only.

A `Runtime` knows nothing of sessions, queues or gRPC; the engine hands it rows and gets rows back.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from playserve.actions import Action
from playserve.errors import BadSettingError
from playserve.specs import PolicyKind, PolicySpec
from playserve_services.inference.decoding import DesktopDecoder, Executed, num_executed, num_heads
from playserve_services.inference.graphs import (
    CompiledSteps,
    CudaGraphSteps,
    EagerSteps,
    GraphMode,
    StepFunction,
    Steps,
)
from playserve_services.inference.instructions import GivenInstructions, InstructionCache, Instructions
from playserve_services.inference.sampling import BatchSampler, StaticSampler, uniforms
from playserve_services.inference.slots import SlotPool
from playserve_services.inference.staging import OUTPUT, Array, Computed, Field, Staged, Staging
from playserve_trainer.models.policy import INSTRUCTION, TICKS, UNKNOWN_ACTION, Memory, Policy, StateTensor

__all__ = ["Array", "Row", "Rows", "Runtime", "TorchRuntime", "check_context", "static_step"]

_log = logging.getLogger(__name__)
_INPUT = "input/"  # before the names of a policy's inputs, among the staged arrays
# What padding rows hold where it is not 0: they stand on the scratch slot, and draw nothing.
_PADDING: Mapping[str, Any] = {
    _INPUT + TICKS: 1,
    "reset": True,
    "executed": UNKNOWN_ACTION,
    "inverse_temperature": 1.0,
    "argmax": True,
}


@dataclass(slots=True)
class Row:
    """One frame of one slot.

    Attributes:
        slot: Its row in the pool.
        reset: Whether the memory is empty before this frame.
        inputs: Arrays [*shape] by input name.
        executed: The action executed before this frame, one number a head, or as desktop policies play it; None:
            unknown. Of a world, the action of this step.
        seed: Of the sampling.
        counter: Frames that entered the memory under that seed before this one.
        temperature: Of the sampling.
        argmax: Take the most probable action.
        ticks: Game ticks between the frame before in the memory and this one; 1 at the first of an episode.
        instruction: In force; read by policies that take one.
        decode: How mouse motion is decoded; "": as the policy does by itself.
    """

    slot: int
    reset: bool
    inputs: Mapping[str, Array]
    executed: Executed
    seed: int
    counter: int
    temperature: float
    argmax: bool
    ticks: int = 1
    instruction: str = ""
    decode: str = ""


@dataclass(slots=True)
class Rows:
    """What B rows gave.

    Attributes:
        actions: B lists of one number a head; empty ones of a world.
        log_probs: float32 [B, H], when wanted.
        values: float32 [B], when the policy has them.
        outputs: Arrays [B, ...] by output name.
        decoded: B actions of a policy that plays keyboard and mouse; None: the numbers are indices.
        executed: B lists of one number a head, what the policy is told where its answer is executed; None: `actions`.
    """

    actions: list[list[int]]
    log_probs: npt.NDArray[np.float32] | None
    values: npt.NDArray[np.float32] | None
    outputs: Mapping[str, Array]
    decoded: list[Action] | None = None
    executed: list[tuple[int, ...]] | None = None


class Runtime(Protocol):
    """Runs one policy version."""

    @property
    def spec(self) -> PolicySpec:
        """Spec of the version, with name and version."""

    @property
    def pool(self) -> SlotPool:
        """The slots of its layout."""

    @property
    def heads(self) -> int:
        """Numbers that a step draws."""

    def run(self, rows: Sequence[Row], want_log_prob: bool) -> Rows:
        """Advance the rows' slots by one frame each, and draw actions. A slot appears at most once."""

    def padded(self, rows: int) -> int:
        """Return the batch size that `rows` rows are computed at."""

    def warm_up(self) -> None:
        """Run every batch size that will be used once, on the scratch slot."""

    def prepare_instruction(self, text: str) -> None:
        """Embed an instruction before a row brings it, so that no batch waits for that. It takes as long as a model.

        Call it in a thread that may wait, whenever a session's instruction is new; policies that take none ignore it.
        """

    def knows_instruction(self, text: str) -> bool:
        """Return whether a row may bring an instruction without making its batch wait."""


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
        graphs: `cuda` captures, and `compile` compiles, one graph for each bucket while warming up; a policy for
            which that fails is computed without. Both need buckets.
        compiler: Backend of torch.compile.
        translates: Whether desktop actions and instructions are translated here; else rows bring what was executed as
            numbers and embeddings of instructions, and what was drawn is not decoded.
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
        graphs: GraphMode = "off",
        compiler: str = "inductor",
        translates: bool = True,
    ) -> None:
        self.spec = spec
        self.pool = pool
        self._policy = policy
        self._device = policy.device()
        self._buckets = list(buckets) if buckets is not None else None
        if self._buckets is not None and (sorted(self._buckets) != self._buckets or self._buckets[-1] < max_batch):
            raise BadSettingError(f"batch buckets {self._buckets} do not ascend to at least max_batch {max_batch}")
        if graphs != "off" and self._buckets is None:
            raise BadSettingError(f"graphs {graphs!r} need batch buckets: a graph has one batch size")
        self._max_batch = max_batch
        self._heads, self._told = num_heads(spec, policy), num_executed(spec, policy)
        self._is_world, self._said = spec.kind is PolicyKind.WORLD, len(policy.heads())
        self._decoder = DesktopDecoder.of(spec, policy, self._heads) if translates else None
        self._autocast = autocast
        for tensor in spec.inputs:
            if -1 in tensor.shape:
                raise BadSettingError(f"policy {spec.name!r}: input {tensor.name!r} has an open shape {tensor.shape}")
        self._observations = [tensor.name for tensor in spec.inputs]
        self._context = check_context(spec, policy.context_inputs())
        self._input_names = [*self._observations, *self._context]
        self.instructions = self._instructions(policy, translates)
        self._static = graphs != "off" or self._device.type != "cpu"
        self._steps = self._make_steps(graphs, compiler)
        self.staging = Staging(self._fields(), self._buckets[-1] if self._buckets else max_batch, self._device)

    def _instructions(self, policy: Policy, translates: bool) -> Instructions | None:
        layout = self._context.get(INSTRUCTION)
        if layout is None:
            return None
        if not translates:
            return GivenInstructions(layout)
        return InstructionCache(policy.embed_instruction, layout, 2 * self.pool.capacity + 1)

    def _fields(self) -> list[Field]:
        fields = [Field(_INPUT + t.name, t.shape, t.numpy_dtype) for t in self.spec.inputs]
        for name, row in self._context.items():
            fields.append(Field(_INPUT + name, row.shape, torch.empty(0, dtype=row.dtype).numpy().dtype))
        fields += [
            Field("slot", (), np.dtype(np.int64)),
            Field("reset", (), np.dtype(np.bool_)),
            Field("executed", (self._told,), np.dtype(np.int64)),
        ]
        if self._static:
            fields += [
                Field("uniform", (self._heads,), np.dtype(np.float64)),
                Field("inverse_temperature", (1,), np.dtype(np.float64)),
                Field("argmax", (), np.dtype(np.bool_)),
            ]
        return fields

    def _make_steps(self, graphs: GraphMode, compiler: str) -> Steps | None:
        """Return what computes staged batches; None on a CPU without graphs, where the rows' own sampler is faster."""
        step = static_step(self._policy, self.pool, self._input_names, self._autocast)
        if graphs == "compile":
            return CompiledSteps(step, self._device, compiler)
        if graphs == "cuda":
            return CudaGraphSteps(step, self._device)
        return EagerSteps(step, self._device) if self._static else None

    @property
    def heads(self) -> int:
        """See :class:`Runtime`."""
        return self._heads

    @property
    def steps(self) -> Steps | None:
        """What computes staged batches; None: policies are called directly."""
        return self._steps

    def padded(self, rows: int) -> int:
        """See :class:`Runtime`."""
        if self._buckets is None:
            return rows
        return next(size for size in self._buckets if size >= rows)

    def run(self, rows: Sequence[Row], want_log_prob: bool) -> Rows:
        """See :class:`Runtime`.

        Raises:
            RecompiledError: The batch would have needed a graph that was not made while warming up.
        """
        n, size = len(rows), self.padded(len(rows))
        self.staging.wait()
        staged = self.staging.of(size)
        self._stage(rows, staged)
        if self._steps is None:
            result = self._run_directly(rows, staged, want_log_prob)
        else:
            result = self._run_staged(self._steps, n, staged, want_log_prob)
        if self._is_world:  # what it drew is its own affair: nobody plays it
            result.actions = [[] for _ in rows]
        elif self._decoder is not None:
            result.decoded, result.executed = self._decoder.decode(rows, result.actions)
        return result

    def _run_staged(self, steps: Steps, n: int, staged: Staged, want_log_prob: bool) -> Rows:
        self.staging.send(staged)
        with torch.inference_mode():
            arrays = steps(staged)
        log_probs, value = arrays.get("log_probs"), arrays.get("value")
        return Rows(
            actions=arrays["actions"][:n].tolist(),
            log_probs=log_probs[:n].copy() if want_log_prob and log_probs is not None else None,
            values=None if value is None else value[:n].copy(),
            outputs={k.removeprefix(OUTPUT): a[:n].copy() for k, a in arrays.items() if k.startswith(OUTPUT)},
        )

    def _run_directly(self, rows: Sequence[Row], staged: Staged, want_log_prob: bool) -> Rows:
        n, pad = len(rows), staged.size - len(rows)
        sampler = BatchSampler(
            [r.seed for r in rows] + [0] * pad,
            [r.counter for r in rows] + [0] * pad,
            self._heads,
            [r.temperature for r in rows] + [1.0] * pad,
            [r.argmax for r in rows] + [True] * pad,
            self._device,
            want_log_prob,
        )
        arrays = staged.device
        with torch.inference_mode():
            memory = Memory(self.pool.tensors, arrays["slot"], arrays["reset"])
            inputs = {name: arrays[_INPUT + name] for name in self._input_names}
            # Entering autocast costs as much as a small batch, even when it is off.
            if self._autocast:
                with torch.autocast(self._device.type, torch.bfloat16):
                    out = self._policy.step(inputs, arrays["executed"], memory, sampler)
            else:
                out = self._policy.step(inputs, arrays["executed"], memory, sampler)
        log_probs = sampler.log_probs(self._said)
        return Rows(
            actions=out.actions_BH[:n].tolist(),
            log_probs=None if log_probs is None else log_probs[:n],
            values=None if out.value_B is None else out.value_B[:n].float().numpy(),
            outputs={name: tensor[:n].numpy() for name, tensor in out.outputs.items()},
        )

    def _stage(self, rows: Sequence[Row], staged: Staged) -> None:
        """Lay the rows out; rows from len(rows) on are padding on the scratch slot."""
        n, host = len(rows), staged.host
        if rows:
            for name in self._observations:
                array = host[_INPUT + name]
                for i, row in enumerate(rows):
                    array[i] = row.inputs[name]
            host["slot"][:n] = [r.slot for r in rows]
            host["reset"][:n] = [r.reset for r in rows]
            unknown = (UNKNOWN_ACTION,) * self._told
            if self._decoder is None:
                host["executed"][:n] = [r.executed or unknown for r in rows]
            else:
                host["executed"][:n] = [self._decoder.encoded(r.executed) or unknown for r in rows]
            if TICKS in self._context:
                host[_INPUT + TICKS][:n] = [r.ticks for r in rows]
            if self.instructions is not None:
                array = host[_INPUT + INSTRUCTION]
                for i, row in enumerate(rows):
                    array[i] = self.instructions.get(row.instruction)
        if rows and self._static:
            host["uniform"][:n] = uniforms([r.seed for r in rows], [r.counter for r in rows], self._heads)
            host["inverse_temperature"][:n, 0] = [1.0 / r.temperature for r in rows]
            host["argmax"][:n] = [r.argmax for r in rows]
        if staged.size > n:
            for name, array in host.items():
                array[n:] = _PADDING.get(name, 0)

    def prepare_instruction(self, text: str) -> None:
        """See :class:`Runtime`."""
        if self.instructions is not None:
            self.instructions.prepare(text)

    def knows_instruction(self, text: str) -> bool:
        """See :class:`Runtime`."""
        return self.instructions is None or self.instructions.knows(text)

    def warm_up(self) -> None:
        """See :class:`Runtime`. Makes the graphs, largest first: the smaller ones fit into its temporary memory."""
        if self._steps is not None:
            try:
                self._prepare(self._steps)
            except Exception as error:
                if isinstance(self._steps, EagerSteps):
                    raise
                _log.warning(
                    "policy %s version %s: its step cannot be %s; it is computed without graphs (%s)",
                    self.spec.name, self.spec.version,
                    "compiled" if isinstance(self._steps, CompiledSteps) else "captured",
                    " ".join((str(error).strip() or type(error).__name__).splitlines()[:3]),
                )  # fmt: skip
                self._steps = self._make_steps("off", "")
                assert self._steps is not None  # noqa: S101 - graphs stage everything
                self._prepare(self._steps)
        sizes = self._buckets or sorted({1, min(2, self._max_batch), self._max_batch})
        zero = {t.name: np.zeros(t.shape, dtype=t.numpy_dtype) for t in self.spec.inputs}
        for size in sizes:
            row = Row(0, True, zero, None, 0, 0, 1.0, False)
            self.run([row] * size, want_log_prob=True)

    def _prepare(self, steps: Steps) -> None:
        for size in reversed(self._buckets or [self._max_batch]):
            staged = self.staging.of(size)
            self.staging.wait()
            self._stage([], staged)
            self.staging.send(staged)
            with torch.inference_mode():
                steps.warm_up(staged)


def check_context(spec: PolicySpec, context: Mapping[str, StateTensor]) -> Mapping[str, StateTensor]:
    """Return the context inputs that a policy declares.

    Raises:
        BadSettingError: One is unknown or ill-typed, or the spec says otherwise of instructions.
    """
    unknown = sorted(set(context) - {TICKS, INSTRUCTION})
    if unknown:
        raise BadSettingError(f"policy {spec.name!r}: context inputs {unknown}; there are {TICKS!r}, {INSTRUCTION!r}")
    if TICKS in context and context[TICKS] != StateTensor((), torch.int64):
        raise BadSettingError(f"policy {spec.name!r}: {TICKS!r} is int64 of shape (), not {context[TICKS]}")
    if (INSTRUCTION in context) != spec.takes_instruction:
        has = "has" if INSTRUCTION in context else "lacks"
        raise BadSettingError(
            f"policy {spec.name!r}: takes_instruction is {spec.takes_instruction}, and it {has} the context input "
            f"{INSTRUCTION!r}"
        )
    return dict(context)


def static_step(policy: Policy, pool: SlotPool, input_names: Sequence[str], autocast: bool) -> StepFunction:
    """Return a policy's step as a function of staged tensors alone, as graphs need it."""
    tensors, device_type = pool.tensors, policy.device().type
    names, said = tuple(input_names), len(policy.heads())

    def step(arrays: Mapping[str, Tensor]) -> Computed:
        sampler = StaticSampler(arrays["uniform"], arrays["inverse_temperature"], arrays["argmax"])
        memory = Memory(tensors, arrays["slot"], arrays["reset"])
        inputs = {name: arrays[_INPUT + name] for name in names}
        if autocast:
            # Weights that were cast inside a graph must not be found by what runs outside of it.
            with torch.autocast(device_type, torch.bfloat16, cache_enabled=False):
                out = policy.step(inputs, arrays["executed"], memory, sampler)
        else:
            out = policy.step(inputs, arrays["executed"], memory, sampler)
        return Computed(out.actions_BH, sampler.log_probs_BH(said), out.value_B, dict(out.outputs))

    return step
