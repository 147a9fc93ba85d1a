"""From picked slots to a batch: which waiting frames enter the memory now, in which rounds.

Loop's thread only; the time is an argument.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from playserve_services.inference.catalog import LoadedPolicy
from playserve_services.inference.engine import Batch
from playserve_services.inference.metrics import Metrics
from playserve_services.inference.runtime import Row
from playserve_services.inference.sessions import DroppedStep, Frame, Slot
from playserve_services.inference.slots import SlotLease

__all__ = ["PlannedSlot", "plan_batch"]


@dataclass(slots=True)
class PlannedSlot:
    """What a slot has in a batch.

    Attributes:
        slot: The slot.
        lease: Its lease at dispatch; checked when results come back.
        frames: What enters its memory, oldest first.
        place: (round, row) of the newest frame.
        dropped: Steps before the newest frame, and after the answer before it, that get no answer.
    """

    slot: Slot
    lease: SlotLease
    frames: list[Frame]
    place: tuple[int, int]
    dropped: list[DroppedStep]


def plan_batch(policy: LoadedPolicy, slots: Sequence[Slot], now_ns: int, metrics: Metrics) -> Batch:
    """Take from each slot the frames that enter the memory in this batch, and lay them out in rounds."""
    rounds: list[list[Row]] = []
    planned = []
    want_log_prob = False
    for slot in slots:
        plan = _take(policy, slot, now_ns, metrics)
        for number, frame in enumerate(plan.frames):
            if number == len(rounds):
                rounds.append([])
            plan.place = (number, len(rounds[number]))
            want_log_prob |= frame.settings.log_prob
            rounds[number].append(_row(slot, frame))
        planned.append(plan)
        if len(plan.dropped) > 1:  # those over the quota are noted when the next one comes
            plan.dropped.sort(key=lambda step: step.seq)
        if not plan.frames[-1].observe_only:  # its answer reports them; what is dropped from now on comes after it
            slot.dropped = []
    model = policy.time_model
    expected_s = sum(model.predict(len(rows)) for rows in rounds) if model.known else math.inf
    return Batch(policy.runtime, rounds, want_log_prob, (policy, planned), expected_s)


def _take(policy: LoadedPolicy, slot: Slot, now_ns: int, metrics: Metrics) -> PlannedSlot:
    """Take the frames of one slot, and note those that will have no answer."""
    # Lockstep answers every frame, so only one enters at a time; live takes all that the gap rule left. A world's enter
    # one at a time as well: each costs a whole step, which others may share.
    live = slot.session.live
    count = len(slot.queue) if live and not policy.keeps_every_frame else 1
    frames = [slot.queue.popleft() for _ in range(count)]
    newest = frames[-1]
    for older in frames[:-1]:
        if not older.observe_only:
            slot.dropped.append(DroppedStep(older.seq, stale=False, in_memory=True, ticks=older.ticks))
            slot.session.frames_dropped += 1
    if live and policy.is_world and slot.overtaken(newest) and not newest.observe_only:
        slot.dropped.append(DroppedStep(newest.seq, stale=False, in_memory=True, ticks=newest.ticks))
        slot.session.frames_dropped += 1
        newest.observe_only = True
        metrics.dropped(slot.session, 1)
    if live and newest.budget and now_ns > newest.deadline_ns and not newest.observe_only:
        slot.dropped.append(DroppedStep(newest.seq, stale=True, in_memory=True, ticks=newest.ticks))
        newest.observe_only = True
        metrics.stale(slot.session)
    slot.busy = True
    return PlannedSlot(slot, slot.lease, frames, (0, 0), slot.dropped)


def _row(slot: Slot, frame: Frame) -> Row:
    reset, executed, counter = slot.enter(frame)
    settings = frame.settings
    return Row(
        slot.lease.slot,
        reset,
        frame.inputs,
        executed,
        slot.seed,
        counter,
        settings.temperature,
        settings.argmax,
        slot.entered_ticks,
        settings.instruction,
        settings.decode,
    )
