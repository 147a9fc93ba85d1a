"""What enters and leaves a session: frames that arrive, answers to them, and the settings that both carry."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from playserve.actions import Action
from playserve_services.inference.decoding import Executed
from playserve_services.inference.runtime import Array

if TYPE_CHECKING:
    from playserve_services.inference.sessions import Slot

__all__ = ["Answer", "Arrival", "DroppedStep", "Frame", "Settings"]

_NO_DEADLINE = 1 << 62


@dataclass(frozen=True, slots=True)
class Settings:
    """What a client can change while it plays; a frame carries those in force when it arrived."""

    revision: int = 1
    temperature: float = 1.0
    argmax: bool = False
    instruction: str = ""
    decode: str = ""
    log_prob: bool = False
    value: bool = False
    watch: bool = False
    record: bool = False


@dataclass(slots=True)
class DroppedStep:
    """A step without an answer of its own.

    Attributes:
        seq: Of the step.
        stale: Whether for its age; else a newer one came, or it was over the quota.
        in_memory: Whether it is remembered all the same.
        ticks: Game ticks since the step before it.
        shed: Whether it was over the quota.
    """

    seq: int
    stale: bool
    in_memory: bool
    ticks: int
    shed: bool = False


@dataclass(slots=True)
class Frame:
    """One observation that waits.

    Attributes:
        seq: Of the step; in rollouts the slot's own count.
        episode_id: Its episode.
        episode_seed: Seed if it begins an episode; None: the slot's goes on.
        inputs: Decoded arrays by name.
        ticks: Game ticks since the frame before it.
        shed_ticks: Those of frames right before it that were over the quota.
        arrived_ns: Monotonic clock.
        decode_ns: Time it took to unpack.
        deadline_ns: Monotonic clock after which the answer is late.
        budget: Whether the client set the deadline itself, so that a late answer is not sent.
        observe_only: No answer wanted.
        capture_time_ns: The client's, echoed.
        settings: In force.
        executed: What was executed before it, if that is known already; of a world's step, its action.
        executed_known: Whether `executed` is settled; otherwise LOCKSTEP takes the last answer.
        executed_told: Whether the client said so itself.
    """

    seq: int
    episode_id: int
    inputs: Mapping[str, Array]
    arrived_ns: int
    settings: Settings
    deadline_ns: int = _NO_DEADLINE
    episode_seed: int | None = None
    ticks: int = 1
    decode_ns: int = 0
    budget: bool = False
    observe_only: bool = False
    capture_time_ns: int = 0
    executed: Executed = None
    executed_known: bool = False
    executed_told: bool = False
    shed_ticks: int = 0


class Arrival(enum.Enum):
    """What became of a frame that arrived."""

    QUEUED = "queued"
    REPEATED = "repeated"
    SHED = "shed"


@dataclass(slots=True)
class Answer:
    """The result of one frame of one slot.

    Attributes:
        slot: Whose.
        frame: Which.
        action: One number a head; empty of a world.
        log_prob: float32 [H] or None.
        value: Or None.
        outputs: Arrays by output name.
        version: That made it.
        dropped: Steps without answers since the last answer.
        queue_ns: Waiting.
        compute_ns: In the engine.
        batch_size: Rows of the batch.
        decoded: The action itself where it is keyboard and mouse; None: `action` is an index, or empty.
    """

    slot: Slot
    frame: Frame
    action: tuple[int, ...]
    log_prob: Sequence[float] | None
    value: float | None
    outputs: Mapping[str, Array]
    version: str
    dropped: Sequence[DroppedStep]
    queue_ns: int
    compute_ns: int
    batch_size: int
    decoded: Action | None = None
