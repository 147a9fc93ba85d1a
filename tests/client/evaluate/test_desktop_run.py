"""Environments of keyboard and mouse, and instructions: what is played, kept, and said to the agent."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from playserve.actions import DesktopAction
from playserve.errors import BadActionError, BadSettingError
from playserve.settings import MouseDecode
from playserve.specs import DesktopActionSpec, DiscreteActionSpec, PolicySpec, TensorSpec
from playserve.testing import FakePolicyServer
from playserve_client.evaluate.actions import pack_actions, packed_bytes, unpack_actions
from playserve_client.evaluate.journal import Journal
from playserve_client.evaluate.messages import desktop_message, desktop_of
from playserve_client.evaluate.observations import EnvSpec, match_inputs
from playserve_client.evaluate.plan import EnvChoice, Settings
from playserve_client.evaluate.run import RunOptions, evaluate

ACTIONS = [
    DesktopAction(frozenset({"KeyA", "Space"}), frozenset({0, 2}), -3.5, 2.0, 1.0),
    DesktopAction(),
    DesktopAction(frozenset({"KeyD"}), mouse_dx_px=7.0),
]


@pytest.fixture(scope="session")
def desktop(toys: ModuleType) -> ModuleType:
    return importlib.import_module("toy_desktop")


def settings(**changes: Any) -> Settings:
    env = EnvChoice(family="toy_desktop:ToyDesktop", game="toy", max_steps=50)
    wanted = Settings(
        env=env, policy="toy-desktop", episodes=4, argmax_episodes=0, baseline_episodes=0, seed_start=100
    )  # fmt: skip
    return dataclasses.replace(wanted, **changes)


def play(server: FakePolicyServer | None, out: Path, wanted: Settings) -> dict[str, Any]:
    address = "" if server is None else server.address
    return evaluate(wanted, RunOptions(out=out, server=address, envs=3, workers=1, reconnect_s=5.0))


def test_each_episode_is_played_by_its_own_instruction(desktop: ModuleType, tmp_path: Path) -> None:
    with FakePolicyServer({"toy-desktop": desktop.policy()}) as server:
        report = play(server, tmp_path / "own", settings())
        journal = _journal(tmp_path / "own")
        for number in range(4):
            steps = 3 + (100 + number) % 4
            result = journal.results["sample", number]
            moved = sum(range(steps)) / 1000
            assert result.score == pytest.approx(steps + moved)
            word = ("left", "right")[number % 2]
            assert result.facts["instruction"] == f"go {word}"
            kept = journal.actions(result)
            assert kept == [
                DesktopAction(frozenset({desktop.WORDS[word]}), mouse_dx_px=float(step)) for step in range(steps)
            ]
        assert not report["failed"]
        # One word for all: half of them are told the wrong one.
        told = settings(instruction="go left")
        play(server, tmp_path / "left", told)
        journal = _journal(tmp_path / "left")
        assert [journal.results["sample", n].score >= 1 for n in range(4)] == [True, False, True, False]
        assert "instruction of every episode: 'go left'" in told.protocol()
        none = settings(instruction="")
        play(server, tmp_path / "none", none)
        journal = _journal(tmp_path / "none")
        assert all(journal.results["sample", n].score < 1 for n in range(4))


def _journal(out: Path) -> Journal:
    journal = Journal(out)
    journal.load()
    return journal


def test_a_policy_that_takes_no_instruction_is_told_none(desktop: ModuleType, tmp_path: Path) -> None:
    with FakePolicyServer({"toy-desktop": desktop.policy(takes_instruction=False)}) as server:
        play(server, tmp_path, settings())
    journal = _journal(tmp_path)
    assert all(journal.results["sample", n].score < 1 for n in range(4))


def test_discrete_policies_do_not_fit_and_it_is_said(desktop: ModuleType, tmp_path: Path) -> None:
    policy = desktop.policy(action=DiscreteActionSpec(n=3))
    with (
        FakePolicyServer({"toy-desktop": policy}) as server,
        pytest.raises(BadActionError, match=r"3 actions.*desktop actions \(\['KeyA', 'KeyD'\]\)"),
    ):
        play(server, tmp_path, settings())


def test_a_policy_without_a_key_that_the_environment_knows_does_not_fit() -> None:
    inputs = (TensorSpec(name="x", dtype="uint8", shape=(2,)),)
    env = EnvSpec(inputs={"": ("uint8", (2,))}, num_actions=0, desktop=DesktopActionSpec(keys=("KeyW",), buttons=(0,)))
    some = PolicySpec(name="p", family="f", inputs=inputs, action=DesktopActionSpec(keys=("Tab",), buttons=(0,)))
    none = dataclasses.replace(some, action=DesktopActionSpec(keys=("Tab",)))
    assert match_inputs(env, some) == {"x": ""}
    with pytest.raises(BadActionError, match="Tab"):
        match_inputs(env, none)
    assert EnvSpec.from_json(env.to_json()) == env


def test_actions_survive_files_and_pipes_and_have_bytes_of_their_own() -> None:
    assert desktop_of(desktop_message([(i, 7, a) for i, a in enumerate(ACTIONS)])) == [
        (i, 7, a) for i, a in enumerate(ACTIONS)
    ]
    packed = pack_actions(ACTIONS, 0)
    assert unpack_actions(packed) == ACTIONS
    other = [*ACTIONS[:-1], DesktopAction(frozenset({"KeyE"}), mouse_dx_px=7.0)]
    assert packed_bytes(pack_actions(other, 0)) != packed_bytes(packed)
    numbers = pack_actions([0, 2, 1], 3)
    assert unpack_actions(numbers) == [0, 2, 1]
    assert packed_bytes(numbers) == np.array([0, 2, 1], np.int16).tobytes()
    assert unpack_actions(pack_actions([], 0)) == []


def test_an_instruction_is_part_of_what_decides_the_results() -> None:
    wanted = settings(instruction="go left")
    assert Settings.from_json(wanted.to_json()) == wanted
    assert "instruction" not in settings().to_json(), "folders from before can go on"
    assert Settings.from_json(settings().to_json()) == settings()
    with pytest.raises(BadSettingError, match="4096"):
        settings(instruction="x" * 5000)


def test_the_decoding_of_mouse_motion_is_part_of_what_decides_the_results(desktop: ModuleType, tmp_path: Path) -> None:
    asked: list[MouseDecode] = []
    policy = desktop.policy()

    def answer(inputs: dict[str, Any], context: Any) -> DesktopAction:
        asked.append(context.sampling.mouse_decode)
        return desktop.answer(inputs, context)  # type: ignore[no-any-return]

    with FakePolicyServer({"toy-desktop": dataclasses.replace(policy, handler=answer)}) as server:
        play(server, tmp_path, settings(episodes=1, mouse_decode="conservative"))
    assert set(asked) == {MouseDecode.CONSERVATIVE}
    assert settings(mouse_decode="mean").to_json() != settings().to_json()
    assert "mouse motion is decoded as mean" in settings(mouse_decode="mean").protocol()
