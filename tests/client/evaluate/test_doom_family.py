"""Doom in the evaluator: rows, normalised scores, instructions that reach the server, films, wrong words."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vizdoom")

from playserve.actions import DesktopAction
from playserve.cli import main
from playserve.errors import BadSettingError
from playserve.p2p.vocabulary import OPEN_P2P
from playserve.specs import ImageFormat, PolicySpec, TensorSpec
from playserve.testing import FakePolicy, FakePolicyServer, StepContext
from playserve_client.doom.scenarios import SCENARIOS
from playserve_client.envs.doom import instruction_for
from playserve_client.evaluate.families import COMMANDS
from playserve_client.evaluate.families.doom_players import make_doom_player
from playserve_client.evaluate.plan import Settings
from playserve_client.evaluate.run import RunOptions, evaluate
from playserve_client.evaluate.statistics import bootstrap_normalised


def chosen(**words: Any) -> Any:
    """Return the family's choice for a command line."""
    parser = argparse.ArgumentParser()
    COMMANDS["doom"].configure(parser)
    parser.set_defaults(stickiness=None, most_frequent=None, data=None, no_baselines=False)
    line = [part for name, value in words.items() for part in (f"--{name}", str(value))]
    return COMMANDS["doom"].choose(parser.parse_args(line), {}, 60)


def settings(choice: Any, **changes: Any) -> Settings:
    wanted: dict[str, Any] = {"policy": "", "episodes": 2, "argmax_episodes": 0, "baseline_episodes": 3}
    return Settings(env=choice.env, expert=choice.expert, **{**wanted, **changes})


def play(server: FakePolicyServer | None, out: Path, wanted: Settings) -> dict[str, Any]:
    address = "" if server is None else server.address
    return evaluate(wanted, RunOptions(out=out, server=address, envs=2, workers=1, reconnect_s=5.0))


def test_random_idle_and_expert_stand_in_one_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    arguments = ["rollout", "doom", "--scenario", "basic", "--no-agent", "--baseline-episodes", "4", "--envs", "2"]
    assert main([*arguments, "--workers", "1", "--out", str(out), "--record", "1"]) == 0
    printed = capsys.readouterr().out
    for word in ("normalised", "idle s", "wall s", "jitter", "air shots", "misses", "doom basic: shoot_monster"):
        assert word in printed
    report = json.loads((out / "results.json").read_text())
    rows = {row["key"]: row for row in report["rows"]}
    assert rows["expert"]["mean"] > 40 > 0 > rows["random"]["mean"]
    assert rows["idle"]["mean"] == -300
    (idle,) = report["normalised"]
    assert idle["row"] == "idle"
    way = rows["expert"]["mean"] - rows["random"]["mean"]
    assert idle["value"] == pytest.approx((-300 - rows["random"]["mean"]) / way)
    assert rows["expert"]["fact_means"]["kills"] == 1
    # The film is the episode played again: seed and actions are all there is.
    (film,) = report["videos"]
    assert (out / film["path"]).stat().st_size > 1000
    assert not [note for note in report["notes"] if "no video" in note]


def policy(seen: list[tuple[str, tuple[int, ...]]]) -> FakePolicy:
    def answer(inputs: Any, context: StepContext) -> DesktopAction:
        seen.append((context.instruction, np.shape(inputs["frame"])))
        return DesktopAction(frozenset({"KeyW"}), mouse_dx_px=5.0)

    spec = PolicySpec(
        name="doom",
        version="1",
        family="fake",
        inputs=(TensorSpec(name="frame", dtype="uint8", shape=(96, 96, 3), image_format=ImageFormat.RGB8),),
        action=OPEN_P2P.action_spec(),
        rate_hz=20.0,
        takes_instruction=True,
    )
    return FakePolicy(spec=spec, handler=answer, slots=16)


@pytest.mark.parametrize("text", ["right", "none", "wrong"])
def test_the_server_is_told_what_the_family_chose(tmp_path: Path, text: str) -> None:
    seen: list[tuple[str, tuple[int, ...]]] = []
    scenario = SCENARIOS["two_vests"]
    red = scenario.goals[1]
    wanted = settings(chosen(scenario="two_vests", goal="red", text=text), policy="doom", baseline_episodes=0)
    with FakePolicyServer({"doom": policy(seen)}) as server:
        report = play(server, tmp_path, wanted)
    (row,) = report["rows"]
    assert row["episodes"] == 2
    told = {
        instruction_for(scenario, red, wanted.seed_start + number, text=text, phrasing="held_out")  # type: ignore[arg-type]
        for number in range(2)
    }
    assert {instruction for instruction, _ in seen} == told
    assert {shape for _, shape in seen} == {(96, 96, 3)}
    for episode in report["episodes"]:
        assert episode["facts"]["goal"] == "red"
        assert episode["score"] == float(episode["facts"]["goal_met"])


def test_both_goals_of_a_map_have_the_same_seeds() -> None:
    rows = [settings(chosen(scenario="health_gathering", goal=goal)).rows() for goal in ("collect", "avoid")]
    first, second = ([row.assignments(1_000_000, settings(chosen(scenario="basic")).shard) for row in r] for r in rows)
    assert [[a.env_seed for a in row] for row in first] == [[a.env_seed for a in row] for row in second]


def test_wrong_words_are_named_before_anything_is_played() -> None:
    with pytest.raises(BadSettingError, match="no Doom scenario"):
        chosen(scenario="basics")
    with pytest.raises(BadSettingError, match="no goal 'eat'"):
        chosen(scenario="health_gathering", goal="eat")
    with pytest.raises(BadSettingError, match="no wrong instruction"):
        chosen(scenario="basic", text="wrong")
    with pytest.raises(BadSettingError, match="frame_size"):
        chosen(scenario="basic", size=1000)
    with pytest.raises(BadSettingError, match="no player"):
        make_doom_player("bigram", "basic", None)


def test_titles_and_rules_say_what_is_measured() -> None:
    choice = chosen(scenario="health_gathering", goal="avoid", text="wrong")
    assert choice.env.rules.title(choice.env) == "doom health_gathering: avoid, wrong instruction"
    lines = " ".join(settings(choice).protocol())
    assert "medkits at most 3" in lines
    assert "2 tics a step" in lines
    assert "score: 1 where the goal avoid was met" in lines
    assert "the scenario's own reward" in " ".join(settings(chosen(scenario="take_cover")).protocol())


def test_normalised_scores_have_intervals_that_hold_all_three_players_spread() -> None:
    rng = np.random.default_rng(0)
    low, high, agent = (rng.normal(mean, 5, 200) for mean in (0, 100, 80))
    interval = bootstrap_normalised(agent, low, high)
    assert interval is not None
    assert interval.low < 0.8 < interval.high
    assert interval.high - interval.low < 0.05
    wide = bootstrap_normalised(agent, low, high[:5])
    assert wide is not None
    assert wide.high - wide.low > interval.high - interval.low
    assert bootstrap_normalised(agent, low, low) is None  # a way of no length has no parts
    assert bootstrap_normalised(agent[:1], low, high) is None
