"""Scenarios, goals and phrasings; our own map; random play; what experts do with the mouse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("vizdoom")

from playserve.actions import DesktopAction
from playserve.errors import BadSettingError
from playserve.p2p.vocabulary import OPEN_P2P, MouseDecode
from playserve_client.doom.experts import make_expert, needs_of, turn
from playserve_client.doom.maps import VARIANTS, two_vests_wad, variant_of
from playserve_client.doom.noise import Perturbation, random_action
from playserve_client.doom.scenarios import KEYS, SCENARIOS, Goal, scenario_of

NAMED = {
    "basic", "defend_the_center", "defend_the_line", "health_gathering", "deadly_corridor", "my_way_home", "take_cover",
}  # fmt: skip


def test_there_are_the_named_scenarios_and_maps_that_only_the_instruction_tells_apart() -> None:
    assert set(SCENARIOS) >= NAMED
    asking = {name: scenario for name, scenario in SCENARIOS.items() if scenario.asks}
    assert set(asking) == {"defend_the_line", "health_gathering", "two_vests"}
    for scenario in asking.values():
        assert len(scenario.goals) == 2
        assert all(goal.fact for goal in scenario.goals)


def test_every_goal_has_words_to_train_on_and_words_that_are_never_trained_on() -> None:
    goals = [goal for scenario in SCENARIOS.values() for goal in scenario.goals]
    trained = [text for goal in goals for text in goal.phrasings.training]
    held_out = [text for goal in goals for text in goal.phrasings.held_out]
    for goal in goals:
        assert len(set(goal.phrasings.training)) >= 12
        assert len(set(goal.phrasings.held_out)) >= 6
    assert not set(trained) & set(held_out)
    assert len(set(trained)) == len(trained)  # no two goals are asked for by the same words


def test_one_of_two_goals_is_met_by_whatever_is_counted() -> None:
    for name in ("defend_the_line", "health_gathering"):
        first, second = SCENARIOS[name].goals
        for count in range(10):
            facts = {"hits": count, "medkits": count}
            assert first.met(facts) != second.met(facts)
    green, red = SCENARIOS["two_vests"].goals
    assert [(green.met({"armor": a}), red.met({"armor": a})) for a in (0, 100, 200)] == [
        (False, False), (True, False), (False, True),
    ]  # fmt: skip


def test_every_goal_has_an_expert_and_every_key_a_code_of_open_p2p() -> None:
    for scenario in SCENARIOS.values():
        for goal in scenario.goals:
            make_expert(scenario, goal.name)
            needs_of(scenario, goal.name)
    assert set(KEYS) <= set(OPEN_P2P.keys)
    with pytest.raises(BadSettingError, match="there are basic"):
        scenario_of("doom2")


@pytest.mark.parametrize("bearing", [-170.0, -12.3, -0.6, 0.0, 0.2, 1.0, 4.4, 20.0, 180.0])
def test_the_experts_turns_are_centres_of_bins(bearing: float) -> None:
    action = DesktopAction(mouse_dx_px=turn(bearing))
    assert OPEN_P2P.decode(OPEN_P2P.encode(action), MouseDecode.MEAN) == action
    assert abs(turn(bearing)) <= 61
    assert turn(bearing) * bearing >= 0


def test_maps_are_the_same_each_time_and_evaluations_have_their_own(tmp_path: Path) -> None:
    two_vests_wad(tmp_path / "a.wad")
    two_vests_wad(tmp_path / "b.wad")
    content = (tmp_path / "a.wad").read_bytes()
    assert content == (tmp_path / "b.wad").read_bytes()
    assert content[:4] == b"PWAD"
    assert content.count(b"TEXTMAP") == VARIANTS
    words = np.random.default_rng(0).integers(0, 2**32, 200)
    recorded = {variant_of(10_000, int(word)) for word in words}
    evaluated = {variant_of(1_000_000, int(word)) for word in words}
    assert not recorded & evaluated
    assert max(recorded | evaluated) < VARIANTS


def test_perturbations_are_the_asked_share_in_runs_of_one_action() -> None:
    scenario = SCENARIOS["deadly_corridor"]
    noise = Perturbation(scenario, 0.2, 8, np.random.default_rng(0))
    drawn = [noise.next() for _ in range(20_000)]
    share = sum(action is not None for action in drawn) / len(drawn)
    assert 0.17 < share < 0.23
    runs, length = [], 0
    for action in drawn:
        if action is None and length:
            runs.append(length)
        length = 0 if action is None else length + 1
    assert max(runs) > 4
    assert all(noise.next() is None for noise in [Perturbation(scenario, 0.0, 8, np.random.default_rng(0))] * 50)


def test_random_play_presses_what_the_scenario_knows() -> None:
    rng = np.random.default_rng(1)
    actions = [random_action(SCENARIOS["basic"], rng) for _ in range(200)]
    assert {key for action in actions for key in action.keys} == {"KeyA", "KeyD"}
    assert {button for action in actions for button in action.buttons} == {0}
    assert all(action.mouse_dx_px == 0 for action in actions)
    assert not any(random_action(SCENARIOS["basic"], rng, attack=False).buttons for _ in range(50))


def test_a_goal_needs_its_counter() -> None:
    goal = Goal(name="x", phrasings=SCENARIOS["basic"].goals[0].phrasings, fact="kills", at_least=1)
    assert not goal.met({"kills": 0})
    assert goal.met({"kills": 1})
