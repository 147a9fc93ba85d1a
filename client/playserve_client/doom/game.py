"""One ViZDoom process: started for a scenario, stepped with desktop actions, closed whatever happens.

It knows the rules of the scenarios and nothing of policies, goals or recordings.
"""

from __future__ import annotations

import contextlib
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import vizdoom
from numpy.typing import NDArray

from playserve.actions import DesktopAction
from playserve.errors import BadSettingError, ServerFault
from playserve_client.doom.maps import map_name, two_vests_wad, variant_of
from playserve_client.doom.process import make_folder, mark, mortal
from playserve_client.doom.scenarios import DEGREES_PER_PIXEL, KEYS, TICS_PER_FRAME, TICS_PER_S, Scenario
from playserve_client.doom.view import Seen, View

__all__ = ["PROBES", "SCREENS", "DoomGame", "GameDiedError"]

#: Screens that are rendered, by "WIDTHxHEIGHT".
SCREENS = ("160x120", "320x240", "640x480")

#: Game variables of each frame, in this order: what a recording's sidecar holds and what facts are counted from.
PROBES: tuple[str, ...] = (
    "HEALTH", "ARMOR", "SELECTED_WEAPON", "SELECTED_WEAPON_AMMO", "ATTACK_READY", "KILLCOUNT", "HITCOUNT",
    "DAMAGECOUNT", "HITS_TAKEN", "DAMAGE_TAKEN", "ITEMCOUNT", "POSITION_X", "POSITION_Y", "POSITION_Z", "ANGLE",
    "VELOCITY_X", "VELOCITY_Y",
)  # fmt: skip

# The game's commands for the keys of a window.
_COMMANDS = {"KeyW": "+forward", "KeyS": "+back", "KeyA": "+moveleft", "KeyD": "+moveright"}
# The game turns by 8 of 65,536 parts of a circle a count of the mouse, at sensitivity 1 and without prescaling.
_DEGREES_PER_COUNT = 8 * 360 / 65536

Image = NDArray[np.uint8]


class GameDiedError(ServerFault):
    """The process of the game is gone, or does not answer."""


@contextlib.contextmanager
def _typed(what: str) -> Iterator[None]:
    try:
        yield
    except (
        vizdoom.ViZDoomErrorException,
        vizdoom.ViZDoomUnexpectedExitException,
        vizdoom.ViZDoomIsNotRunningException,
        vizdoom.MessageQueueException,
        vizdoom.SharedMemoryException,
    ) as error:
        raise GameDiedError(f"the ViZDoom process is gone {what}: {type(error).__name__}: {error}") from error


