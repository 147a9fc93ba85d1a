"""A visible ViZDoom window that a player at the desktop plays, and that prints the game's own counters; a program.

    python -m desktop.doom SCENARIO SECONDS

Asynchronous spectator mode: the game runs on its own clock, and takes keys and mouse from the window.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

_TICRATE = 35
#: Doom's bindings for P2P's actions: W/A/S/D moves, the left button attacks, the mouse turns.
_BINDS = (
    "+bind w +forward", "+bind s +back", "+bind a +moveleft", "+bind d +moveright", "+bind mouse1 +attack",
)  # fmt: skip


def main() -> None:
    import vizdoom as vzd

    scenario, seconds = sys.argv[1], float(sys.argv[2])
    game = vzd.DoomGame()
    game.load_config(os.path.join(vzd.scenarios_path, f"{scenario}.cfg"))
    game.set_window_visible(True)
    game.set_mode(vzd.Mode.ASYNC_SPECTATOR)
    game.set_ticrate(_TICRATE)
    game.set_screen_resolution(vzd.ScreenResolution.RES_800X600)
    game.set_episode_timeout(0)
    game.set_seed(7)
    game.set_available_buttons(
        [
            vzd.Button.MOVE_FORWARD, vzd.Button.MOVE_BACKWARD, vzd.Button.MOVE_LEFT, vzd.Button.MOVE_RIGHT,
            vzd.Button.ATTACK, vzd.Button.TURN_LEFT_RIGHT_DELTA,
        ]
    )  # fmt: skip
    game.set_available_game_variables(
        [
            vzd.GameVariable.AMMO2, vzd.GameVariable.KILLCOUNT, vzd.GameVariable.POSITION_X,
            vzd.GameVariable.POSITION_Y, vzd.GameVariable.ANGLE,
        ]
    )  # fmt: skip
    game.add_game_args("+freelook 1 +use_mouse 1 +m_noprescale 1")
    for bind in _BINDS:
        game.add_game_args(bind)
    game.init()
    game.new_episode()

    def say(**event: Any) -> None:
        sys.stdout.write(json.dumps(event) + "\n")
        sys.stdout.flush()

    say(ready=True)
    until = time.monotonic() + seconds
    episodes = 0
    while time.monotonic() < until:
        if game.is_episode_finished():
            episodes += 1
            game.new_episode()
        state = game.get_state()
        if state is not None:
            ammo, kills, x, y, angle = (float(value) for value in state.game_variables)
            say(
                tic=state.tic, ammo=ammo, kills=kills, x=x, y=y, angle=angle, episodes=episodes,
                reward=game.get_total_reward(), action=list(game.get_last_action()),
            )  # fmt: skip
        game.advance_action()
    game.close()


if __name__ == "__main__":
    main()
