"""NetHack as agents meet it: the rules of NetHackChallenge, and episodes that are a function of seed and keys.

nle's own Challenge makes, starts and quits the games (:class:`SeedableChallenge`); a step goes straight to NetHack
and copies only what was asked for.
"""

from __future__ import annotations

import operator
import os
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from nle.env.base import NLE
from nle.env.tasks import NetHackChallenge
from numpy.typing import NDArray

from playserve.errors import BadActionError, BadSettingError
from playserve_client.nethack.characters import check_character
from playserve_client.nethack.keys import ACTION_KEYS, ACTION_NAMES, NUM_ACTIONS

__all__ = ["MAX_SEED", "MAX_STEPS", "NO_PROGRESS_TIMEOUT", "NetHackEnv", "SeedableChallenge"]

#: The caps under which scores are stated; 150 or 1,000 steps without progress give other scores.
MAX_STEPS = 100_000
NO_PROGRESS_TIMEOUT = 10_000
#: NetHack's seeds are unsigned longs.
MAX_SEED = 2**64 - 1

_SCREEN = ("tty_chars", "tty_colors", "tty_cursor")
# Places in blstats.
_SCORE, _DEPTH, _LEVEL, _TURN = 9, 12, 18, 20
_ESCAPE, _SPACE, _META_Q, _YES = 27, 32, 0x80 | ord("q"), ord("y")

Observation = dict[str, NDArray[Any]]


class SeedableChallenge(NetHackChallenge):  # type: ignore[misc]
    """NetHackChallenge of nle, whose games can be seeded; the moon and the hour are the seed's, not the clock's.

    nle only hides the seeding behind three attributes of its NetHack object.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(fix_moon_phase=True, **options)
        for name in ("set_initial_seeds", "set_current_seeds", "get_current_seeds"):
            self.nethack.__dict__.pop(name)

    def seed(
        self, core: int | None = None, disp: int | None = None, reseed: bool = False, lgen: int | None = None
    ) -> tuple[int, int, bool, int | None]:
        """Seed the games from the next reset on, as :meth:`nle.env.base.NLE.seed` does."""
        seeds: tuple[int, int, bool, int | None] = NLE.seed(self, core, disp, reseed, lgen)
        return seeds


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
            1.3.0 looks twice a step, so that its own 10,000 are 5,000 steps; here they are what they say.)
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
        self.character = check_character(character)
        for name, value in (("max_steps", max_steps), ("no_progress_timeout", no_progress_timeout)):
            if value < 1:
                raise BadSettingError(f"{name} is {value}, not 1 or more")
        self.max_steps = max_steps
        self.no_progress_timeout = no_progress_timeout
        self.action_names = ACTION_NAMES
        self.action_space = gymnasium.spaces.Discrete(NUM_ACTIONS)
        keys = (*_SCREEN, "inv_glyphs") if inventory else _SCREEN
        recording = {} if ttyrec_dir is None else {"save_ttyrec_every": 1, "savedir": str(_new_folder(ttyrec_dir))}
        self._game = SeedableChallenge(character=character, observation_keys=(*keys, "blstats"), **recording)
        self.observation_space = gymnasium.spaces.Dict({key: self._game.observation_space[key] for key in keys})
        game = self._game.nethack
        buffers: dict[str, NDArray[Any]] = game._obs_buffers
        self._observed = [(key, buffers[key]) for key in keys]
        #: int64 [27], the bottom lines as numbers; NetHack's own memory, overwritten by the next step.
        self.blstats: NDArray[np.int64] = buffers["blstats"]
        # Single numbers are read from memoryviews at a third of the time.
        self._stats = self.blstats.data
        self._program = buffers["program_state"].data
        self._internal = buffers["internal"].data
        self._send: Callable[[int], None] = game._pynethack.step
        self._done: Callable[[], bool] = game._pynethack.done
        self._log = Path(
            f"{self._game.savedir}/nle.{os.getpid()}.xlogfile" if recording else f"{game._vardir}/xlogfile"
        )
        self._log_size = 0
        self._ended, self._closed = True, False
        self.score = 0
        self.steps = 0
        self._turn = self._stuck = self._depth = self._level = 0

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
        if not 0 <= seed <= MAX_SEED:
            raise BadSettingError(f"seed {seed} of NetHack is not from 0 to 2^64 - 1")
        self._log_size = self._log.stat().st_size
        self._game.seed(int(seed), int(seed), reseed=False)
        self._game.reset()
        self._ended = False
        self.steps = self._stuck = 0
        stats = self._stats
        self.score, self._depth, self._level, self._turn = stats[_SCORE], stats[_DEPTH], stats[_LEVEL], stats[_TURN]
        return self._observation(), {"seed": int(seed)}

    def step(self, action: np.int64 | int) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Send the key of `action`; return observation, reward, terminated, truncated and info."""
        if self._ended:
            raise gymnasium.error.ResetNeeded("the episode has ended, or none was started; call reset() before step()")
        index = _index(action)
        self._send(ACTION_KEYS[index])
        self.steps += 1
        stats = self._stats
        if self._program[0]:
            self._leave_closing_screens()
        if self._done():
            # What the screen still gained in the last step is no reward in nle either.
            self._ended = True
            return self._observation(), 0.0, True, False, self._info(self._facts_of_log())
        score, turn, depth = stats[_SCORE], stats[_TURN], stats[_DEPTH]
        reward = score - self.score
        self.score, self._level = score, stats[_LEVEL]
        if depth > self._depth:
            self._depth = depth
        if turn != self._turn:
            self._turn, self._stuck = turn, 0
        else:
            self._stuck += 1
        truncated = self.steps >= self.max_steps or self._stuck >= self.no_progress_timeout
        observation = self._observation()
        if truncated:
            return observation, float(reward), False, True, self._cut_off()
        return observation, float(reward), False, False, {}

    def close(self) -> None:
        """Free the game; a running one is not recorded as ended."""
        self._ended = self._closed = True
        self._game.close()

    @property
    def ttyrec_path(self) -> Path | None:
        """Return the file that the current episode is recorded in; None where nothing is."""
        if self._game.savedir is None:
            return None
        return Path(self._game._ttyrec_pattern % self._game._episode)

    def _observation(self) -> Observation:
        return {key: buffer.copy() for key, buffer in self._observed}

    def _leave_closing_screens(self) -> None:
        while not self._done():
            if self._internal[3]:  # it waits for a space
                self._send(_SPACE)
            elif self._internal[2]:  # it asks for a line
                self._send(_ESCAPE)
            else:  # a question is the agent's
                return

    def _cut_off(self) -> dict[str, Any]:
        self._ended = True
        end = "max_steps" if self.steps >= self.max_steps else "no_progress"
        facts = {"turns": self._turn, "depth": self._depth, "experience_level": self._level, "end": end}
        if self._game.savedir is not None:
            self._quit()
        return self._info(facts)

    def _quit(self) -> None:
        """Quit the game, so that it stands in the xlogfile and its recording counts."""
        internal = self._internal
        for _ in range(4):
            # Out of menus, questions and prompts first; a prompt for a place on the map shows no sign of itself.
            self._send(_ESCAPE)
            for _ in range(32):
                if self._done() or not any(internal[1:4]):
                    break
                self._send(_SPACE if internal[3] else _ESCAPE)
            for key in (_META_Q, _YES):
                if not self._done():
                    self._send(key)
            for _ in range(64):
                if self._done():
                    return
                if not any(internal[1:4]):
                    break
                self._send(_SPACE if internal[3] else _ESCAPE)

    def _facts_of_log(self) -> dict[str, Any]:
        """Return what NetHack's log says of the game that has just ended."""
        log = self._last_log()
        return {
            "turns": int(log.get("turns", self._turn)),
            "depth": max(int(log.get("maxlvl", 0)), self._depth),
            "experience_level": self._level,
            "end": log.get("death") or str(self._game.nethack.how_done().name).lower(),
        }

    def _last_log(self) -> dict[str, str]:
        with open(self._log, "rb") as file:
            file.seek(self._log_size)
            lines = file.read().decode("latin-1").splitlines()
        fields = lines[-1].split("\t") if lines else []
        return dict(field.split("=", 1) for field in fields if "=" in field)

    def _info(self, facts: dict[str, Any]) -> dict[str, Any]:
        path = self.ttyrec_path
        return {"episode_facts": facts} | ({} if path is None else {"ttyrec": str(path)})


def _index(action: Any) -> int:
    try:
        index = operator.index(action)
    except TypeError:
        raise BadActionError(f"action {action!r} is not an integer from 0 to {NUM_ACTIONS - 1}") from None
    if not 0 <= index < NUM_ACTIONS:
        raise BadActionError(f"action {index} of NetHack is not within 0 to {NUM_ACTIONS - 1}")
    return index


def _new_folder(parent: str | os.PathLike[str]) -> Path:
    # One folder an environment: nle names its files by process and episode only.
    os.makedirs(parent, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=f"{datetime.now(UTC):%Y%m%d-%H%M%S}_", dir=parent))
