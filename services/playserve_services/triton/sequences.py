"""The sequence-batched model, for plain tritonclient users: Triton owns the sequences, this the memory of each.

A request is one frame of one sequence; Triton puts frames of different sequences into one call. START begins an empty
memory, END lets it go. Triton forgets idle sequences without a word, so that the least recently used one makes room
when there is none. What is executed is taken to be what was answered.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from playserve.actions import Action, DesktopAction
from playserve.errors import StateError
from playserve_services.inference.runtime import Row, TorchRuntime
from playserve_services.inference.sampling import derive_seed
from playserve_services.inference.slots import SlotLease
from playserve_services.inference.staging import Array
from playserve_services.triton.sequence_config import ACTION, DESKTOP_ACTION, LOG_PROB

__all__ = ["SequenceStep", "Sequences", "desktop_as_json"]


@dataclass(frozen=True, slots=True)
class SequenceStep:
    """One frame.

    Attributes:
        sequence: Triton's number of the sequence, not 0.
        start: Whether its memory is to be empty before this frame.
        end: Whether it is let go afterwards.
        inputs: Arrays [*shape] by input name.
        instruction: In force; read by policies that take one.
        seed: Of the sampling, at the start; None: it follows from the sequence's number.
        argmax: Take the most probable action.
    """

    sequence: int
    start: bool
    end: bool
    inputs: Mapping[str, Array]
    instruction: str = ""
    seed: int | None = None
    argmax: bool = False


@dataclass(slots=True)
class _Sequence:
    lease: SlotLease
    seed: int
    counter: int = 0
    executed: tuple[int, ...] | None = None


class Sequences:
    """The sequences that are in play.

    Args:
        runtime: The version that they play on; its pool is theirs alone.
    """

    def __init__(self, runtime: TorchRuntime) -> None:
        self._runtime = runtime
        self._open: OrderedDict[int, _Sequence] = OrderedDict()  # least recently used first

    def __len__(self) -> int:
        """Return how many sequences hold a slot."""
        return len(self._open)

    def step(self, steps: Sequence[SequenceStep]) -> list[dict[str, Array] | StateError]:
        """Advance every sequence by its frame; return the outputs of each, or what is wrong with it."""
        found: list[dict[str, Array] | StateError] = []
        rows, played = [], []
        for step in steps:
            try:
                sequence = self._enter(step)
            except StateError as error:
                found.append(error)
                continue
            rows.append(
                Row(
                    sequence.lease.slot, sequence.counter == 0, step.inputs, sequence.executed, sequence.seed,
                    sequence.counter, 1.0, step.argmax, 1, step.instruction,
                )
            )  # fmt: skip
            played.append((len(found), step, sequence))
            found.append({})
        if rows:
            result = self._runtime.run(rows, want_log_prob=True)
            for i, (place, step, sequence) in enumerate(played):
                sequence.counter += 1
                action = result.actions[i]
                sequence.executed = tuple(action) if result.executed is None else result.executed[i]
                outputs: dict[str, Array] = {ACTION: np.array(action, np.int64)}
                if result.log_probs is not None:
                    outputs[LOG_PROB] = result.log_probs[i].astype(np.float32)
                if result.decoded is not None:
                    outputs[DESKTOP_ACTION] = desktop_as_json(result.decoded[i])
                found[place] = outputs
                if step.end:
                    self._leave(step.sequence)
        return found

    def _enter(self, step: SequenceStep) -> _Sequence:
        """Return the state of a step's sequence."""
        if step.start:
            self._leave(step.sequence)  # the same number may begin anew
            seed = derive_seed(0, step.sequence) if step.seed is None else step.seed
            pool = self._runtime.pool
            if not pool.free:
                self._leave(next(iter(self._open)))
            self._open[step.sequence] = _Sequence(pool.allocate()[0], seed)
        elif step.sequence not in self._open:
            raise StateError(
                f"sequence {step.sequence} has no memory here: it was idle too long, or never began; START"
            )
        self._open.move_to_end(step.sequence)
        return self._open[step.sequence]

    def _leave(self, sequence: int) -> None:
        state = self._open.pop(sequence, None)
        if state is not None:
            state.lease.pool.release(state.lease)


def desktop_as_json(action: Action) -> Array:
    """Return a desktop action as a JSON object, its UTF-8 in bytes: keys, buttons, mouse_dx_px, mouse_dy_px, scroll."""
    assert isinstance(action, DesktopAction)  # noqa: S101 - only such are decoded
    value = {name: getattr(action, name) for name in ("mouse_dx_px", "mouse_dy_px", "scroll")}
    value |= {"keys": sorted(action.keys), "buttons": sorted(action.buttons)}
    return np.frombuffer(json.dumps(value).encode(), np.uint8)
