"""Atari games as agents, experts and recorders meet them: the standard preprocessing straight on the emulator.

The frames equal those of ``gymnasium.wrappers.AtariPreprocessing`` in a ``FrameStackObservation`` byte for byte (a
test holds them to it), but no RGB screen is made on the way.
"""

from __future__ import annotations

import difflib
from collections import deque
from typing import Any

import cv2
import gymnasium
import numpy as np
from ale_py import Action, ALEInterface, LoggerMode, roms
from gymnasium.utils import seeding
from numpy.typing import NDArray

from playserve.errors import BadActionError, BadSettingError

__all__ = ["FRAME_SKIP", "MAX_STEPS", "NOOP_MAX", "STACK", "AtariEnv", "action_names", "atari_games"]

FRAME_SKIP = 4
STACK = 4
SIDE = 84
NOOP_MAX = 30
#: The field's cap: 27,000 steps of 4 frames are 30 minutes of play.
MAX_STEPS = 27_000


def atari_games() -> tuple[str, ...]:
    """Return the games whose ROM comes with ale-py, such as "space_invaders"."""
    return tuple(sorted(roms.get_all_rom_ids()))


def _rom_path(game: str) -> str:
    games = atari_games()
    if game not in games:
        close = difflib.get_close_matches(game, games, n=3, cutoff=0.5)
        hint = f"; close names: {', '.join(close)}" if close else f"; there are {len(games)}, such as breakout, pong"
        raise BadSettingError(f"there is no Atari game {game!r}{hint}")
    return str(roms.get_rom_path(game))


def _emulator(game: str, stickiness: float) -> tuple[ALEInterface, str]:
    path = _rom_path(game)
    # The emulator prints a banner for each of its copies otherwise.
    ALEInterface.setLoggerMode(LoggerMode.Error)
    ale = ALEInterface()
    ale.setFloat("repeat_action_probability", stickiness)
    return ale, path


def action_names(game: str) -> tuple[str, ...]:
    """Return the names of the minimal action set of `game`, such as ("NOOP", "UP", "DOWN")."""
    ale, path = _emulator(game, 0.0)
    ale.loadROM(path)
    return tuple(action.name for action in ale.getMinimalActionSet())