class DoomGame:
    """A scenario in its own process. Close it.

    Args:
        scenario: What is played.
        screen: One of :data:`SCREENS`.
        labels: Whether :meth:`view` tells what is on the screen.
        depth: Whether it tells how far things are.
        walls: Whether it tells where the walls are.
        timeout_tics: Instead of the scenario's own; 0: none.
        window: Whether the game has a window and runs by its own clock, 40 tics a second, for who plays at the desktop:
            :meth:`watch` instead of :meth:`act`. Its keys and mouse mean what they mean in :meth:`act`.
    """

    def __init__(
        self,
        scenario: Scenario,
        *,
        screen: str = "320x240",
        labels: bool = True,
        depth: bool = False,
        walls: bool = False,
        timeout_tics: int | None = None,
        window: bool = False,
    ) -> None:
        if screen not in SCREENS:
            raise BadSettingError(f"screen {screen!r} is none of {', '.join(SCREENS)}")
        self.scenario = scenario
        self._variables = [getattr(vizdoom.GameVariable, name) for name in PROBES]
        self._game = game = vizdoom.DoomGame()
        self._folder = make_folder()
        # Also where nobody closes it: the process is gone, and then its files, before this process ends.
        self._end = weakref.finalize(self, _end, game, self._folder)
        self._state: Any = None
        self._buttons = [vizdoom.Button.__members__[KEYS[key]] for key in scenario.keys]
        if scenario.attacks:
            self._buttons.append(vizdoom.Button.ATTACK)
        if scenario.turns:
            self._buttons.append(vizdoom.Button.TURN_LEFT_RIGHT_DELTA)
        self._load(screen)
        if window:
            self._open_window()
        game.set_labels_buffer_enabled(labels)
        game.set_depth_buffer_enabled(depth)
        game.set_sectors_info_enabled(walls)
        game.set_episode_timeout(scenario.timeout_tics if timeout_tics is None else timeout_tics)
        try:
            with _typed("at its start"):
                if (program := mortal(Path(vizdoom.__file__).parent / "vizdoom", self._folder)) is not None:
                    game.set_vizdoom_path(program)
                game.init()
                mark(self._folder, game.get_instance_id())
        except BaseException:
            self.close()
            raise

    def _load(self, screen: str) -> None:
        game, folder = self._game, self._folder
        if self.scenario.made:
            wad = folder / f"{self.scenario.name}.wad"
            two_vests_wad(wad)
            game.set_doom_scenario_path(str(wad))
            game.set_doom_map(map_name(0))
            game.set_doom_skill(3)
        else:
            game.load_config(str(Path(vizdoom.scenarios_path) / f"{self.scenario.name}.cfg"))
        # Else ViZDoom takes a doom2.wad of the working folder, by a name that means nothing where the game works.
        game.set_doom_game_path(str(Path(vizdoom.__file__).parent / "freedoom2.wad"))
        game.set_doom_config_path(str(folder / "vizdoom.ini"))
        game.set_mode(vizdoom.Mode.PLAYER)
        game.set_window_visible(False)
        game.set_sound_enabled(False)
        game.set_console_enabled(False)
        game.set_screen_format(vizdoom.ScreenFormat.RGB24)
        game.set_screen_resolution(getattr(vizdoom.ScreenResolution, f"RES_{screen.upper()}"))
        game.set_render_hud(False)
        game.set_render_screen_flashes(False)
        game.set_available_buttons(self._buttons)
        game.set_available_game_variables(self._variables)

    def _open_window(self) -> None:
        game, scenario = self._game, self.scenario
        binds = [f"bind {key.removeprefix('Key').lower()} {_COMMANDS[key]}" for key in scenario.keys]
        if scenario.attacks:
            binds.append("bind mouse1 +attack")
        # Commands with a plus are no arguments: they would be obeyed at once.
        path = self._folder / "binds.cfg"
        path.write_text("\n".join(["unbindall", *binds]) + "\n")
        sensitivity = DEGREES_PER_PIXEL / _DEGREES_PER_COUNT if scenario.turns else 0.0
        game.add_game_args(
            f"+exec {path} +use_mouse 1 +m_noprescale 1 +m_filter 0 +m_yaw 1 +mouse_sensitivity {sensitivity:.6f} "
            "+freelook 1 +m_pitch 0 +m_forward 0 +m_side 0"
        )
        game.set_window_visible(True)
        game.set_mode(vizdoom.Mode.ASYNC_SPECTATOR)
        game.set_ticrate(TICS_PER_S)

    def start(self, seed: int) -> None:
        """Start the episode of `seed`: the same actions then make the same episode."""
        game = self._game
        words = np.random.SeedSequence(seed).generate_state(2)
        with _typed("at the start of an episode"):
            if self.scenario.made:
                game.set_doom_map(map_name(variant_of(seed, int(words[1]))))
            game.set_seed(int(words[0]) & 0x7FFFFFFF)
            game.new_episode()
            self._state = game.get_state()
        if self._state is None:
            raise GameDiedError(f"scenario {self.scenario.name!r} was over as it began (seed {seed})")

    def act(self, action: DesktopAction) -> float:
        """Hold `action` for a frame's tics; return the scenario's own reward."""
        scenario = self.scenario
        values = [1.0 if key in action.keys else 0.0 for key in scenario.keys]
        if scenario.attacks:
            values.append(1.0 if 0 in action.buttons else 0.0)
        if scenario.turns:
            # The game turns by it at each tic.
            values.append(action.mouse_dx_px * DEGREES_PER_PIXEL / TICS_PER_FRAME)
        with _typed("in an episode"):
            reward = float(self._game.make_action(values, TICS_PER_FRAME))
            self._state = self._game.get_state()
        return reward

    def watch(self) -> tuple[DesktopAction, float]:
        """Let a frame's tics pass in the window; return what its player did and the scenario's own reward."""
        keys: set[str] = set()
        fired, before = False, self._angle()
        with _typed("in an episode"):
            # On a busy machine the clock goes on between two looks: what is summed up loses nothing.
            total = float(self._game.get_total_reward())
            for _ in range(TICS_PER_FRAME):
                if self._game.is_episode_finished():
                    break
                self._game.advance_action(1)
                held = dict(zip(self._buttons, self._game.get_last_action(), strict=True))
                keys |= {key for key in self.scenario.keys if held[vizdoom.Button.__members__[KEYS[key]]]}
                fired = fired or bool(held.get(vizdoom.Button.ATTACK, 0.0))
            self._state = self._game.get_state()
            reward = float(self._game.get_total_reward()) - total
        turned = (before - self._angle() + 180.0) % 360.0 - 180.0
        pixels = round(turned / DEGREES_PER_PIXEL) if self.scenario.turns else 0
        return DesktopAction(frozenset(keys), frozenset({0} if fired else ()), float(pixels)), reward

    @property
    def tics(self) -> int:
        """Return how many tics the episode has lasted."""
        return int(self._game.get_episode_time())

    def _angle(self) -> float:
        return float(self._game.get_game_variable(vizdoom.GameVariable.ANGLE))

    @property
    def over(self) -> bool:
        """Return whether the episode has ended."""
        return self._state is None

    @property
    def timed_out(self) -> bool:
        """Return whether it ended by the scenario's clock."""
        return bool(self._game.is_episode_timeout_reached()) and not self._game.is_player_dead()

    def screen(self) -> Image | None:
        """Return the screen, RGB uint8 [H, W, 3]; None after the end, when the game shows nothing."""
        return None if self._state is None else self._state.screen_buffer

    def probes(self) -> NDArray[np.float64]:
        """Return the game variables of :data:`PROBES`, also after the end."""
        if self._state is not None:
            return np.asarray(self._state.game_variables, np.float64)
        with _typed("after an episode"):
            return np.array([self._game.get_game_variable(variable) for variable in self._variables], np.float64)

    def view(self) -> View:
        """Return what a scripted player may see; a policy never does."""
        state = self._state
        if state is None:
            raise BadSettingError("the episode has ended: there is nothing to see")
        seen = tuple(
            Seen(
                name=label.object_name,
                category=label.object_category,
                number=label.object_id,
                left_px=label.x,
                top_px=label.y,
                width_px=label.width,
                height_px=label.height,
                x=label.object_position_x,
                y=label.object_position_y,
                velocity_x=label.object_velocity_x,
                velocity_y=label.object_velocity_y,
            )
            for label in (state.labels or ())
            if label.object_category != "Self"
        )
        variables = dict(zip(PROBES, (float(value) for value in state.game_variables), strict=True))
        walls = tuple(
            (line.x1, line.y1, line.x2, line.y2)
            for sector in (state.sectors or ())
            for line in sector.lines
            if line.is_blocking
        )
        return View(
            seen=seen,
            variables=variables,
            width_px=state.screen_buffer.shape[1],
            depth=state.depth_buffer,
            walls=walls,
            tic=int(state.tic),
        )

    def close(self) -> None:
        """End the process; more than once is fine."""
        self._state = None
        self._end()


def _end(game: vizdoom.DoomGame, folder: Path) -> None:
    with contextlib.suppress(Exception):  # a process that is gone cannot be asked to go
        game.close()
    shutil.rmtree(folder, ignore_errors=True)
