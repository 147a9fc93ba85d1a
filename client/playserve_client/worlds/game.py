"""A world that is played in real time: actions go up at its rate, and what comes back is shown, whatever is late.

No window and no keyboard: whoever has those calls :meth:`WorldGame.tick` once a period.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from playserve.actions import Action, DesktopAction, merge_executed
from playserve.errors import PlayserveError, QueueFullError, QuotaExceededError, TimeoutExceededError
from playserve_client.results import StepResult
from playserve_client.session import Session
from playserve_client.worlds.view import Shown, idle_action, show

__all__ = ["Score", "WorldGame"]

#: Steps on their way besides those that the network needs: one is computed, one waits for its turn.
_UNDER_WAY = 2
_RATE_WINDOW = 32


@dataclass(slots=True)
class Score:
    """Numbers of a game.

    Attributes:
        episode: Worlds that were begun.
        steps: Actions of this world that were answered, or that a later frame shows.
        reward: Sum in this world.
        uncertainty: Of the newest frame, nats a token; None: the world does not say.
        latency_ms: From the newest frame's action to the frame.
        frames: Frames that came, in all worlds.
        left_out: Frames that were not sent, because a newer one was.
        waited: Periods in which no action was sent, because the world is slower than its rate.
        refused: Actions that the server refused; they were sent again with what came after them.
        rewards: Of the worlds that are over.
    """

    episode: int = 0
    steps: int = 0
    reward: float = 0.0
    uncertainty: float | None = None
    latency_ms: float = 0.0
    frames: int = 0
    left_out: int = 0
    waited: int = 0
    refused: int = 0
    rewards: list[float] = field(default_factory=list)


class WorldGame:
    """Plays one session of a world at LIVE. One thread.

    Args:
        session: Open, of a world that :func:`check_world` takes.
        rate_hz: Actions a second.
        round_trip_s: To the server and back.
        clock: Monotonic, seconds.
    """

    def __init__(
        self, session: Session, rate_hz: float, round_trip_s: float = 0.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._session, self._clock = session, clock
        self._most = _UNDER_WAY + math.ceil(round_trip_s * rate_hz)
        self._under_way: dict[int, Action] = {}  # by seq, oldest first
        self._unsent: Action | None = None
        self._came: deque[float] = deque(maxlen=_RATE_WINDOW)
        self._episode, self._begun = session.episode_id, False
        self.score = Score()
        self.newest: Shown | None = None
        self.over = False  # the world has ended; `begin` makes the next one

    @property
    def ready(self) -> bool:
        """Whether an action would be sent now, alone, and to a world that has begun."""
        return self._begun and not self.over and self._unsent is None and len(self._under_way) < self._most

    def tick(self, action: Action | None) -> Shown | None:
        """Take what has come, then do something; return what is to be shown, if that is new.

        An action that cannot be sent now goes with the next one: what is held is the newer, motion is added up.

        Args:
            action: What is done; None: nothing, except that a world begins, with the action that does nothing.

        Raises:
            PlayserveError: The session is over, or a step failed.
        """
        shown = self._take()
        if self.over:
            return shown
        if action is not None:
            self._unsent = _joined(self._unsent, action)
        elif self._unsent is None and not self._begun:
            self._unsent = idle_action(self._session.spec.action)
        if self._unsent is None:
            return shown
        if len(self._under_way) >= self._most:
            self.score.waited += 1
            return shown
        sent, self._unsent, self._begun = self._unsent, None, True
        self._under_way[self._session.send_step({}, action=sent, episode_id=self._episode)] = sent
        return shown

    def begin(self) -> None:
        """Begin another world with the next step."""
        if self.score.steps:
            self.score.rewards.append(self.score.reward)
        self._episode = max(self._episode, self._session.episode_id) + 1
        self._unsent, self._begun, self.over = None, False, False
        self.score.episode += 1
        self.score.steps, self.score.reward = 0, 0.0

    def frames_per_s(self) -> float:
        """Return how many frames came a second lately."""
        if len(self._came) < 2 or self._clock() - self._came[-1] > 1.0:
            return 0.0
        return (len(self._came) - 1) / max(self._came[-1] - self._came[0], 1e-9)

    def report(self) -> dict[str, Any]:
        """Return the numbers as a JSON value."""
        score = self.score
        rewards = [*score.rewards, *([score.reward] if score.steps else [])]
        return {
            "worlds": len(rewards), "rewards": rewards, "frames": score.frames, "frames_left_out": score.left_out,
            "periods_waited": score.waited, "actions_refused": score.refused,
            "frames_per_s": round(self.frames_per_s(), 2), "latency_ms": round(score.latency_ms, 2),
        }  # fmt: skip

    def _take(self) -> Shown | None:
        """Read everything that has come; return the newest frame."""
        newest = None
        while True:
            try:
                result = self._session.recv(timeout_s=0)
            except TimeoutExceededError:
                return newest
            except (QueueFullError, QuotaExceededError) as error:
                if error.seq is None:
                    raise
                self._refused(error)
                continue
            newest = self._shown(result) or newest

    def _refused(self, error: PlayserveError) -> None:
        self.score.refused += 1
        action = None if error.seq is None else self._under_way.pop(error.seq, None)
        if action is not None:
            self._unsent = action if self._unsent is None else _joined(action, self._unsent)

    def _shown(self, result: StepResult) -> Shown | None:
        for seq in [seq for seq in self._under_way if seq <= result.seq]:
            del self._under_way[seq]
        if result.episode_id != self._episode:
            return None  # of a world that was left
        shown, score = show(result), self.score
        score.steps += 1 + sum(drop.in_memory for drop in result.dropped)
        score.left_out += len(result.dropped)
        score.frames += 1
        score.reward += shown.reward
        score.uncertainty = shown.uncertainty
        score.latency_ms = 0.0 if result.round_trip_s is None else result.round_trip_s * 1e3
        self._came.append(self._clock())
        self.over = self.over or shown.terminated
        self.newest = shown
        return shown


def _joined(older: Action | None, newer: Action) -> Action:
    """Return two actions as the one that is sent for both."""
    if isinstance(older, DesktopAction) and isinstance(newer, DesktopAction):
        return merge_executed(older, newer)
    return newer
