"""How a batch of one size is computed: kernel by kernel, as a captured CUDA graph, or as compiled code.

Graphs are made while a policy warms up, one for each batch size, and never afterwards: a batch that would need another
one fails with :class:`RecompiledError`, since compiling takes seconds and a game has milliseconds.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor

from playserve.errors import BadSettingError, StepFailedError
from playserve_services.inference.staging import Array, Computed, Readback, Staged, pack

__all__ = [
    "CompiledSteps",
    "CudaGraphSteps",
    "EagerSteps",
    "GraphMode",
    "GraphSetting",
    "RecompiledError",
    "StepFunction",
    "Steps",
    "resolve_graphs",
]

GraphMode = Literal["off", "cuda", "compile"]
GraphSetting = Literal["auto", "off", "cuda", "compile"]

#: Computes a batch from its staged tensors; whatever changes between two batches is in them.
StepFunction = Callable[[Mapping[str, Tensor]], Computed]


class RecompiledError(StepFailedError):
    """A batch would have been compiled anew after warm-up. It was not computed; no memory has changed."""


def resolve_graphs(setting: GraphSetting, device: str) -> GraphMode:
    """Return the mode for a device: `auto` captures CUDA graphs where there is CUDA.

    Raises:
        BadSettingError: CUDA graphs are wanted on another device.
    """
    cuda = torch.device(device).type == "cuda"
    if setting == "auto":
        return "cuda" if cuda else "off"
    if setting == "cuda" and not cuda:
        raise BadSettingError(f"graphs {setting!r} need a CUDA device; the device is {device!r}")
    return setting


class Steps(Protocol):
    """Computes staged batches."""

    def warm_up(self, staged: Staged) -> None:
        """Get ready for a batch size; its arrays hold padding rows."""

    def __call__(self, staged: Staged) -> Mapping[str, Array]:
        """Compute what was sent to the device; return arrays of `staged.size` rows, valid until the next call."""


def _on_host(computed: Computed) -> dict[str, Array]:
    return {name: tensor.numpy() for name, tensor in computed.named().items()}


class EagerSteps:
    """Kernel by kernel.

    Args:
        step: The computation.
        device: Where it runs.
    """

    def __init__(self, step: StepFunction, device: torch.device) -> None:
        self._step = step
        self._readback = None if device.type == "cpu" else Readback(device)

    def warm_up(self, staged: Staged) -> None:
        """See :class:`Steps`."""
        self(staged)

    def __call__(self, staged: Staged) -> Mapping[str, Array]:
        """See :class:`Steps`."""
        computed = self._step(staged.device)
        return _on_host(computed) if self._readback is None else self._readback.fetch(pack(computed))


class CompiledSteps:
    """Compiled for static shapes, one graph for each batch size.

    Args:
        step: The computation, a plain function.
        device: Where it runs.
        backend: Name of torch.compile's backend.
    """

    def __init__(self, step: StepFunction, device: torch.device, backend: str = "inductor") -> None:
        self._step = step
        self._backend = backend
        self._readback = None if device.type == "cpu" else Readback(device)
        self._compiled: dict[int, StepFunction] = {}
        self.num_compiled = 0
        # Here, since it costs a second, and few servers compile.
        from torch._dynamo import config, lookup_backend
        from torch._dynamo.exc import TorchDynamoException

        self._config: Any = config
        self._lookup = lookup_backend
        self._compiler_error: type[Exception] = TorchDynamoException

    def warm_up(self, staged: Staged) -> None:
        """See :class:`Steps`. Raises what torch raises where the step cannot be compiled as one graph."""
        sealed = False

        def compile_once(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
            if sealed:
                raise RuntimeError("compiled again after warm-up")
            self.num_compiled += 1
            return cast(Callable[..., Any], self._lookup(self._backend)(graph, inputs))

        # torch keeps what it compiled by code object, and gives up at a handful of variants: each size gets its own.
        step = cast(types.FunctionType, self._step)
        own = types.FunctionType(step.__code__.replace(), step.__globals__, step.__name__, None, step.__closure__)
        compiled = torch.compile(own, backend=compile_once, dynamic=False, fullgraph=True)
        # Steps of LSTMs run their cells; torch would refuse them for the module that holds the weights.
        with self._config.patch(allow_rnn=True):
            compiled(staged.device)
        sealed = True
        self._compiled[staged.size] = compiled

    def __call__(self, staged: Staged) -> Mapping[str, Array]:
        """See :class:`Steps`.

        Raises:
            RecompiledError: What was compiled does not fit any more, or the size was not warmed up.
        """
        compiled = self._compiled.get(staged.size)
        if compiled is None:
            raise RecompiledError(f"batches of {staged.size} rows were not compiled, only of {sorted(self._compiled)}")
        try:
            computed = compiled(staged.device)
        except self._compiler_error as error:
            raise RecompiledError(
                f"a batch of {staged.size} rows would have been compiled again after warm-up: something that the step "
                f"depends on has changed ({str(error).splitlines()[0]})"
            ) from error
        return _on_host(computed) if self._readback is None else self._readback.fetch(pack(computed))


class CudaGraphSteps:
    """One captured CUDA graph for each batch size: a batch costs one launch.

    Args:
        step: The computation. It may not depend on values that Python sees: no `.item()`, no copies to the host.
        device: A CUDA device.
    """

    def __init__(self, step: StepFunction, device: torch.device) -> None:
        self._step = step
        self._device = device
        self._readback = Readback(device)
        # Graphs of one policy never run at once, so that they can share their temporary memory.
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Any]] = {}

    @property
    def captured(self) -> list[int]:
        """Batch sizes that have a graph, ascending."""
        return sorted(self._graphs)

    def warm_up(self, staged: Staged) -> None:
        """See :class:`Steps`. Raises what torch raises where the step cannot be captured."""
        with torch.cuda.device(self._device):
            stream, current = torch.cuda.Stream(), torch.cuda.current_stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                for _ in range(3):  # libraries choose their kernels, and take their workspaces, at the first calls
                    pack(self._step(staged.device))
            current.wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            # The engine's thread goes on with other policies meanwhile: only this thread's calls are captured. A
            # capture that fails leaves its stream behind as the current one; the outer block takes that back.
            with (
                torch.cuda.stream(current),
                torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"),
            ):
                packed = pack(self._step(staged.device))
        self._graphs[staged.size] = graph, packed

    def __call__(self, staged: Staged) -> Mapping[str, Array]:
        """See :class:`Steps`.

        Raises:
            RecompiledError: The size was not warmed up.
        """
        entry = self._graphs.get(staged.size)
        if entry is None:
            raise RecompiledError(f"batches of {staged.size} rows were not captured, only of {self.captured}")
        graph, packed = entry
        graph.replay()
        return self._readback.fetch(packed)
