"""NetHack as agents meet it: the rules of NetHackChallenge, and episodes that are a function of seed and keys."""

from __future__ import annotations

import operator
import os
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from playserve.errors import BadActionError, BadSettingError
from playserve_client.nethack.game import BL_DEPTH, BL_LEVEL, BL_SCORE, BL_TURN, NetHackGame, SeedableChallenge
from playserve_client.nethack.keys import ACTION_KEYS, ACTION_NAMES, NUM_ACTIONS

__all__ = ["MAX_STEPS", "NO_PROGRESS_TIMEOUT", "NetHackEnv", "SeedableChallenge"]

#: The caps under which scores are stated; 150 or 1,000 steps without progress give other scores.
MAX_STEPS = 100_000
NO_PROGRESS_TIMEOUT = 10_000

_SCREEN = ("tty_chars", "tty_colors", "tty_cursor")

Observation = dict[str, NDArray[Any]]


class NetHackEnv(gymnasium.Env[Observation, np.int64 | int]):
    """One character's games under the rules of NetHackChallenge: 121 keys, menus and --More-- are the agent's.

    The reward is the change of the score that NetHack shows. An episode is a function of the seed given to
    :meth:`reset` and of the actions, whatever the clock says. Observations are copies: ``tty_chars`` uint8 [24, 80],
    ``tty_colors`` int8 [24, 80], ``tty_cursor`` uint8 [2] (row, column) and, where asked for, ``inv_glyphs``
    int16 [55].

    The info of an episode's last step has ``episode_facts``: ``turns``, ``depth`` (the deepest), ``experience_level``
    and ``end``: "max_steps", "no_progress", or what NetHack's own log gives as the cause, such as "killed by a newt"
    or "quit". Recorded episodes have ``ttyrec`` too, the path of the file.

    Args:
        character: Role, race, alignment and gender, or "@": the seed draws them.
        max_steps: Steps after which an episode is truncated.
        no_progress_timeout: Steps in a row without a new turn of the game after which an episode is truncated. (nle
            1.3.0 counts each step twice, so that its 10,000 are 5,000 steps; here they are what they say.)
        ttyrec_dir: Folder that gets a folder of ttyrec3 files and their xlogfile, in the layout of NLD-AA; None:
            nothing is recorded. Truncated games are quit, so that they count; a game cut off by :meth:`reset` or
            :meth:`close` does not.
        inventory: Observe ``inv_glyphs`` too.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 - gymnasium's own attribute

    def __init__(
        self,
        character: str = "mon-hum-neu-mal",
        *,
        max_steps: int = MAX_STEPS,
        no_progress_timeout: int = NO_PROGRESS_TIMEOUT,
        ttyrec_dir: str | os.PathLike[str] | None = None,
        inventory: bool = False,
    ) -> None:
        for name, value in (("max_steps", max_steps), ("no_progress_timeout", no_progress_timeout)):
            if value < 1:
                raise BadSettingError(f"{name} is {value}, not 1 or more")
        keys = (*_SCREEN, "inv_glyphs") if inventory else _SCREEN
        self._game = game = NetHackGame(character, keys=keys, ttyrec_dir=ttyrec_dir)
        self.character = character
        self.max_steps = max_steps
        self.no_progress_timeout = no_progress_timeout
        self.action_names = ACTION_NAMES
        self.action_space = gymnasium.spaces.Discrete(NUM_ACTIONS)
        self.observation_space = gymnasium.spaces.Dict(game.spaces)
        #: int64 [27], the bottom lines as numbers; NetHack's own memory, overwritten by the next step.
        self.blstats: NDArray[np.int64] = game.buffers["blstats"]
        self._observed = [(key, game.buffers[key]) for key in keys]
        # Kept here: an attribute less to look up on each step.
        self._send, self._done, self._stats, self._program = game.send, game.done, game.stats, game.program
        self._ended, self._closed = True, False
        self.score = 0
        self.steps = 0
        self._shown = self._turn = self._stuck = self._depth = self._level = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start the game of `seed`, from 0 to 2^64 - 1 (a fresh one where it is None).

        Returns:
            Observation and info; ``seed`` in it is the game's.
        """
        if self._closed:
            raise gymnasium.error.ClosedEnvironmentError("the environment was closed")
        if seed is None:
            seed = int.from_bytes(os.urandom(6), "little")
        self._game.start(seed)
        self._ended = False
        self.score = self.steps = self._stuck = 0
        stats = self._stats
        self._shown, self._depth = stats[BL_SCORE], stats[BL_DEPTH]
        self._level, self._turn = stats[BL_LEVEL], stats[BL_TURN]
        return self._observation(), {"seed": int(seed)}

    def step(self, action: np.int64 | int) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Send the key of `action`; return observation, reward, terminated, truncated and info."""
        if self._ended:
            raise gymnasium.error.ResetNeeded("the episode has ended, or none was started; call reset() before step()")
        self._send(ACTION_KEYS[_index(action)])
        self.steps += 1
        if self._program[0]:
            self._game.leave_closing_screens()
        if self._done():
            # What the screen still gained in the last step is no reward in nle either.
            self._ended = True
            return self._observation(), 0.0, True, False, self._info(self._facts_of_log())
        stats = self._stats
        shown, turn, depth = stats[BL_SCORE], stats[BL_TURN], stats[BL_DEPTH]
        reward = shown - self._shown
        self._shown, self._level = shown, stats[BL_LEVEL]
        self.score += reward
        if depth > self._depth:
            self._depth = depth
        if turn != self._turn:
            self._turn, self._stuck = turn, 0
        else:
            self._stuck += 1
        if self.steps >= self.max_steps or self._stuck >= self.no_progress_timeout:
            observation = self._observation()
            return observation, float(reward), False, True, self._cut_off()
        return self._observation(), float(reward), False, False, {}

    def close(self) -> None:
        """Free the game; a running one is not recorded as ended."""
        self._ended = self._closed = True
        self._game.close()

    def _observation(self) -> Observation:
        return {key: buffer.copy() for key, buffer in self._observed}

    def _cut_off(self) -> dict[str, Any]:
        self._ended = True
        end = "max_steps" if self.steps >= self.max_steps else "no_progress"
        facts = {"turns": self._turn, "depth": self._depth, "experience_level": self._level, "end": end}
        if self._game.ttyrec_path is not None:
            self._game.quit()
        return self._info(facts)

    def _facts_of_log(self) -> dict[str, Any]:
        """Return what NetHack's log says of the game that has just ended."""
        log = self._game.last_log()
        return {
            "turns": int(log.get("turns", self._turn)),
            "depth": max(int(log.get("maxlvl", 0)), self._depth),
            "experience_level": self._level,
            "end": log.get("death") or self._game.how_done(),
        }

    def _info(self, facts: dict[str, Any]) -> dict[str, Any]:
        path = self._game.ttyrec_path
        return {"episode_facts": facts} | ({} if path is None else {"ttyrec": str(path)})


def _index(action: Any) -> int:
    try:
        index = operator.index(action)
    except TypeError:
        raise BadActionError(f"action {action!r} is not an integer from 0 to {NUM_ACTIONS - 1}") from None
    if not 0 <= index < NUM_ACTIONS:
        raise BadActionError(f"action {index} of NetHack is not within 0 to {NUM_ACTIONS - 1}")
    return index
