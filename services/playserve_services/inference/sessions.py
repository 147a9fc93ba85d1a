r"""A session and its slots: one state machine with one owner, and the mailbox rules of each slot.

Everything here runs on the event loop's thread and takes the time as an argument: no clocks, no locks, no I/O.

::

    (free) --open--> OPEN --stream lost--> DETACHED --resume--> OPEN
                      |  \                    |
                      |   --close---------> DRAINING --last answer--> ENDED (slots released)
                      |                       |
                      +--error, expiry, end---+--------------------> ENDED (slots released)
    OPEN, DETACHED --hand-off--> MOVING --done--> ENDED,  MOVING --failed--> OPEN, or DETACHED without a stream
"""

from __future__ import annotations

import enum
import secrets
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from playserve.actions import DesktopAction, clip_action, merge_executed
from playserve.errors import (
    EpisodeReusedError,
    ExecutedUnknownError,
    PlayserveError,
    QueueFullError,
    SeqNotIncreasingError,
)
from playserve.specs import GapMode, Merge
from playserve_services.inference.catalog import LoadedPolicy
from playserve_services.inference.decoding import Executed
from playserve_services.inference.frames import Answer, Arrival, DroppedStep, Frame, Settings
from playserve_services.inference.runtime import Array
from playserve_services.inference.slots import SlotLease

if TYPE_CHECKING:
    from playserve_services.auth.gate import Caller

__all__ = [
    "Answer", "Arrival", "DroppedStep", "EndReason", "Frame", "Session", "SessionState", "Settings", "Slot",
]  # fmt: skip

_MOST_SHED = 1024


class SessionState(enum.Enum):
    """Where a session stands."""

    OPEN = "open"
    DETACHED = "detached"
    MOVING = "moving"
    DRAINING = "draining"
    ENDED = "ended"


_ALLOWED = {
    SessionState.OPEN: {SessionState.DETACHED, SessionState.MOVING, SessionState.DRAINING, SessionState.ENDED},
    SessionState.DETACHED: {SessionState.OPEN, SessionState.MOVING, SessionState.ENDED},
    SessionState.MOVING: {SessionState.OPEN, SessionState.DETACHED, SessionState.DRAINING, SessionState.ENDED},
    SessionState.DRAINING: {SessionState.ENDED},
    SessionState.ENDED: set(),
}


class EndReason(enum.Enum):
    """Why a session ended; the label of the metric."""

    CLOSED = "closed"
    EXPIRED = "expired"
    DETACH_EXPIRED = "detach_expired"
    ENDED_BY_OPERATOR = "ended_by_operator"
    DRAINED = "drained"
    ENGINE_FAILED = "engine_failed"
    STREAM_LOST = "stream_lost"
    ACCESS_ENDED = "access_ended"
    MOVED = "moved"


