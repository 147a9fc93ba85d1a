"""Doom as agents meet it: frames in, keyboard and mouse out, instructions beside them, without a display."""

from __future__ import annotations

import os
from typing import Any, Literal, get_args

import gymnasium
import numpy as np
from numpy.typing import NDArray

from playserve.actions import DesktopAction
from playserve.errors import BadActionError, BadSettingError
from playserve.resize import HAMMING_V1, resize
from playserve.specs import DesktopActionSpec
from playserve_client.doom.facts import EpisodeCounter
from playserve_client.doom.game import PROBES, SCREENS, DoomGame
from playserve_client.doom.scenarios import TICS_PER_FRAME, Goal, Scenario, scenario_of
from playserve_client.doom.view import View
from playserve_client.envs.desktop import DesktopSpace

__all__ = ["MAX_STEPS", "DoomEnv", "Text", "instruction_for"]

#: Frames after which an episode is truncated; scenarios without a clock of their own would go on for ever.
MAX_STEPS = 1_050

#: Which instruction an episode has: one that asks for its goal, none, or one that asks for another goal of its map.
Text = Literal["right", "none", "wrong"]
_PHRASINGS = ("training", "held_out")
# Keeps the choice of words apart from everything else that is seeded with the episode's seed.
_TEXT_STREAM = 0x74657874
# The centre of Open P2P's outermost bin.
_LARGEST_PX = 501.0

Observation = dict[str, NDArray[np.uint8]]


def instruction_for(scenario: Scenario, goal: Goal, seed: int, *, text: Text = "right", phrasing: str) -> str:
    """Return the instruction of the episode of `seed`; the same each time.

    Args:
        scenario: What is played.
        goal: What shall be done.
        seed: Of the episode.
        text: Whether it says so, says nothing, or asks for another goal.
        phrasing: "training" or "held_out".
    """
    rng = np.random.default_rng([_TEXT_STREAM, seed])
    asked = goal
    if text == "wrong":
        others = [other for other in scenario.goals if other is not goal]
        asked = others[int(rng.integers(len(others)))]
    words = asked.phrasings.training if phrasing == "training" else asked.phrasings.held_out
    chosen = words[int(rng.integers(len(words)))]
    return "" if text == "none" else chosen


class DoomEnv(gymnasium.Env[Observation, DesktopAction]):
    """One scenario under ViZDoom, two tics a step, headless.

    Observations are ``{"frame": uint8 [S, S, 3]}``, RGB, by the resize "hamming-v1". Actions are
    :class:`playserve.actions.DesktopAction`: W, A, S, D move, mouse button 0 attacks, mouse dx turns by 0.25 degrees a
    pixel; what a scenario has no use for does nothing, as in any game. An episode is a function of the seed given to
    :meth:`reset` and of the actions.

    The reward is the scenario's own where the goal is its first and the map is ViZDoom's; else the episode's last
    step gives 1 where the goal was met. The game's process starts with the first :meth:`reset`. After the end of an
    episode the game shows nothing: its last frame stays.

    The info of :meth:`reset` has ``seed``, ``goal`` and ``instruction`` (also the attribute), that of an episode's
    last step ``episode_facts``: see :mod:`playserve_client.doom.facts`; ``end`` is "died", "timeout", "max_steps" or
    "done".

    Args:
        scenario: A name of :data:`playserve_client.doom.scenarios.SCENARIOS`.
        goal: A goal of it; None: its first.
        frame_size: Side of the frame, pixels.
        instruction: Said in every episode; None: words are drawn by the seed.
        text: Which instruction is drawn.
        phrasing: "held_out" (never trained on) or "training".
        max_steps: Steps after which an episode is truncated.
        tics_per_frame: Only 2.
        record_labels: Tell scripted players of depth and walls too (:meth:`view`).
        screen: Of the game, "320x240" or another of ViZDoom's.
        render_mode: None or "rgb_array".
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012 - gymnasium's own attribute

    def __init__(
        self,
        scenario: str,
        *,
        goal: str | None = None,
        frame_size: int = 96,
        instruction: str | None = None,
        text: Text = "right",
        phrasing: str = "held_out",
        max_steps: int = MAX_STEPS,
        tics_per_frame: int = TICS_PER_FRAME,
        record_labels: bool = False,
        screen: str = "320x240",
        render_mode: str | None = None,
    ) -> None:
        if tics_per_frame != TICS_PER_FRAME:
            raise BadSettingError(f"{tics_per_frame} tics a frame; wanted {TICS_PER_FRAME}, as everywhere")
        if max_steps < 1 or not 16 <= frame_size <= 240:
            raise BadSettingError(f"max_steps is at least 1 and frame_size 16 to 240, not {max_steps} and {frame_size}")
        if text not in get_args(Text) or phrasing not in _PHRASINGS:
            raise BadSettingError(
                f"text {text!r} and phrasing {phrasing!r}, wanted one of {get_args(Text)} and one of {_PHRASINGS}"
            )
        self.scenario: Scenario = scenario_of(scenario)
        self.goal: Goal = self.scenario.goal(goal)
        if text == "wrong" and not self.scenario.asks:
            raise BadSettingError(f"scenario {scenario!r} has one goal: there is no wrong instruction for it")
        self.max_steps, self.frame_size = max_steps, frame_size
        self.render_mode = render_mode
        self.instruction = instruction or ""
        self._said, self._text, self._phrasing = instruction, text, phrasing
        self._own_reward = self.goal is self.scenario.goals[0] and not self.scenario.made
        self.observation_space = gymnasium.spaces.Dict(
            {"frame": gymnasium.spaces.Box(0, 255, (frame_size, frame_size, 3), np.uint8)}
        )
        self.action_space = DesktopSpace(
            DesktopActionSpec(
                keys=self.scenario.keys,
                buttons=(0,) if self.scenario.attacks else (),
                max_mouse_px=_LARGEST_PX if self.scenario.turns else 0.0,
            )
        )
        if screen not in SCREENS:
            raise BadSettingError(f"screen {screen!r} is none of {', '.join(SCREENS)}")
        self._started: DoomGame | None = None
        self._screen_size, self._all_seen = screen, record_labels
        self._counter = EpisodeCounter(self.scenario, PROBES)
        self._screen = self._frame = np.zeros(0, np.uint8)
        self._probes = np.zeros(len(PROBES))
        self._view: View | None = None
        self._ended, self._closed = True, False
        self.score = 0.0
        self.steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start the episode of `seed` (a fresh one where it is None)."""
        if self._closed:
            raise gymnasium.error.ClosedEnvironmentError("the environment was closed")
        if seed is None:
            seed = int.from_bytes(os.urandom(6), "little")
        self._ended = True  # until it has begun
        if self._started is None:
            seen = self._all_seen
            self._started = DoomGame(self.scenario, screen=self._screen_size, depth=seen, walls=seen)
        self._game.start(seed)
        self._counter = EpisodeCounter(self.scenario, PROBES)
        self.score, self.steps, self._ended = 0.0, 0, False
        if self._said is None:
            self.instruction = instruction_for(self.scenario, self.goal, seed, text=self._text, phrasing=self._phrasing)
        self._look()
        return self._observation(), {"seed": seed, "goal": self.goal.name, "instruction": self.instruction}

    def step(self, action: DesktopAction) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Hold `action` for two tics; return observation, reward, terminated, truncated and info."""
        if self._ended:
            raise gymnasium.error.ResetNeeded("the episode has ended, or none was started; call reset() before step()")
        if not isinstance(action, DesktopAction):
            raise BadActionError(f"action {action!r} of Doom, wanted a DesktopAction")
        if not np.isfinite(action.mouse_dx_px):
            raise BadActionError(f"mouse motion of {action.mouse_dx_px} px, wanted a finite number")
        before, monster = self._probes, bool(self.view().of_category("Monster"))
        reward = self._game.act(action)
        self.steps += 1
        self._look()
        self._counter.count(action, before, self._probes, monster=monster)
        taken = self.scenario.made and bool(self._probes[_ARMOR] > 0)
        terminated = taken or (self._game.over and not self._game.timed_out)
        truncated = not terminated and (self._game.over or self.steps >= self.max_steps)
        self._ended = terminated or truncated
        info = self._facts(truncated) if self._ended else {}
        if not self._own_reward:
            reward = float(self._ended and self.goal.met(info["episode_facts"]))
        self.score += reward
        return self._observation(), reward, terminated, truncated, info

    @property
    def _game(self) -> DoomGame:
        if self._started is None:
            raise gymnasium.error.ResetNeeded("no episode was started; call reset() first")
        return self._started

    def view(self) -> View:
        """Return what a scripted player may see of the newest frame; a policy never does."""
        if self._view is None:
            self._view = self._game.view()
        return self._view

    def probes(self) -> NDArray[np.float64]:
        """Return the game variables of the newest frame, in the order of ``doom.game.PROBES``; never overwritten."""
        return self._probes

    def screen(self) -> NDArray[np.uint8]:
        """Return the game's screen, RGB uint8 [H, W, 3], as big as the game draws it."""
        return self._screen

    def render(self) -> NDArray[np.uint8]:  # type: ignore[override]
        """Return the screen."""
        return self._screen

    def close(self) -> None:
        """End the game's process."""
        self._ended = self._closed = True
        if self._started is not None:
            self._started.close()

    def _look(self) -> None:
        """Take over what the game shows now; after its end the last screen stays."""
        self._view = None
        self._probes = self._game.probes()
        screen = self._game.screen()
        if screen is not None:
            self._screen = screen
            self._frame = resize(screen, self.frame_size, self.frame_size, HAMMING_V1)

    def _facts(self, truncated: bool) -> dict[str, Any]:
        facts = self._counter.facts(self._probes, self.goal, self.scenario)
        if truncated:
            facts["end"] = "timeout" if self._game.over else "max_steps"
        else:
            facts["end"] = "died" if facts["health"] == 0 else "done"
        return {"episode_facts": facts}

    def _observation(self) -> Observation:
        return {"frame": self._frame.copy()}


_ARMOR = PROBES.index("ARMOR")
