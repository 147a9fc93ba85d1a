"""One session of a load: opens when it is meant to, sends when its frames are due, and counts what comes back.

A frame is due by the plan, whether or not earlier answers have come and however late this program is: its age is
measured from then. A frame that the server dropped for a newer one has no answer of its own; its age ends when the
answer to the newer one is here, since only then did the game get an action that had seen it. So a server that stands
still for a second makes twenty old frames at 20 Hz, and not one: what is not answered is not left out.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from playserve.actions import Action
from playserve.errors import PlayserveError, TimeoutExceededError
from playserve.settings import ActionSource, Pace
from playserve_client.aio import PolicyClient, Session
from playserve_client.load.frames import FramePool
from playserve_client.load.plan import SessionPlan
from playserve_client.load.tally import Ledger, name_of_error
from playserve_client.results import StepResult

__all__ = ["PlayRules", "Player"]

#: An answer that is later than this is not waited for: the session is given up, and what it kept is freed.
_GIVE_UP_S = 10.0
#: How long the last answers of a session are waited for.
_LAST_WAIT_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PlayRules:
    """How every session of a load plays.

    Attributes:
        policy: Its name.
        version: Version or alias; empty: the newest.
        pace: LIVE sends on time whatever happens; LOCKSTEP sends a frame when it is due and the last one is answered.
        rate_hz: Frames a second; 0, at LOCKSTEP: as fast as answers come.
        deadline_ns: Age beyond which a frame is a miss; None: there are no misses.
        budget_us: Step.budget_us of each frame.
        instruction: For policies that take one.
    """

    policy: str
    version: str = ""
    pace: Pace = Pace.LIVE
    rate_hz: float = 20.0
    deadline_ns: int | None = None
    budget_us: int = 0
    instruction: str = ""


class Player:
    """Plays one planned session against a server.

    Args:
        client: Dials; whoever made it closes it.
        plan: When.
        rules: How.
        pool: What is seen.
        ledger: Where everything is counted.
        begin_ns: 0 of the plan, monotonic.
        on_open: Is told of 1 more session that is open, and of -1 when it no longer is.
    """

    def __init__(
        self,
        client: PolicyClient,
        plan: SessionPlan,
        rules: PlayRules,
        pool: FramePool,
        ledger: Ledger,
        begin_ns: int,
        on_open: Callable[[int], None],
    ) -> None:
        self._client, self._plan, self._rules, self._pool = client, plan, rules, pool
        self._ledger, self._begin_ns, self._on_open = ledger, begin_ns, on_open
        self._end_ns = begin_ns + int(plan.end_s * 1e9)
        self._pending: deque[tuple[int, int]] = deque()  # (seq, when it was due) of frames without an action yet
        self._nothing_pending = asyncio.Event()
        self._nothing_pending.set()
        self._held: Action | None = None
        self._receiver: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Play from the planned start to the planned end, or to whatever comes before."""
        start_ns = self._begin_ns + int(self._plan.start_s * 1e9)
        await _sleep_until(start_ns)
        self._ledger.at(start_ns).counts["opens"] += 1
        session = self._session()
        try:
            await session
        except PlayserveError as error:
            self._ledger.at(start_ns).refused[name_of_error(error)] += 1
            return
        tally = self._ledger.at(start_ns)
        tally.counts["opened"] += 1
        tally.times["open"].add(time.monotonic_ns() - start_ns)
        self._on_open(1)
        try:
            await self._play(session)
        except PlayserveError as error:
            self._ledger.at(time.monotonic_ns()).errors[name_of_error(error)] += 1
        finally:
            self._on_open(-1)
            self._give_up()
            await session.close()
        self._ledger.at(time.monotonic_ns()).counts["ended"] += 1

    def _session(self) -> Session:
        rules = self._rules
        return self._client.play(
            rules.policy,
            version=rules.version,
            pace=rules.pace,
            seed=self._plan.seed,
            instruction=rules.instruction,
            rate_hz=rules.rate_hz if rules.pace is Pace.LIVE else 0.0,
        )

    async def _play(self, session: Session) -> None:
        """Send until the planned end, then wait a little for what is still unanswered."""
        self._receiver = receiver = asyncio.create_task(self._receive(session))
        # Whoever waits for an answer shall see that none will come.
        receiver.add_done_callback(lambda _: self._nothing_pending.set())
        try:
            if self._rules.rate_hz:
                await self._send_on_time(session)
            else:
                await self._send_in_turn(session)
            with suppress(TimeoutError):
                async with asyncio.timeout(_LAST_WAIT_S):
                    await self._nothing_pending.wait()
            self._check()
        finally:
            receiver.cancel()
            await asyncio.gather(receiver, return_exceptions=True)
            # A cancelled task keeps its traceback, and so us. Only the collector would undo that ring, and until then
            # the connection would stay open, at both ends.
            self._receiver = None

    def _check(self) -> None:
        """Raise what the receiver ended with."""
        if self._receiver is not None and self._receiver.done():
            self._receiver.result()

    # ---- up

    async def _send_on_time(self, session: Session) -> None:
        period_ns = 1e9 / self._rules.rate_hz
        first_ns = self._begin_ns + self._plan.start_s * 1e9 + self._plan.phase * period_ns
        # Frames that were due before the session was open are none: nothing was played yet.
        number = max(0, math.ceil((time.monotonic_ns() - first_ns) / period_ns))
        while (due_ns := int(first_ns + number * period_ns)) < self._end_ns:
            await _sleep_until(due_ns)
            if self._rules.pace is Pace.LOCKSTEP:
                await self._nothing_pending.wait()
            # A frame that is due counts even where those before it have used up all of the time.
            if time.monotonic_ns() < self._end_ns + _LAST_WAIT_S * 1e9:
                await self._send(session, number, due_ns)
            else:
                self._ledger.at(due_ns).counts["frames"] += 1
                self._pending.append((session.last_seq + 1, due_ns))
            number += 1

    async def _send_in_turn(self, session: Session) -> None:
        number = 0
        while (due_ns := time.monotonic_ns()) < self._end_ns:
            await self._send(session, number, due_ns)
            number += 1
            await self._nothing_pending.wait()

    async def _send(self, session: Session, number: int, due_ns: int) -> None:
        self._check()
        index = self._plan.seed + number
        action = self._pool.action(index)  # of a world; it is told nothing besides
        tells = session.spec.uses_executed_actions and action is None
        if self._rules.pace is Pace.LIVE and session.last_seq and tells:
            source = ActionSource.UNKNOWN if self._held is None else ActionSource.POLICY
            await session.executed(session.last_seq, self._held, source)
        tally = self._ledger.at(due_ns)
        tally.times["lag"].add(max(0, time.monotonic_ns() - due_ns))
        # Before the answer can come; what the step is refused for is counted as an error of it.
        self._pending.append((session.last_seq + 1, due_ns))
        self._nothing_pending.clear()
        tally.counts["frames"] += 1
        await session.send_step(
            self._pool.frame(index), action=action, budget_us=self._rules.budget_us, capture_time_ns=due_ns
        )

    # ---- down

    async def _receive(self, session: Session) -> None:
        opened = session.opened
        while True:
            asked_ns = time.monotonic_ns()
            try:
                result = await session.recv(_GIVE_UP_S)
            except TimeoutExceededError:
                now_ns = time.monotonic_ns()
                its_end = now_ns - asked_ns < _GIVE_UP_S / 2 * 1e9  # not that of our patience
                if its_end or (self._pending and now_ns - self._pending[0][1] > _GIVE_UP_S * 1e9):
                    raise
            except PlayserveError as error:
                if error.seq is None:
                    raise
                self._failed(error, error.seq)
            else:
                self._answered(result, time.monotonic_ns())
            if session.opened is not opened:
                opened = session.opened
                self._ledger.at(time.monotonic_ns()).counts["resumed"] += 1

    def _failed(self, error: PlayserveError, seq: int) -> None:
        """A step has failed; at LOCKSTEP nothing else will answer it."""
        self._ledger.at(time.monotonic_ns()).errors[name_of_error(error)] += 1
        if self._rules.pace is Pace.LOCKSTEP:
            self._reached(seq, time.monotonic_ns())

    def _answered(self, result: StepResult, now_ns: int) -> None:
        self._held = result.actions[0] if result.actions else None
        due_ns = next((due for seq, due in self._pending if seq == result.seq), None)
        self._reached(result.seq, now_ns)
        if due_ns is None:
            return  # repeated after a resume
        tally = self._ledger.at(due_ns)
        tally.counts["answers"] += 1
        tally.times["answer"].add(now_ns - due_ns)
        tally.times["server"].add(result.times.total_us * 1000)
        for dropped in result.dropped:
            tally.dropped(dropped.reason, dropped.in_memory)

    def _reached(self, seq: int, now_ns: int) -> None:
        """An action that has seen step `seq` is here, and so has it seen, or passed over, every one before."""
        deadline_ns = self._rules.deadline_ns
        while self._pending and self._pending[0][0] <= seq:
            _, due_ns = self._pending.popleft()
            tally = self._ledger.at(due_ns)
            tally.times["age"].add(now_ns - due_ns)
            tally.counts["misses"] += deadline_ns is not None and now_ns - due_ns > deadline_ns
        if not self._pending:
            self._nothing_pending.set()

    def _give_up(self) -> None:
        """Count what nobody will answer any more, as old as it is by now: it would have been at least that."""
        now_ns = time.monotonic_ns()
        for _, due_ns in self._pending:
            tally = self._ledger.at(due_ns)
            tally.counts["unanswered"] += 1
            tally.counts["misses"] += 1
            tally.times["age"].add(now_ns - due_ns)
        self._pending.clear()


async def _sleep_until(when_ns: int) -> None:
    # Event loops wake up to a millisecond early, and an answer must not come before its frame was due.
    while (left_ns := when_ns - time.monotonic_ns()) > 0:  # noqa: ASYNC110 - it is a clock that is waited for
        await asyncio.sleep(left_ns / 1e9)
