"""Embedding instructions beside the game: in a thread that may wait, for sessions and for the episodes of rollouts.

A row of a rollout whose episode is new waits until its instruction is embedded, and what is sent for its environment
after it waits behind it. Nothing else does. Event loop's thread only.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor

from playserve.errors import EngineFailedError, PlayserveError, QueueFullError, StepFailedError
from playserve_services.inference.catalog import LoadedPolicy
from playserve_services.inference.core import InferenceCore
from playserve_services.inference.decoding import Executed
from playserve_services.inference.sessions import Frame, Session, Settings, Slot

__all__ = ["EmbedSoon", "EpisodeInstructions", "Waiting", "embed"]

_log = logging.getLogger(__name__)


async def embed(policy: LoadedPolicy, embedders: Executor, text: str) -> None:
    """Embed an instruction where that may take long: neither on the loop nor in the engine.

    Raises:
        EngineFailedError: The policy could not.
    """
    if not policy.spec.takes_instruction:
        return
    loop = asyncio.get_running_loop()
    try:
        await loop.run_in_executor(embedders, policy.runtime.prepare_instruction, text)
    except PlayserveError:
        raise
    except Exception as error:
        _log.exception("an instruction could not be embedded")
        raise EngineFailedError("the instruction could not be embedded") from error


class EmbedSoon:
    """Embeds instructions that nobody waits for, each once at a time.

    Args:
        embedders: Threads that embed.
    """

    def __init__(self, embedders: Executor) -> None:
        self._embedders = embedders
        self._under_way: set[tuple[int, str]] = set()

    def __call__(self, policy: LoadedPolicy, text: str) -> None:
        """Begin to embed an instruction for a version, unless that is under way."""
        key = (id(policy), text)
        if key not in self._under_way:
            self._under_way.add(key)
            self._embedders.submit(self._embed, policy, text, key)

    def _embed(self, policy: LoadedPolicy, text: str, key: tuple[int, str]) -> None:
        try:
            policy.runtime.prepare_instruction(text)
        except Exception as error:  # noqa: BLE001 - sessions stay on the version that can read it
            known = isinstance(error, PlayserveError)
            _log.warning(
                "policy %s version %s cannot read instructions: %s",
                policy.spec.name, policy.spec.version, error, exc_info=None if known else error,
            )  # fmt: skip
        else:
            self._under_way.discard(key)


@dataclasses.dataclass(slots=True)
class Waiting:
    """What one message brought for one environment.

    Attributes:
        frame: Its row, or None.
        text: Instruction of the row's episode, if that is new.
        told: What was executed before, in a tuple of one; empty: the message did not say.
    """

    frame: Frame | None
    text: str = ""
    told: tuple[Executed, ...] = ()


class EpisodeInstructions:
    """The instructions of one rollout's environments.

    Args:
        core: Takes the rows.
        session: The rollout.
        embedders: Threads that embed.
        refuse: Told the environment and the error of each row that fails.
        limit: Most rows of one environment that wait here.
    """

    def __init__(
        self,
        core: InferenceCore,
        session: Session,
        embedders: Executor,
        refuse: Callable[[int, PlayserveError], None],
        limit: int,
    ) -> None:
        self._core, self._session, self._embedders = core, session, embedders
        self._refuse, self._limit = refuse, limit
        self._episodes: dict[int, tuple[int, Settings]] = {}  # by environment: its episode, and the settings of that
        self._lines: dict[int, deque[Waiting]] = {}  # by environment: what waits
        self._tasks: set[asyncio.Task[None]] = set()

    def waits(self, env_id: int) -> bool:
        """Return whether something of an environment waits, so that more has to wait behind it."""
        return env_id in self._lines

    def take(self, slot: Slot, item: Waiting) -> None:
        """Let a row enter its mailbox, now or when its turn comes; its error goes to `refuse`."""
        line = self._lines.get(slot.row)
        try:
            if line is None:
                self._enter(slot, item)
            elif item.frame is not None and sum(w.frame is not None for w in line) >= self._limit:
                raise QueueFullError(f"{self._limit} rows wait unanswered")
            else:
                line.append(item)
        except PlayserveError as error:
            self._refuse(slot.row, error)

    async def settled(self) -> None:
        """Return once nothing waits."""
        while self._tasks:
            await asyncio.wait(list(self._tasks))

    def cancel(self) -> None:
        """Forget what waits: the stream is gone."""
        self._lines.clear()
        for task in self._tasks:
            task.cancel()

    def _enter(self, slot: Slot, item: Waiting, *, embedded: bool = False) -> None:
        if item.told:
            slot.executed(slot.seen_seq, item.told[0])
            item.told = ()
        frame = item.frame
        if frame is None:
            return
        known = self._episodes.get(slot.row)
        settings = frame.settings
        if known is not None and known[0] == frame.episode_id:
            settings = known[1]
        else:
            settings = dataclasses.replace(settings, instruction=item.text)
        if not embedded and not self._session.policy.runtime.knows_instruction(settings.instruction):
            item.text = settings.instruction
            self._wait(slot, item)
            return
        frame.settings, frame.seq = settings, slot.seen_seq + 1
        self._core.arrive(slot, frame)
        self._episodes[slot.row] = frame.episode_id, settings

    def _wait(self, slot: Slot, item: Waiting) -> None:
        self._lines[slot.row] = deque([item])
        task = asyncio.get_running_loop().create_task(self._embed(slot, item))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _embed(self, slot: Slot, item: Waiting) -> None:
        failed: PlayserveError | None = None
        try:
            await embed(self._session.policy, self._embedders, item.text)
        except PlayserveError as error:
            failed = StepFailedError(str(error))
        line = self._lines.pop(slot.row, None)
        if line is None or self._session.ended:
            return
        self._leave(slot, line, failed)
        self._core.pump_soon()

    def _leave(self, slot: Slot, line: deque[Waiting], failed: PlayserveError | None) -> None:
        """Let a line enter, its first row with an instruction that is embedded, or that could not be."""
        embedded = True
        while line:
            item = line.popleft()
            try:
                if embedded and failed is not None:
                    raise failed
                self._enter(slot, item, embedded=embedded)
            except PlayserveError as error:
                self._refuse(slot.row, error)
            embedded = False
            if slot.row in self._lines:  # the next episode's instruction is new too
                self._lines[slot.row].extend(line)
                return
