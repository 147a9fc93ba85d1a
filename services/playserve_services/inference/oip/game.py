"""The session of one sequence: its frames on their way, its STARTs and its END. Event loop's thread only."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tritonclient.grpc import service_pb2 as oip

from playserve.errors import EngineFailedError, PlayserveError, SessionClosedError, TimeoutExceededError
from playserve_services.inference.core import InferenceCore
from playserve_services.inference.oip.parameters import Asked
from playserve_services.inference.oip.statistics import Statistics
from playserve_services.inference.oip.tensors import Inputs, TensorReader, answer_message
from playserve_services.inference.sessions import Answer, Frame, Session, SessionState, Settings, Slot
from playserve_services.triton.sequence_config import LOG_PROB

__all__ = ["Coming", "Game"]

#: An answer to come, or a PlayserveError.
Coming = asyncio.Future[oip.ModelInferResponse]


@dataclass(slots=True, eq=False)
class _Waiting:
    """A frame that is not answered yet, and what its answer is made of."""

    frame: Frame
    asked: Asked
    request_id: str
    outputs: Sequence[str]
    answer: Coming
    timer: asyncio.TimerHandle | None = None


class Game:
    """The session of a sequence, from a START to its end.

    Args:
        core: Owns the session.
        session: Just opened.
        reader: Of its policy.
        statistics: Counts what is answered.
        on_over: Called once the session has ended.
    """

    def __init__(
        self,
        core: InferenceCore,
        session: Session,
        reader: TensorReader,
        statistics: Statistics,
        on_over: Callable[[], None],
    ) -> None:
        self.session, self.reader = session, reader
        self._statistics, self._on_over = statistics, on_over
        self.episode, self.seed = session.slots[0].seen_episode, session.slots[0].seed
        self.playing = True  # no END came after the last START
        self._core = core
        self._waiting: dict[int, _Waiting] = {}  # by seq
        self._room: asyncio.Event = asyncio.Event()
        session.sink, session.on_end, session.on_step_error = self._answered, self._over, self._failed

    @property
    def over(self) -> bool:
        """Whether the session has ended, or is about to."""
        return self.session.state is not SessionState.OPEN

    async def room(self) -> None:
        """Wait until one more frame may wait."""
        while not self.over and self.session.outstanding >= self._core.limits.max_steps_in_flight:
            self._room.clear()
            await self._room.wait()

    def begin(self, seed: int) -> None:
        """Let the next frame find an empty memory."""
        self.episode += 1
        self.seed = seed

    def enter(self, asked: Asked, request_id: str, inputs: Inputs, arrived_ns: int) -> Coming:
        """Let a frame arrive; return its answer to come."""
        session, slot, loop = self.session, self.session.slots[0], asyncio.get_running_loop()
        settings = Settings(argmax=asked.argmax, instruction=inputs.instruction, log_prob=LOG_PROB in inputs.outputs)
        frame = Frame(
            seq=slot.seen_seq + 1, episode_id=self.episode, episode_seed=self.seed, inputs=inputs.arrays,
            arrived_ns=arrived_ns, settings=settings, decode_ns=time.monotonic_ns() - arrived_ns,
        )  # fmt: skip
        self._core.heard(session)
        waiting = _Waiting(frame, asked, request_id, inputs.outputs, loop.create_future())
        self._core.arrive(slot, frame)
        self._waiting[frame.seq] = waiting
        self.playing = not asked.end
        if asked.timeout_us:
            waiting.timer = loop.call_later(asked.timeout_us / 1e6, self._late, waiting)
        self._core.pump_soon()
        return waiting.answer

    def _late(self, waiting: _Waiting) -> None:
        """Take a frame back that has waited too long, unless it is being computed."""
        slot, asked = self.session.slots[0], waiting.asked
        others = [frame for frame in slot.queue if frame is not waiting.frame]
        if len(others) == len(slot.queue):
            return
        slot.queue.clear()
        slot.queue.extend(others)
        if waiting.frame.seq == slot.seen_seq and (asked.start or asked.end):
            self.playing = not asked.start  # it neither began anything, nor ended it
        error = TimeoutExceededError(
            f"the request waited longer than its timeout of {asked.timeout_us} microseconds; the sequence is as if it "
            "had not come"
        )
        self._settle(waiting.frame.seq, error)

    def _answered(self, answers: Sequence[Answer]) -> None:
        for answer in answers:
            self._settle(answer.frame.seq, answer)

    def _failed(self, slot: Slot, seq: int, error: PlayserveError) -> None:
        self._settle(seq, error)

    def _settle(self, seq: int, found: Answer | PlayserveError) -> None:
        waiting = self._waiting.pop(seq, None)
        if waiting is None:
            return
        self._tell(waiting, found)
        self._room.set()
        if not self.playing and not self._waiting:
            self._core.close(self.session)

    def _over(self, error: PlayserveError | None) -> None:
        waiting, self._waiting = self._waiting, {}
        for one in waiting.values():
            self._tell(one, error or SessionClosedError("the sequence was ended"))
        self._room.set()
        self._on_over()

    def _tell(self, waiting: _Waiting, found: Answer | PlayserveError) -> None:
        if waiting.timer is not None:
            waiting.timer.cancel()
        spec, took_ns = self.session.policy.spec, time.monotonic_ns() - waiting.frame.arrived_ns
        if isinstance(found, PlayserveError):
            self._statistics.failed(spec, took_ns)
        else:
            self._statistics.answered(spec, found, took_ns)
        if waiting.answer.done():  # whoever asked is gone
            return
        if isinstance(found, PlayserveError):
            waiting.answer.set_exception(found)
            return
        try:
            message = answer_message(spec.name, waiting.request_id, waiting.outputs, found)
        except Exception:  # the core ends the session
            waiting.answer.set_exception(EngineFailedError("the answer could not be made"))
            raise
        waiting.answer.set_result(message)
