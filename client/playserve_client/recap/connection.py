"""One client of Open P2P: its connection is a LIVE session at our server, from its first frame to its end.

Three tasks work on it: one reads frames, one sends the newest of them up, one brings answers down. A client that only
connects, to see whether somebody is there, costs no session.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from playserve.actions import DesktopAction
from playserve.errors import PlayserveError, TimeoutExceededError
from playserve.settings import ActionSource
from playserve_client.aio import Session
from playserve_client.play.scene import desktop_action_of
from playserve_client.recap.framing import pack, read_message
from playserve_client.recap.messages import Eye, Hands, parse_frame
from playserve_client.results import StepResult

__all__ = ["Connection", "Limits", "Tally"]

_log = logging.getLogger(__name__)

#: Frames that wait for the adapter itself. The server has its own rule for those that wait for the policy.
_WAITING = 4
#: Questions whose answers are still expected.
_ASKED = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a client may do.

    Attributes:
        max_message_bytes: Longest message.
        idle_s: A client that sends no whole frame for so long is gone.
        stall_s: A client that takes no answer for so long is gone.
        max_clients: Connections at once.
    """

    max_message_bytes: int = 8 * 1024 * 1024
    idle_s: float = 60.0
    stall_s: float = 10.0
    max_clients: int = 16


@dataclass(slots=True)
class Tally:
    """What a connection did: frames that came, were left out here, and were answered; steps that failed."""

    frames: int = 0
    left_out: int = 0
    answers: int = 0
    failed: int = 0


class Connection:
    """Plays for one client; see the module.

    Args:
        reader: Of its stream.
        writer: Of its stream; whoever made it closes it.
        play: Makes a session that is not open yet.
        limits: What it may do.
        name: For the log.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        play: Callable[[], Session],
        limits: Limits,
        name: str,
    ) -> None:
        self._reader, self._writer, self._play, self._limits, self._name = reader, writer, play, limits, name
        self._waiting: deque[bytes] = deque()
        self._skipped = 0  # frames left out since the last one that went up
        self._arrived = asyncio.Event()
        self._asked: OrderedDict[int, int] = OrderedDict()  # seq -> the client's id of the frame
        self.tally = Tally()

    async def run(self) -> None:
        """Play until the client goes.

        Raises:
            PlayserveError: What ended it otherwise: a message that is none, a session that was refused or died.
        """
        await _until_one_ends(self._read(), self._serve())

    async def _read(self) -> None:
        """Take frames; returns when the client has gone."""
        while True:
            try:
                async with asyncio.timeout(self._limits.idle_s):
                    message = await read_message(self._reader, self._limits.max_message_bytes)
            except TimeoutError:
                raise TimeoutExceededError(f"no whole frame came for {self._limits.idle_s:g} s") from None
            except ConnectionError:
                return
            if message is None:
                return
            self.tally.frames += 1
            if len(self._waiting) == _WAITING:
                self._waiting.popleft()
                self._skipped += 1
                self.tally.left_out += 1
            self._waiting.append(message)
            self._arrived.set()

    async def _serve(self) -> None:
        await self._arrived.wait()
        parse_frame(self._waiting[0])  # what is no frame costs no session
        async with self._play() as session:
            hands = Hands(desktop_action_of(session.spec))
            await _until_one_ends(self._send(session, Eye(session.spec), hands), self._answer(session, hands))

    async def _send(self, session: Session, eye: Eye, hands: Hands) -> None:
        while True:
            await self._arrived.wait()
            message, ticks, self._skipped = self._waiting.popleft(), 1 + self._skipped, 0
            if not self._waiting:
                self._arrived.clear()
            frame = parse_frame(message)
            # Resizing a screen takes as long as a step; another client's answers must not wait for it.
            picture = eye.see(frame) if eye.fits(frame) else await asyncio.to_thread(eye.see, frame)
            if session.last_seq and session.spec.uses_executed_actions:
                done = hands.executed()
                source = ActionSource.NONE if done is None else ActionSource.POLICY
                await session.executed(session.last_seq, done, source)
            self._asked[session.last_seq + 1] = frame.id
            if len(self._asked) > _ASKED:
                self._asked.popitem(last=False)
            await session.send_step({eye.name: picture}, ticks=ticks)

    async def _answer(self, session: Session, hands: Hands) -> None:
        while True:
            asked_at = time.monotonic()
            try:
                result = await session.recv(self._limits.idle_s)
            except TimeoutExceededError:
                if time.monotonic() - asked_at < self._limits.idle_s / 2:  # the session's own end, not our patience's
                    raise
            except PlayserveError as error:
                if error.seq is None:
                    raise
                # Their protocol has no word for it; theirs would stay silent, too.
                self.tally.failed += 1
                self._asked.pop(error.seq, None)
                _log.warning("recap client %s: step %d failed: %s", self._name, error.seq, error)
            else:
                await self._tell(result, hands)

    async def _tell(self, result: StepResult, hands: Hands) -> None:
        """Send an answer down; frames before it get none, as with their server."""
        frame_id = self._asked.get(result.seq)
        while self._asked and next(iter(self._asked)) <= result.seq:
            self._asked.popitem(last=False)
        action = result.actions[0]
        if frame_id is None or not isinstance(action, DesktopAction):
            return
        self._writer.write(pack(hands.answer(frame_id, action).SerializeToString()))
        self.tally.answers += 1
        try:
            async with asyncio.timeout(self._limits.stall_s):
                await self._writer.drain()
        except TimeoutError:
            raise TimeoutExceededError(f"the client took no answer for {self._limits.stall_s:g} s") from None


async def _until_one_ends(*work: Coroutine[Any, Any, None]) -> None:
    """Run side by side until one of them ends, then end the others; raise what any of them raised."""
    tasks = [asyncio.create_task(item) for item in work]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome
