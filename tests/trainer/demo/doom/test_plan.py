import json
from pathlib import Path

import pytest

from playserve.cli import build_parser
from playserve_trainer.demo.doom.desktop import play_command
from playserve_trainer.demo.doom.plan import DEMO_PLAN, FULL_PLAN, PLANS, DoomPlan
from playserve_trainer.demo.doom.steps import playing, recording, training

OUT = Path("runs/doom")


@pytest.mark.parametrize("plan", PLANS.values(), ids=list(PLANS))
def test_every_command_is_one_that_playserve_takes(plan: DoomPlan) -> None:
    parser = build_parser()
    record = parser.parse_args(list(recording(plan, OUT).command))
    assert (record.frames, record.out, tuple(record.scenario)) == (plan.frames, OUT / "data", plan.scenarios)
    train = parser.parse_args([*training(plan, OUT).command, "--resume"])
    assert (train.publish, train.store, train.max_minutes) == ("doom", "runs/doom/store", plan.minutes)
    begun = parser.parse_args(list(training(plan, OUT, Path("carried")).command))
    assert begun.init_from == "carried"
    for rollout in plan.rollouts():
        play = parser.parse_args(list(playing(plan, rollout, OUT, "127.0.0.1:1234").command))
        assert (play.scenario, play.goal, play.text) == (rollout.scenario, rollout.goal, rollout.text)
        assert play.no_baselines == (rollout.baseline_episodes == 0)
    assert parser.parse_args(list(play_command("127.0.0.1:1", OUT / "play.json"))).window == "vizdoom"
    assert json.loads(json.dumps(plan.to_json())) == plan.to_json()


def test_the_full_recipe_measures_what_was_promised_beforehand() -> None:
    plan = FULL_PLAN
    assert len(plan.scores) == 3
    assert len(plan.maps) == 2
    assert (plan.score_limit, plan.desktop_limit, plan.goal_limit) == (0.7, 0.6, 0.8)
    assert plan.desktop_episodes >= 30
    rollouts = plan.rollouts()
    assert len({rollout.key for rollout in rollouts}) == len(rollouts)
    for scenario in plan.scores:
        assert plan.score_rollout(scenario).episodes >= 100
    for scenario, goals in plan.maps:
        for goal in goals:
            right = plan.goal_rollout(scenario, goal)
            assert right.episodes >= 50
            assert right.phrasing == "held_out"
            assert right.baseline_episodes > 0
            for text, phrasing in (("right", "training"), ("none", "held_out"), ("wrong", "held_out")):
                assert plan.goal_rollout(scenario, goal, text=text, phrasing=phrasing).episodes >= 50
    assert plan.minutes < plan.minutes_limit


def test_the_demo_leaves_time_for_everything_else() -> None:
    assert DEMO_PLAN.minutes < 8
    assert DEMO_PLAN.desktop_episodes == 0


def test_a_score_and_a_goal_that_are_the_same_games_are_played_once() -> None:
    keys = [rollout.key for rollout in FULL_PLAN.rollouts()]
    assert keys.count("health-gathering-collect-right-held-out") == 1
    assert FULL_PLAN.score_rollout("health_gathering") == FULL_PLAN.goal_rollout("health_gathering", "collect")