class Slot:
    """One slot of one session: its mailbox and its place in the episode.

    Args:
        lease: The right to the slot.
        session: The owner.
        row: Environment number in a rollout; 0 for play.
        episode_id: Of the first episode.
        seed: Of the sampling.
    """

    __slots__ = (
        "age", "begun", "busy", "counter", "dropped", "entered_seq", "entered_ticks", "episode_id", "fresh",
        "last_action", "last_answer", "lease", "missed_ticks", "pending_executed", "pending_seed", "queue", "queued",
        "row", "seed", "seen_episode", "seen_seq", "session", "shed", "shed_steps", "shown_seq",
    )  # fmt: skip

    def __init__(self, lease: SlotLease, session: Session, row: int, episode_id: int, seed: int) -> None:
        self.lease = lease
        self.session = session
        self.row = row
        self.queue: deque[Frame] = deque()
        self.busy = False  # a frame of it is in the engine
        self.queued = False  # it stands in the batcher
        self.fresh = True  # its memory is empty
        self.age = 0  # frames in the memory
        self.begun = 0  # episodes that have entered it
        self.episode_id = episode_id  # of the memory
        self.seed = seed
        self.counter = 0  # frames that entered the memory under this seed
        self.entered_seq = 0  # highest seq in the memory, or in the engine
        self.entered_ticks = 1  # from the frame before in the memory to that one; 1 at the first of an episode
        self.missed_ticks = 0  # of frames that were left out since the last one that entered
        self.seen_seq = 0  # highest seq that arrived
        self.seen_episode = episode_id  # highest episode that arrived
        self.last_action: tuple[int, ...] | None = None
        self.last_answer: Answer | None = None
        self.pending_executed: tuple[int, Executed] | None = None  # for the frame after this seq
        self.pending_seed: tuple[int, int | None] | None = None  # (episode, seed) of a Reset, until a step enters
        self.dropped: list[DroppedStep] = []
        self.shed: Frame | None = None  # the last frame over the quota, until one that is not inherits from it
        self.shed_steps: list[DroppedStep] = []  # to be reported with the answer to that one
        self.shown_seq = 0  # of a live world, the step that is answered next; those before it only move the world

    def ready(self) -> bool:
        """Whether it can be put into a batch now."""
        return bool(self.queue) and not self.busy

    def arrive(self, frame: Frame, max_in_flight: int, *, over_quota: bool = False) -> Arrival:
        """Take a frame into the mailbox by the rules of the session's pace and the policy's gap rule.

        Args:
            frame: The frame.
            max_in_flight: Most that may wait where none may be dropped.
            over_quota: It is left out of the memory, and reported as dropped; what was executed before it, and what of
                its inputs sums up, goes to the next frame. Only where frames may be dropped.

        Raises:
            SeqNotIncreasingError: seq is not higher than the last, and no repeat of the last answered step.
            EpisodeReusedError: The episode id is lower than the last.
            QueueFullError: Too many wait, in LOCKSTEP or where the policy's inputs may not be dropped.
        """
        session = self.session
        if frame.seq <= self.seen_seq:
            last = self.last_answer
            if last is not None and last.frame.seq == frame.seq:
                return Arrival.REPEATED
            raise SeqNotIncreasingError(f"step {frame.seq} came after step {self.seen_seq}")
        if frame.episode_id < self.seen_episode:
            raise EpisodeReusedError(f"episode {frame.episode_id} came after episode {self.seen_episode}")
        keeps_all = not session.live or session.policy.keeps_every_frame
        if keeps_all and len(self.queue) + self.busy >= max_in_flight:
            raise QueueFullError(f"{max_in_flight} steps wait unanswered, which is the most where none may be dropped")
        if frame.episode_id == self.seen_episode and not session.policy.is_world:
            if self.pending_executed is not None and self.pending_executed[0] == self.seen_seq:
                frame.executed = self.pending_executed[1]
                frame.executed_known = frame.executed_told = True
        else:
            frame.executed_known = True  # nothing was executed before the first frame of an episode
        if session.live and not frame.executed_known:
            frame.executed_known = True  # nobody said what was executed: unknown
        if self.pending_seed is not None and self.pending_seed[0] == frame.episode_id:
            frame.episode_seed = self.pending_seed[1]
        self.pending_executed = None
        self.seen_seq = frame.seq
        self.seen_episode = frame.episode_id
        if self.shed is not None:
            self._inherit(self.shed, frame)
            frame.shed_ticks = self.shed.ticks + self.shed.shed_ticks
            self.shed = None
        if over_quota:
            self._shed(frame)
            return Arrival.SHED
        if session.live:
            self._make_room(frame)
        if self.shed_steps:
            self.dropped += self.shed_steps
            self.shed_steps = []
        self.queue.append(frame)
        return Arrival.QUEUED

    def _shed(self, frame: Frame) -> None:
        self.shed = frame
        self.shed_steps.append(DroppedStep(frame.seq, stale=False, in_memory=False, ticks=frame.ticks, shed=True))
        self.session.frames_dropped += 1
        if len(self.shed_steps) > _MOST_SHED:  # no complete list then, but all their ticks
            oldest = self.shed_steps.pop(0)
            self.shed_steps[0].ticks += oldest.ticks

    def _make_room(self, frame: Frame) -> None:
        """Apply the gap rule to what waits, before a newer frame joins."""
        policy = self.session.policy
        rule = policy.spec.gap_rule
        if policy.is_world:  # even one that is left behind has its actions: how many those are shall not hang on time
            return
        while self.queue and self.queue[-1].episode_id < frame.episode_id:
            self._drop(self.queue.pop())  # the memory will be emptied anyway
        if policy.keeps_every_frame:
            return
        if rule.mode is GapMode.SKIP:
            while self.queue:
                old = self.queue.pop()
                self._inherit(old, frame)
                self._drop(old)
        else:
            while len(self.queue) >= rule.catch_up_frames:
                old = self.queue.popleft()
                self._inherit(old, self.queue[0] if self.queue else frame)
                self._drop(old)

    def _inherit(self, old: Frame, heir: Frame) -> None:
        """Hand on what is never dropped with a frame: executed actions, inputs that sum up, its episode's seed."""
        if heir.episode_id != old.episode_id:
            return
        if not heir.executed_told:
            heir.executed, heir.executed_told = old.executed, old.executed_told
        elif isinstance(old.executed, DesktopAction) and isinstance(heir.executed, DesktopAction):
            # The memory will know one frame where two were played: what is held is the newer, motion was both.
            both = clip_action(merge_executed(old.executed, heir.executed), self.session.policy.spec.action)
            assert isinstance(both, DesktopAction)  # noqa: S101 - of the kind that went in
            heir.executed = both
        if heir.episode_seed is None:
            heir.episode_seed = old.episode_seed
        heir.inputs = _merge(self.session.policy, old.inputs, heir.inputs)

    def _drop(self, frame: Frame) -> None:
        self.dropped.append(DroppedStep(frame.seq, stale=False, in_memory=False, ticks=frame.ticks))
        self.missed_ticks += frame.ticks + frame.shed_ticks
        self.session.frames_dropped += 1

    def executed_at_rest(self) -> tuple[int, Executed] | None:
        """Return `pending_executed` as it is without the frames that wait.

        What was executed after the last step in the memory was told once, and is not told again. The steps of a world
        bring their own actions.
        """
        if self.session.policy.is_world:
            return None
        first = self.queue[0] if self.queue else self.shed
        if first is not None:
            known = first.executed_known and first.episode_id == self.episode_id
            return (self.entered_seq, first.executed) if known else None
        pending = self.pending_executed
        return pending if pending is not None and pending[0] == self.entered_seq else None

    def drop_waiting(self) -> int:
        """Forget what waits (the stream is gone and will send it again); return how many frames that were."""
        count = len(self.queue)
        self.pending_executed = self.executed_at_rest()
        self.queue.clear()
        self.shed, self.shed_steps = None, []
        # The client sends them again, those too that a newer frame had displaced: they are not dropped yet.
        self.dropped = [step for step in self.dropped if step.seq <= self.entered_seq]
        self.missed_ticks = 0
        self.seen_seq = self.shown_seq = self.entered_seq
        self.seen_episode = self.episode_id if self.pending_seed is None else self.pending_seed[0]
        return count

    def executed(self, seq: int, action: Executed) -> None:
        """Note what was executed in answer to frame `seq`; None: nothing, or unknown.

        Raises:
            ExecutedUnknownError: No such frame, or the frame after it is in the memory already; or it is a world.
        """
        if self.session.policy.is_world:
            raise ExecutedUnknownError(f"step {seq} is a world's: what is done in it is said by its steps' own actions")
        if seq == self.seen_seq and seq > 0:
            self.pending_executed = (seq, action)
            return
        before = self.entered_seq
        for frame in self.queue:
            if before == seq:
                frame.executed = action
                frame.executed_known = frame.executed_told = True
                return
            before = frame.seq
        raise ExecutedUnknownError(
            f"step {seq} is not among those whose successor can still learn what was executed "
            f"(in memory up to {self.entered_seq}, arrived up to {self.seen_seq})"
        )

    def reset(self, episode_id: int, seed: int | None) -> None:
        """Begin a new episode with the next frame."""
        if episode_id <= self.seen_episode:
            raise EpisodeReusedError(f"episode {episode_id} came after episode {self.seen_episode}")
        if self.session.live and not self.session.policy.is_world:
            while self.queue:
                self._drop(self.queue.pop())
        self.shed = None  # it stays among the steps that are reported
        self.seen_episode = episode_id
        self.pending_executed = None
        self.pending_seed = (episode_id, seed)

    def overtaken(self, frame: Frame) -> bool:
        """Return whether a step of a live world has no answer of its own, because a newer one waits.

        A step that waits when its turn comes is the next to be answered; those before it move the world all the same.
        So whoever sends faster than the world can be computed still sees it, each time at the newest of their steps.
        """
        if frame.seq > self.shown_seq:
            self.shown_seq = self.queue[-1].seq if self.queue else frame.seq
        return frame.seq < self.shown_seq

    def enter(self, frame: Frame) -> tuple[bool, Executed, int]:
        """Account for a frame that goes into the engine now; return (reset, executed, counter).

        The game ticks since the frame before it are in `entered_ticks` until the next one enters.
        """
        if frame.episode_id != self.episode_id:
            self.fresh = True
            self.episode_id = frame.episode_id
        if self.fresh and frame.episode_seed is not None:
            self.seed, self.counter = frame.episode_seed, 0
        if self.pending_seed is not None and self.pending_seed[0] <= frame.episode_id:
            self.pending_seed = None
        reset = self.fresh
        if reset:
            self.age = 0
            self.begun += 1
        self.age += 1
        if self.session.policy.is_world:
            executed = frame.executed
        else:
            executed = None if reset else frame.executed if frame.executed_known else self.last_action
        self.entered_ticks = 1 if reset else frame.ticks + frame.shed_ticks + self.missed_ticks
        self.missed_ticks = 0
        counter = self.counter
        self.counter += 1
        self.fresh = False
        self.entered_seq = frame.seq
        return reset, executed, counter


