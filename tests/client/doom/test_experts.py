"""Experts play far better than chance, and do what the goal says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("vizdoom")

from playserve.actions import DesktopAction
from playserve_client.doom.experts import needs_of
from playserve_client.doom.scenarios import SCENARIOS
from playserve_client.envs.doom import DoomEnv
from playserve_client.evaluate.families.doom_players import make_doom_player


def play(env: DoomEnv, kind: str, seed: int, most: int = 1_050) -> dict[str, Any]:
    player = make_doom_player(kind, env.scenario.name, env.goal.name)
    player.reset(seed)
    env.reset(seed=seed)
    terminated = truncated = False
    facts: dict[str, Any] = {}
    while not (terminated or truncated) and env.steps < most:
        _, _, terminated, truncated, info = env.step(player.act(env))  # type: ignore[arg-type]
        facts = info.get("episode_facts", {})
    return {"score": env.score, "steps": env.steps, **facts}


def environment(make_env: Callable[..., DoomEnv], scenario: str, goal: str | None = None) -> DoomEnv:
    needs = needs_of(SCENARIOS[scenario], goal)
    return make_env(scenario, goal=goal, record_labels=needs.depth or needs.walls)


@pytest.mark.parametrize(
    ("scenario", "seeds", "most", "at_least"),
    [
        ("basic", 3, 1_050, 40.0),
        ("defend_the_center", 1, 1_050, 12.0),
        ("defend_the_line", 1, 1_050, 18.0),
        ("deadly_corridor", 1, 1_050, 2000.0),
        ("my_way_home", 2, 1_050, 0.9),
        ("health_gathering", 1, 400, 790.0),
    ],
)
def test_an_expert_does_what_its_scenario_asks(
    make_env: Callable[..., DoomEnv], scenario: str, seeds: int, most: int, at_least: float
) -> None:
    env = environment(make_env, scenario)
    for seed in range(seeds):
        assert play(env, "expert", seed, most)["score"] >= at_least


def test_the_dodger_survives_longer_than_who_stands_still(make_env: Callable[..., DoomEnv]) -> None:
    env = environment(make_env, "take_cover")
    lengths = {kind: sum(play(env, kind, seed)["steps"] for seed in (20, 21)) for kind in ("expert", "idle")}
    assert lengths["expert"] > 1.3 * lengths["idle"]


@pytest.mark.parametrize(
    ("scenario", "goal"),
    [
        ("two_vests", "green"),
        ("two_vests", "red"),
        ("health_gathering", "avoid"),
        ("defend_the_line", "hold_fire"),
    ],
)
def test_an_expert_meets_its_goal_on_the_same_map(make_env: Callable[..., DoomEnv], scenario: str, goal: str) -> None:
    env = environment(make_env, scenario, goal)
    for seed in (1_000_000, 1_000_001):
        facts = play(env, "expert", seed)
        assert facts["goal_met"]
        assert facts["did"] == goal
        assert facts["score"] == 1
        # It does not meet it by doing nothing.
        assert facts["idle_frames"] < 0.7 * facts["steps"]


@pytest.mark.parametrize("name", [name for name, scenario in SCENARIOS.items() if scenario.asks])
def test_only_the_instruction_tells_the_goals_apart(make_env: Callable[..., DoomEnv], name: str) -> None:
    shown, told = [], []
    for goal in SCENARIOS[name].goals:
        env = environment(make_env, name, goal.name)
        observation, info = env.reset(seed=1_000_007)
        frames = [observation["frame"].tobytes()]
        frames += [env.step(DesktopAction(mouse_dx_px=9.0))[0]["frame"].tobytes() for _ in range(10)]
        shown.append(frames)
        told.append(info["instruction"])
    assert shown[0] == shown[1]
    assert told[0] != told[1]
