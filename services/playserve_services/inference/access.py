"""A session and the key under which it runs: what it uses of the key's quota, and its end with the key."""

from __future__ import annotations

from typing import TYPE_CHECKING

from playserve.errors import NoFreeSlotError, QuotaExceededError
from playserve_services.inference.catalog import LoadedPolicy
from playserve_services.inference.sessions import Arrival, EndReason, Frame, Session, Slot
from playserve_services.inference.slots import SlotLease

if TYPE_CHECKING:
    from playserve_services.auth.gate import Caller
    from playserve_services.inference.core import InferenceCore

__all__ = ["end_revoked", "give_back", "hand_over", "lease_slots", "over_quota", "shed"]


def _usage(rollout: bool, num_slots: int) -> tuple[int, int]:
    """Return what a session takes of a quota: sessions, environments."""
    return (0, num_slots) if rollout else (1, 0)


def lease_slots(policy: LoadedPolicy, count: int, caller: Caller | None, *, rollout: bool) -> list[SlotLease]:
    """Take slots, and of the caller's quota what they need; or raise, and take nothing.

    Raises:
        AccessEndedError: The caller's key was revoked since the stream began.
        QuotaExceededError: The caller's key may not have more at once.
        NoFreeSlotError: Not enough slots.
    """
    if caller is None:
        return policy.pool.allocate(count)
    caller.check()
    usage = _usage(rollout, count)
    caller.account.take(*usage)
    try:
        return policy.pool.allocate(count)
    except NoFreeSlotError:
        caller.account.give_back(*usage)
        raise


def give_back(session: Session) -> None:
    """Give back what a session took of its key's quota."""
    if session.caller is not None:
        session.caller.account.give_back(*_usage(session.rollout, len(session.slots)))


def hand_over(session: Session, caller: Caller) -> None:
    """Put a session under the key that its owner shows now: that one counts it, and can end it.

    Raises:
        AccessEndedError: The key was revoked since the stream began.
        QuotaExceededError: It is another key than before, and may not have one more.
    """
    caller.check()
    before = session.caller
    if before is None or before.principal.key_id != caller.principal.key_id:
        usage = _usage(session.rollout, len(session.slots))
        if before is None and session.admitted:
            caller.account.admit(*usage)  # another server let it in: nobody loses a game to the move
        else:
            caller.account.take(*usage)
        if before is not None:
            before.account.give_back(*usage)
    session.caller = caller


def over_quota(session: Session, now_ns: int) -> bool:
    """Whether a step that arrives now is more than the caller's key may send; asked once a step.

    Raises:
        QuotaExceededError: It is, and the policy's frames may not be left out.
    """
    if not session.live or session.caller is None:
        return False
    account = session.caller.account
    if account.frame(now_ns):
        return False
    if session.policy.keeps_every_frame:
        raise QuotaExceededError(
            f"more than {account.quota.frames_per_s:g} live steps a second over all sessions of this key",
            retry_after_s=account.frame_wait_s(),
        )
    return True


def shed(core: InferenceCore, slot: Slot, frame: Frame) -> None:
    """Leave out a live frame that is over the quota; raises what `InferenceCore.arrive` raises."""
    if slot.arrive(frame, core.limits.max_steps_in_flight, over_quota=True) is Arrival.SHED:
        core.metrics.shed(slot.session)


def end_revoked(core: InferenceCore) -> int:
    """End the sessions, detached ones too, whose key was revoked or has expired; return how many those were."""
    over = [(s, s.caller) for s in core.sessions() if s.caller is not None and not s.caller.holds()]
    for session, caller in over:
        core.end(session, EndReason.ACCESS_ENDED, caller.ended())
    return len(over)