def _merge(policy: LoadedPolicy, old: Mapping[str, Array], new: Mapping[str, Array]) -> Mapping[str, Array]:
    """Return `new` with the inputs that merge by sum added up, saturating at the dtype's range."""
    sums = [spec for spec in policy.spec.inputs if spec.merge is Merge.SUM]
    if not sums:
        return new
    merged = dict(new)
    for spec in sums:
        total = old[spec.name].astype(np.float64) + new[spec.name]
        if spec.numpy_dtype.kind in "iu":
            info = np.iinfo(spec.numpy_dtype)
            total = total.clip(info.min, info.max)
        merged[spec.name] = total.astype(spec.numpy_dtype)
    return merged


Sink = Callable[[Sequence[Answer]], None]


@dataclass(slots=True)
class Session:
    """One player's game, or one evaluator's stream of environments.

    Attributes:
        session_id: Public id.
        principal: Name of who opened it; only they can resume it.
        caller: With which key; None: nobody asked.
        policy: Version in use.
        live: LIVE, else LOCKSTEP.
        follow: Take newer weights of the same layout.
        rate_hz: Steps a second; 0: turn based.
        settings: In force.
        opened_ns: Monotonic clock.
        client: What the client says of itself.
        codecs: Packings it may use.
        rollout: Whether it is a rollout.
        slots: One a game.
        resume_token: Secret.
        sink: Takes answers; None while detached.
        on_end: Tells the stream that the session is over, with the error to send or None.
        on_step_error: Tells the stream that one step of a slot failed.
        on_moved: Tells the stream where the session lives from now on: address and token.
        held: It stands still, for its memory is being handed on; what its client sends waits.
        admitted: It was taken over from another server, where its key's quota was asked.
    """

    session_id: str
    principal: str
    policy: LoadedPolicy
    live: bool
    rate_hz: float
    settings: Settings
    opened_ns: int
    follow: bool = False
    rollout: bool = False
    caller: Caller | None = None
    client: Any = None
    codecs: frozenset[int] = frozenset()
    slots: list[Slot] = field(default_factory=list)
    resume_token: bytes = field(default_factory=lambda: secrets.token_bytes(24))
    state: SessionState = SessionState.OPEN
    sink: Sink | None = None
    on_end: Callable[[PlayserveError | None], None] | None = None
    on_step_error: Callable[[Slot, int, PlayserveError], None] | None = None
    on_moved: Callable[[str, bytes], None] | None = None
    held: bool = False
    admitted: bool = False
    heard_ns: int = 0
    detached_ns: int = 0
    steps: int = 0
    frames_dropped: int = 0
    end_reason: EndReason | None = None

    def move_to(self, state: SessionState) -> None:
        """Change state; an impossible change is a bug."""
        assert state in _ALLOWED[self.state], f"session {self.session_id}: {self.state} -> {state}"  # noqa: S101
        self.state = state

    def let_stream_go(self) -> None:
        """Tell the stream that it had nothing any more."""
        self.sink = self.on_end = self.on_step_error = self.on_moved = None

    @property
    def outstanding(self) -> int:
        """Frames that wait or are being computed."""
        return sum(len(slot.queue) + slot.busy for slot in self.slots)

    @property
    def ended(self) -> bool:
        """Whether it is over."""
        return self.state is SessionState.ENDED