class AtariEnv(gymnasium.Env[NDArray[np.uint8], np.int64 | int]):
    """One Atari game under the field's protocol: minimal actions, full game, unclipped rewards, no-op starts.

    An episode is a function of the seed given to :meth:`reset` and of the actions. At stickiness 0 the seed sets only
    the number of no-ops, so episodes of one deterministic agent repeat after at most `noop_max` of them.

    Args:
        game: A name of :func:`atari_games`.
        stickiness: Probability that a frame repeats the previous action: 0 or 0.25 in the field.
        frame_skip: Emulator frames a step; the observation is the maximum of the last two.
        noop_max: 1 to this many no-op frames open an episode; 0: none.
        max_steps: Steps after which an episode is truncated.
        stack: Frames of an observation; policies with a memory of their own take 1.
    """

    def __init__(
        self,
        game: str,
        *,
        stickiness: float = 0.0,
        frame_skip: int = FRAME_SKIP,
        noop_max: int = NOOP_MAX,
        max_steps: int = MAX_STEPS,
        stack: int = STACK,
    ) -> None:
        if not 0.0 <= stickiness < 1.0:
            raise BadSettingError(f"stickiness is at least 0 and below 1, not {stickiness}")
        if frame_skip < 2 or noop_max < 0 or max_steps < 1 or stack < 1:
            raise BadSettingError(
                f"frame_skip is at least 2, noop_max 0, max_steps and stack 1, not {frame_skip}, {noop_max}, "
                f"{max_steps}, {stack}"
            )
        self.game = game
        self.stickiness = stickiness
        self.frame_skip = frame_skip
        self.noop_max = noop_max
        self.max_steps = max_steps
        self.stack = stack
        self._ale, self._path = _emulator(game, stickiness)
        self._ale.loadROM(self._path)
        self._actions: list[Action] = self._ale.getMinimalActionSet()
        self.action_names: tuple[str, ...] = tuple(action.name for action in self._actions)
        height, width = self._ale.getScreenDims()
        self._screens = np.zeros((2, height, width), np.uint8)
        self._frames: deque[NDArray[np.uint8]] = deque(maxlen=stack)
        self._ended = True
        self.score = 0.0
        self.steps = 0
        self.noops = 0
        self.observation_space = gymnasium.spaces.Box(0, 255, (SIDE, SIDE, stack), np.uint8)
        self.action_space = gymnasium.spaces.Discrete(len(self._actions))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Start the episode of `seed` (a fresh one where it is None); return the observation and an empty info.

        With ``options={"reseed": False}`` the emulator's own random stream goes on where it is, and the seed sets the
        no-ops only: that spares loading the game, and no seed repeats such an episode.
        """
        # The same derivation as ale_py's own gymnasium environment, so that a seed means the same episode there.
        np_seed, ale_seed = np.random.SeedSequence(seed).generate_state(n_words=2)
        self._np_random, _ = seeding.np_random(int(np_seed))
        if (options or {}).get("reseed", True):
            self._ale.setInt("random_seed", int(np.int32(ale_seed)))
            # The emulator takes a random seed only when it loads a game (0.15 s).
            self._ale.loadROM(self._path)
        self._ale.reset_game()
        self.noops = int(self._np_random.integers(1, self.noop_max + 1)) if self.noop_max else 0
        for _ in range(self.noops):
            self._ale.act(self._actions[0])
            if self._ale.game_over():
                self._ale.reset_game()
        self.score, self.steps, self._ended = 0.0, 0, False
        self._ale.getScreenGrayscale(self._screens[0])
        self._screens[1].fill(0)
        frame = self._resized()
        self._frames.extend([frame] * self.stack)
        return self._observation(), {}

    def step(self, action: np.int64 | int) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        """Play `action`; return observation uint8 [84, 84, stack], reward, terminated, truncated and an empty info."""
        if not 0 <= action < len(self._actions):
            raise BadActionError(f"action {action} of {self.game} is not within 0 to {len(self._actions) - 1}")
        if self._ended:
            raise gymnasium.error.ResetNeeded("the episode has ended; call reset() before step()")
        ale, ale_action, reward, terminated = self._ale, self._actions[action], 0.0, False
        for frame in range(self.frame_skip):
            reward += ale.act(ale_action)
            terminated = ale.game_over(with_truncation=False)
            if terminated:
                break
            if frame >= self.frame_skip - 2:
                ale.getScreenGrayscale(self._screens[self.frame_skip - 1 - frame])
        self._frames.append(self._resized())
        self.score += reward
        self.steps += 1
        truncated = self.steps >= self.max_steps and not terminated
        self._ended = terminated or truncated
        return self._observation(), reward, terminated, truncated, {}

    def single_frame(self) -> NDArray[np.uint8]:
        """Return the newest frame, uint8 [84, 84]; never overwritten."""
        return self._frames[-1]

    def ram(self) -> NDArray[np.uint8]:
        """Return a copy of the emulator's RAM, uint8 [128]."""
        ram: NDArray[np.uint8] = self._ale.getRAM()
        return ram

    def rgb(self) -> NDArray[np.uint8]:
        """Return a copy of the screen, uint8 [210, 160, 3], for people to look at."""
        screen: NDArray[np.uint8] = self._ale.getScreenRGB()
        return screen

    def lives(self) -> int:
        """Return the lives left; 0 in games without lives."""
        return int(self._ale.lives())

    def _resized(self) -> NDArray[np.uint8]:
        # The maximum stays in the buffer, as gymnasium's does: it is what a game over in mid-step shows again.
        np.maximum(self._screens[0], self._screens[1], out=self._screens[0])
        frame: NDArray[np.uint8] = cv2.resize(self._screens[0], (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        return frame

    def _observation(self) -> NDArray[np.uint8]:
        return np.stack(list(self._frames), axis=-1)
