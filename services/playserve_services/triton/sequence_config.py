"""What a policy is to plain Triton clients: the inputs, outputs and sequence batching of its model.

`playserve triton export --sequence` writes it for a real Triton, and our own port answers ModelConfig with it, so that
one client program fits both.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tritonclient.grpc import model_config_pb2 as triton
from tritonclient.utils import np_to_triton_dtype

from playserve.specs import DesktopActionSpec, PolicySpec

__all__ = ["ACTION", "DESKTOP_ACTION", "LOG_PROB", "SEED", "TEXT", "add_input", "add_output",
           "describe_sequences", "triton_dtype"]  # fmt: skip

#: Input of a sequence that holds its instruction, UTF-8.
TEXT = "instruction"
#: Input of a sequence's first frame that holds the seed of its sampling.
SEED = "seed"
ACTION, LOG_PROB, DESKTOP_ACTION = "action", "log_prob", "desktop_action"


def add_input(
    config: triton.ModelConfig, name: str, kind: str, dims: Sequence[int], *, optional: bool = True
) -> triton.ModelInput:
    """Add an input of a Triton type ("UINT8") to a configuration, and return it."""
    return config.input.add(name=name, data_type=f"TYPE_{kind}", dims=dims, optional=optional)


def add_output(config: triton.ModelConfig, name: str, kind: str, dims: Sequence[int]) -> triton.ModelOutput:
    """Add an output of a Triton type to a configuration, and return it."""
    return config.output.add(name=name, data_type=f"TYPE_{kind}", dims=dims)


def triton_dtype(dtype: np.dtype[np.generic]) -> str:
    """Return Triton's name of a dtype, of either byte order."""
    name: str = np_to_triton_dtype(dtype.newbyteorder("="))
    return name


def describe_sequences(
    config: triton.ModelConfig, spec: PolicySpec, heads: int, *, sequences: int, idle_us: int, queue_delay_us: int = 0
) -> None:
    """Put a policy's tensors and its batching of sequences into a configuration.

    Args:
        config: Changed.
        spec: The policy's.
        heads: Numbers of an action.
        sequences: Most at once.
        idle_us: Microseconds after which a silent sequence is forgotten.
        queue_delay_us: Microseconds that a frame may wait for those of other sequences.
    """
    for tensor in spec.inputs:
        added = add_input(config, tensor.name, triton_dtype(tensor.numpy_dtype), tensor.shape or (1,), optional=False)
        if not tensor.shape:
            added.reshape.SetInParent()  # Triton has no tensor without a dimension
    if spec.takes_instruction:
        add_input(config, TEXT, "UINT8", (-1,)).allow_ragged_batch = True
    add_input(config, SEED, "UINT64", (1,))
    add_output(config, ACTION, "INT64", (heads,))
    add_output(config, LOG_PROB, "FP32", (heads,))
    if isinstance(spec.action, DesktopActionSpec):
        add_output(config, DESKTOP_ACTION, "UINT8", (-1,))  # JSON, UTF-8
    batching = config.sequence_batching
    batching.max_sequence_idle_microseconds = idle_us
    batching.oldest.max_candidate_sequences = sequences
    batching.oldest.max_queue_delay_microseconds = queue_delay_us
    for name, kind in (("START", "CONTROL_SEQUENCE_START"), ("END", "CONTROL_SEQUENCE_END")):
        control = batching.control_input.add(name=name).control.add(kind=kind)
        control.int32_false_true.extend((0, 1))
    # A number: Triton 2.51 refuses its own padding of a text ("unexpected number of string elements"), and where a
    # number belongs it writes a text over its bytes; later ones refuse it.
    batching.control_input.add(name="CORRID").control.add(kind="CONTROL_SEQUENCE_CORRID", data_type="TYPE_UINT64")
