"""What of a session is no tensor and has to go on elsewhere bit for bit: its place, its random stream, its settings.

A record says how a session is after its stream was lost: frames that wait are not in it, for its client sends them
again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from playserve.actions import DesktopAction
from playserve.errors import DataLossError
from playserve_services.inference.frames import DroppedStep, Settings
from playserve_services.inference.sessions import Slot

__all__ = ["SlotRecord"]

# What was executed may have any length of numbers, or be keyboard and mouse.
_Executed = tuple[int, ...] | DesktopAction | None


class SlotRecord(BaseModel):
    """One slot of a play session, as JSON carries it. Fields are those of `Slot` and `Session`.

    Attributes:
        layout: Digest of the memory's layout.
        policy: Name.
        version: Version.
        pending_executed: What was executed after a step, for the step after it: (seq, executed).
        pending_seed: Of a Reset whose episode has no step yet: (episode, seed).
        dropped: Steps that the next answer reports.
        steps: Steps that were answered.
        frames_dropped: Frames without an answer of their own.
        age_us: Since the session was opened.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    layout: str
    policy: str
    version: str
    seed: int = Field(ge=0, lt=1 << 64)
    counter: int = Field(ge=0)
    episode_id: int = Field(ge=0)
    entered_seq: int = Field(ge=0)
    fresh: bool
    age: int = Field(ge=0)
    last_action: tuple[int, ...] | None
    pending_executed: tuple[int, _Executed] | None
    pending_seed: tuple[int, int | None] | None
    dropped: list[DroppedStep]
    settings: Settings
    steps: int = Field(ge=0)
    frames_dropped: int = Field(ge=0)
    age_us: int = Field(ge=0)

    @classmethod
    def of(cls, slot: Slot, now_ns: int = 0) -> SlotRecord:
        """Return the record of a slot.

        Args:
            slot: Nothing of it is in the engine.
            now_ns: Monotonic clock, for the session's age; 0: it is not told.
        """
        session = slot.session
        return cls.model_construct(
            layout=slot.lease.pool.digest,
            policy=session.policy.spec.name,
            version=session.policy.spec.version,
            seed=slot.seed,
            counter=slot.counter,
            episode_id=slot.episode_id,
            entered_seq=slot.entered_seq,
            fresh=slot.fresh,
            age=slot.age,
            last_action=slot.last_action,
            pending_executed=slot.executed_at_rest(),
            pending_seed=slot.pending_seed,
            dropped=[step for step in slot.dropped if step.seq <= slot.entered_seq],
            settings=session.settings,
            steps=session.steps,
            frames_dropped=session.frames_dropped,
            age_us=max(0, now_ns - session.opened_ns) // 1000,
        )

    @classmethod
    def read(cls, header: Mapping[str, Any]) -> SlotRecord:
        """Return the record that an export's header holds.

        Raises:
            DataLossError: It lacks a field, or one is of another type.
        """
        try:
            return cls.model_validate(dict(header))
        except ValidationError as error:
            where = ", ".join(sorted({str(e["loc"][0]) for e in error.errors() if e["loc"]}))
            raise DataLossError(f"the header of an exported state is not whole: {where}") from error

    def header(self) -> dict[str, Any]:
        """Return what JSON can hold of it."""
        return self.model_dump(mode="json")

    def restore(self, slot: Slot) -> None:
        """Take everything over into a slot that has not played yet."""
        session = slot.session
        slot.seed, slot.counter, slot.fresh, slot.age = self.seed, self.counter, self.fresh, self.age
        slot.episode_id = slot.seen_episode = self.episode_id
        if self.pending_seed is not None:
            slot.seen_episode = self.pending_seed[0]
        slot.entered_seq = slot.seen_seq = self.entered_seq
        slot.last_action = self.last_action
        slot.pending_executed, slot.pending_seed = self.pending_executed, self.pending_seed
        slot.dropped = list(self.dropped)
        session.settings = self.settings
        session.steps, session.frames_dropped = self.steps, self.frames_dropped
