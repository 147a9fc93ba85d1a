"""The tensors of one batch on their way to Triton and back; both ends import this.

A request is a round of a batch: rows of distinct slots, all of one policy version, which its parameters name. The front
sends what its runtime would have been told (slot, reset, executed action, seed and counter of the random stream, ...),
and gets numbers back: drawing happens there, from the same counters, so that an action does not depend on where it is
computed. Instructions travel as their embeddings, and desktop actions as numbers: texts and vocabularies stay here.

Truth values are bytes, and so is text: Triton's Python backend is built against numpy 1, and under numpy 2 only what
DLPack can carry arrives whole.

A control request has the one tensor `control`, a JSON object, and perhaps `blob`; its answer has the same two.

Shape legend: B rows, H heads.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from playserve.errors import DataLossError
from playserve_services.inference.runtime import Row, Rows
from playserve_services.inference.staging import Array
from playserve_trainer.models.policy import INSTRUCTION, UNKNOWN_ACTION

__all__ = ["BLOB", "CONTROL", "INPUT", "OUTPUT", "ROW_TENSORS", "answer_arrays", "control_arrays",
           "control_of", "request_arrays", "rows_of", "rows_of_answer"]  # fmt: skip

#: Before the names of a policy's own inputs and outputs.
INPUT, OUTPUT = "input.", "output."
CONTROL, BLOB = "control", "blob"

#: What every row has, beside the policy's inputs: name, numpy dtype, whether it is [B, H] rather than [B].
ROW_TENSORS: Sequence[tuple[str, type[np.generic], bool]] = (
    ("slot", np.int64, False),
    ("reset", np.uint8, False),
    ("executed", np.int64, True),
    ("seed", np.uint64, False),
    ("counter", np.uint64, False),
    ("temperature", np.float64, False),
    ("argmax", np.uint8, False),
    ("ticks", np.int64, False),
)

_SEED_MASK = 0xFFFFFFFFFFFFFFFF


def request_arrays(
    rows: Sequence[Row],
    inputs: Sequence[str],
    heads: int,
    *,
    executed_BH: Sequence[Sequence[int] | None],
    instructions: Sequence[Array] | None,
    first_slot: int = 0,
) -> dict[str, Array]:
    """Return the tensors of a round.

    Args:
        rows: At least one.
        inputs: Names of the policy's inputs.
        heads: H.
        executed_BH: What the policy is told was executed before each row; None: unknown.
        instructions: Their embeddings; None: the policy takes none.
        first_slot: What is added to a slot's number here, to be its number there.
    """
    unknown = (UNKNOWN_ACTION,) * heads
    columns: dict[str, list[Any]] = {
        "slot": [first_slot + row.slot for row in rows],
        "reset": [row.reset for row in rows],
        "executed": [unknown if executed is None else executed for executed in executed_BH],
        "seed": [row.seed & _SEED_MASK for row in rows],
        "counter": [row.counter for row in rows],
        "temperature": [row.temperature for row in rows],
        "argmax": [row.argmax for row in rows],
        "ticks": [row.ticks for row in rows],
    }
    arrays: dict[str, Array] = {name: np.array(columns[name], dtype) for name, dtype, _ in ROW_TENSORS}
    for name in inputs:
        arrays[INPUT + name] = np.stack([row.inputs[name] for row in rows])
    if instructions is not None:
        arrays[INPUT + INSTRUCTION] = np.stack(instructions)
    return arrays


def rows_of(arrays: Mapping[str, Array], inputs: Sequence[str]) -> list[Row]:
    """Return the rows that a request's tensors are, their instructions named by the number of the row.

    Raises:
        DataLossError: A tensor is missing, or they have not as many rows each.
    """
    wanted = [name for name, _, _ in ROW_TENSORS] + [INPUT + name for name in inputs]
    if missing := [name for name in wanted if name not in arrays]:
        raise DataLossError(f"a batch without the tensors {', '.join(missing)}")
    counts = {name: len(arrays[name]) for name in wanted}
    if len(set(counts.values())) != 1 or not counts["slot"]:
        raise DataLossError(f"a batch whose tensors have not as many rows each, at least one: {counts}")
    columns = {name: arrays[name].astype(dtype, copy=False).tolist() for name, dtype, _ in ROW_TENSORS}
    own = {name: arrays[INPUT + name] for name in inputs}
    return [
        Row(
            slot=columns["slot"][i], reset=bool(columns["reset"][i]),
            inputs={name: array[i] for name, array in own.items()}, executed=tuple(columns["executed"][i]),
            seed=columns["seed"][i], counter=columns["counter"][i], temperature=columns["temperature"][i],
            argmax=bool(columns["argmax"][i]), ticks=columns["ticks"][i], instruction=str(i),
        )
        for i in range(counts["slot"])
    ]  # fmt: skip


def answer_arrays(rows: Rows) -> dict[str, Array]:
    """Return the tensors of an answer."""
    arrays: dict[str, Array] = {"actions": np.array(rows.actions, np.int64)}
    if rows.log_probs is not None:
        arrays["log_probs"] = rows.log_probs
    if rows.values is not None:
        arrays["values"] = rows.values
    return arrays | {OUTPUT + name: np.asarray(array) for name, array in rows.outputs.items()}


def rows_of_answer(arrays: Mapping[str, Array]) -> Rows:
    """Return what a round gave.

    Raises:
        DataLossError: There are no actions.
    """
    if "actions" not in arrays:
        raise DataLossError(f"an answer without actions; it has {', '.join(sorted(arrays)) or 'nothing'}")
    return Rows(
        actions=arrays["actions"].tolist(), log_probs=arrays.get("log_probs"), values=arrays.get("values"),
        outputs={name.removeprefix(OUTPUT): array for name, array in arrays.items() if name.startswith(OUTPUT)},
    )  # fmt: skip


def control_arrays(value: Mapping[str, Any], blob: bytes | memoryview = b"") -> dict[str, Array]:
    """Return the tensors of a control request, or of its answer: a JSON object and bytes."""
    arrays: dict[str, Array] = {CONTROL: np.frombuffer(json.dumps(value).encode(), np.uint8)}
    if len(blob):
        arrays[BLOB] = np.frombuffer(blob, np.uint8)
    return arrays


def control_of(arrays: Mapping[str, Array]) -> tuple[dict[str, Any], bytes]:
    """Return the JSON object and the bytes of a control request or answer.

    Raises:
        DataLossError: It is no JSON object.
    """
    try:
        value = json.loads(arrays[CONTROL].tobytes())
    except (KeyError, ValueError) as error:
        raise DataLossError(f"a control message that is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise DataLossError(f"a control message that is no JSON object: {type(value).__name__}")
    return value, arrays[BLOB].tobytes() if BLOB in arrays else b""
