"""What is counted of an episode, on game variables made by hand and on the game itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("vizdoom")

from playserve.actions import DesktopAction
from playserve_client.doom.facts import EpisodeCounter
from playserve_client.doom.game import PROBES
from playserve_client.doom.scenarios import SCENARIOS, Scenario
from playserve_client.envs.doom import DoomEnv

IDLE = DesktopAction()
W, S, A, D = (DesktopAction(frozenset({f"Key{key}"})) for key in "WSAD")
FIRE = DesktopAction(buttons=frozenset({0}))


def probes(**values: float) -> NDArray[np.float64]:
    found = np.zeros(len(PROBES))
    for name, value in {"HEALTH": 100, "SELECTED_WEAPON": 2, **values}.items():
        found[PROBES.index(name)] = value
    return found


def facts_of(
    scenario: Scenario, frames: list[tuple[DesktopAction, NDArray[np.float64]]], *, monster: bool = False
) -> dict[str, Any]:
    counter, before = EpisodeCounter(scenario, PROBES), probes(SELECTED_WEAPON_AMMO=26)
    for action, after in frames:
        counter.count(action, before, after, monster=monster)
        before = after
    return counter.facts(before, scenario.goals[0], scenario)


def still(count: int, action: DesktopAction) -> list[tuple[DesktopAction, NDArray[np.float64]]]:
    return [(action, probes(SELECTED_WEAPON_AMMO=26))] * count


CORRIDOR, LINE, HEALTH = (SCENARIOS[name] for name in ("deadly_corridor", "defend_the_line", "health_gathering"))


def test_idle_is_nothing_that_the_scenario_knows() -> None:
    useless = DesktopAction(frozenset({"Digit1"}), frozenset({2}))
    facts = facts_of(CORRIDOR, [*still(3, IDLE), *still(2, useless), *still(5, DesktopAction(mouse_dx_px=1.0))])
    assert facts["idle_frames"] == 5
    assert facts["idle_per_100s"] == 50


def test_jitter_is_turning_back_and_swapping_opposite_keys() -> None:
    turns = [(DesktopAction(mouse_dx_px=dx), probes()) for dx in (5.0, -5.0, -5.0, 0.0, 5.0, -1.0)]
    assert facts_of(CORRIDOR, turns)["jitter"] == 2
    keys = [(action, probes()) for action in (A, D, D, IDLE, A, W, S)]
    assert facts_of(CORRIDOR, keys)["jitter"] == 2
    assert facts_of(HEALTH, keys)["jitter"] == 0  # it knows neither A nor D nor S


def test_a_wall_is_where_moving_keys_do_not_move() -> None:
    assert facts_of(CORRIDOR, still(6, W))["wall_frames"] == 5
    assert facts_of(CORRIDOR, still(6, IDLE))["wall_frames"] == 0
    both = DesktopAction(frozenset({"KeyW", "KeyS"}))
    assert facts_of(CORRIDOR, still(6, both))["wall_frames"] == 0
    walked = [(W, probes(POSITION_X=10.0 * step)) for step in range(6)]
    assert facts_of(CORRIDOR, walked)["wall_frames"] == 0


def test_shots_are_spent_ammunition_and_air_shots_have_nobody_in_sight() -> None:
    spent = [(FIRE, probes(SELECTED_WEAPON_AMMO=ammo, HITCOUNT=hits)) for ammo, hits in ((26, 0), (25, 0), (24, 1))]
    seen = facts_of(CORRIDOR, spent, monster=True)
    assert (seen["shots"], seen["shots_at_nothing"], seen["misses"], seen["hits"]) == (2, 0, 1, 1)
    # Who was seen three frames ago may still be shot at.
    blind = [*still(3, IDLE), *spent]
    assert facts_of(CORRIDOR, blind)["shots_at_nothing"] == 2
    died = [(FIRE, probes(SELECTED_WEAPON=-1, SELECTED_WEAPON_AMMO=-1))]
    assert facts_of(CORRIDOR, died)["shots"] == 0


def test_shots_where_ammunition_is_endless_follow_the_weapon() -> None:
    ready, busy = probes(ATTACK_READY=1), probes(ATTACK_READY=0)
    tap = [(IDLE, ready), (FIRE, busy), *[(IDLE, busy)] * 8, (IDLE, ready)]
    assert facts_of(LINE, [*tap, *tap])["shots"] == 2
    hold = [(IDLE, ready), *[(FIRE, busy)] * 15]
    assert facts_of(LINE, hold)["shots"] == 3


def test_medkits_are_rises_of_health() -> None:
    healths = (100, 92, 84, 100, 92, 100)
    facts = facts_of(HEALTH, [(W, probes(HEALTH=health)) for health in healths])
    assert facts["medkits"] == 2
    assert [facts[name] for name in ("goal", "goal_met", "did")] == ["collect", False, "avoid"]


@pytest.mark.parametrize("held", [True, False])
def test_shots_by_weapon_equal_shots_by_ammunition(make_env: Callable[..., DoomEnv], held: bool) -> None:
    env = make_env("defend_the_center")
    env.reset(seed=3)
    by_weapon = EpisodeCounter(LINE, PROBES)
    for step in range(100):
        action = FIRE if held or step % 15 == 0 else IDLE
        before = env.probes()
        env.step(action)
        by_weapon.count(action, before, env.probes(), monster=True)
    spent = 26 - env.probes()[PROBES.index("SELECTED_WEAPON_AMMO")]
    estimate = by_weapon.facts(env.probes(), LINE.goals[0], LINE)["shots"]
    assert spent > 3
    assert abs(estimate - spent) <= 1
