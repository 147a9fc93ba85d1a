"""A served world as an environment, and agents that are evaluated in it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from fake_world import fake_world, world_spec

from playserve.cli import main
from playserve.errors import BadActionError, UnsupportedError
from playserve.specs import DiscreteActionSpec, ImageFormat, PolicySpec, TensorSpec
from playserve.testing import FakePolicy, FakePolicyServer, StepContext
from playserve_client.envs.registry import make_env
from playserve_client.envs.world import Eyes, eyes_of

STACK = TensorSpec(name="frames", dtype="uint8", shape=(8, 8, 4), image_format=ImageFormat.GRAY8_STACK)
AGENT = PolicySpec(name="agent", family="fake", version="1", inputs=(STACK,), action=DiscreteActionSpec(n=6))


def act(inputs: Any, context: StepContext) -> int:
    """Fire where nothing has moved within the stack, else go right."""
    stack = inputs["frames"]
    return 5 if (stack == stack[..., :1]).all() else 4


@pytest.fixture
def server() -> Iterator[FakePolicyServer]:
    policies = {
        "coins": fake_world(world_spec(side=16, environment={"game": "coins"}), episode_steps=9),
        "agent": FakePolicy(spec=AGENT, handler=act),
    }
    with FakePolicyServer(policies) as started:
        yield started


def test_an_episode_is_its_seed_and_its_actions(server: FakePolicyServer) -> None:
    env = make_env("world", "coins", server=server.address, max_steps=5)
    assert isinstance(env.action_space, gymnasium.spaces.Discrete)
    runs = []
    for seed in (3, 4, 3):
        observation, _ = env.reset(seed=seed)
        frames, rewards = [observation], []
        for action in (4, 4, 5, 0, 1):
            observation, reward, terminated, truncated, info = env.step(action)
            frames.append(observation)
            rewards.append(reward)
        assert (terminated, truncated) == (False, True)
        assert info["episode_facts"] == {"uncertainty": 2.5}
        with pytest.raises(gymnasium.error.ResetNeeded):
            env.step(0)
        runs.append((np.stack(frames).tobytes(), rewards))
    assert runs[0] == runs[2]
    assert runs[0][0] != runs[1][0]
    assert runs[0][1] == [0, 0, 1, 0, 0]
    env.reset()
    with pytest.raises(BadActionError):
        env.step(6)
    env.close()


def test_an_agent_sees_a_world_as_its_environment_would_show_it(server: FakePolicyServer) -> None:
    eyes = eyes_of(AGENT)
    assert eyes == Eyes(height=8, width=8, channels=1, stack=4)
    env: Any = make_env(
        "world", "coins", server=server.address, eyes={"height": 8, "width": 8, "channels": 1, "stack": 4}
    )
    first, _ = env.reset(seed=3)
    assert first.shape == (8, 8, 4)
    assert (first == first[..., :1]).all()
    second = env.step(4)[0]
    assert (second[..., :3] == first[..., 1:]).all()
    assert env.rgb().shape == (16, 16, 3)
    larger: Any = make_env("world", "coins", server=server.address, eyes={"height": 40, "width": 40, "channels": 3})
    assert larger.reset(seed=3)[0].shape == (40, 40, 3)
    env.close(), larger.close()
    text = TensorSpec(name="text", dtype="uint8", shape=(24, 80))
    with pytest.raises(UnsupportedError, match="text"):
        eyes_of(PolicySpec(name="n", family="f", inputs=(text,), action=AGENT.action))


def test_an_agent_is_evaluated_in_a_world(server: FakePolicyServer, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [
        "rollout", "world:coins", "--policy", "agent", "--server", server.address, "--episodes", "3",
        "--argmax-episodes", "1", "--baseline-episodes", "2", "--envs", "2", "--workers", "1", "--max-steps", "40",
        "--out", str(out),
    ]  # fmt: skip
    assert main(command) == 0
    report = json.loads((out / "results.json").read_text())
    episodes = [e for e in report["episodes"] if e["row"].startswith("sample")]
    assert [(e["score"], e["steps"]) for e in episodes] == [(9.0, 9)] * 3  # the frame stands still: it always fires
    assert all(e["facts"]["uncertainty"] == 4.5 for e in episodes)
    settings = report["settings"]["env"]
    assert settings["options"]["version"] == "1"
    assert server.address not in json.dumps(settings), "where a world is served changes no result"
    assert len(report["episodes"]) == 6


def test_what_is_no_world_is_refused_before_anything_is_played(
    server: FakePolicyServer, tmp_path: Path, capsys: Any
) -> None:
    command = [
        "rollout",
        "world:agent",
        "--policy",
        "agent",
        "--server",
        server.address,
        "--out",
        str(tmp_path / "run"),
    ]
    assert main(command) != 0
    assert "no world" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
