"""How a world ranks agents: known correlations come back, and what cannot be ranked is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from playserve.errors import BadSettingError, DataLossError, NotFoundError, StateError
from playserve_trainer.worlds.ranking import Played, TooFewAgentsError, rank_agents, read_played


def played(name: str, mean: float, *, spread: float = 1.0, title: str = "the game", seed: int = 0) -> Played:
    rng = np.random.default_rng([seed, int(name)])
    noise = rng.normal(size=60)
    scores = mean + spread * (noise - noise.mean())
    return Played(f"agent-{name}", "1", title, "sample", scores, True, Path(name))


def sides(real: Sequence[float], imagined: Sequence[float], **options: Any) -> tuple[list[Played], list[Played]]:
    return (
        [played(str(i), mean, **options) for i, mean in enumerate(real)],
        [played(str(i), mean, title="the world", seed=1, **options) for i, mean in enumerate(imagined)],
    )


def test_a_world_that_orders_agents_as_the_game_does_has_a_rank_correlation_of_1() -> None:
    found = rank_agents(*sides(np.arange(12.0) ** 2, 3 + 10 * np.arange(12.0)), resamples=300)
    assert found["spearman"]["value"] == pytest.approx(1.0)
    assert 0.9 < found["pearson"]["value"] < 0.99
    both = found["spearman"]["agents_and_episodes"]
    assert 0.9 < both["low"] <= both["high"] <= 1.0
    assert [row["policy"] for row in found["agents"]] == [f"agent-{i}" for i in range(11, -1, -1)]
    assert found["agents"][0]["real"]["mean"] == pytest.approx(121.0)
    assert found["agents"][0]["real"]["se"] == pytest.approx(1 / np.sqrt(60), rel=0.5)
    json.dumps(found, allow_nan=False)


def test_the_interval_holds_the_noise_of_episodes_and_of_agents() -> None:
    means = np.random.default_rng(3).normal(size=14)
    sharp = rank_agents(*sides(means, means, spread=0.01), resamples=400)["spearman"]
    noisy = rank_agents(*sides(means, means, spread=6.0), resamples=400)["spearman"]
    assert sharp["episodes"]["low"] > 0.97
    assert noisy["episodes"]["low"] < sharp["episodes"]["low"] - 0.1
    unrelated = rank_agents(*sides(means, np.roll(means, 5), spread=0.01), resamples=400)["spearman"]
    assert unrelated["agents_and_episodes"]["low"] < 0 < unrelated["agents_and_episodes"]["high"]
    assert unrelated["episodes"]["high"] - unrelated["episodes"]["low"] < 0.1


def test_the_same_seed_gives_the_same_interval() -> None:
    of = sides(np.arange(10.0), np.arange(10.0)[::-1], spread=3.0)
    assert rank_agents(*of, resamples=50, seed=4) == rank_agents(*of, resamples=50, seed=4)
    assert rank_agents(*of, resamples=50)["spearman"]["value"] == pytest.approx(-1.0)


def test_few_agents_are_ranked_only_when_asked_for() -> None:
    real, imagined = sides(np.arange(6.0), np.arange(6.0))
    with pytest.raises(TooFewAgentsError, match=r"6 agents played both.*--few"):
        rank_agents(real, imagined)
    found = rank_agents(real, imagined[:4], few=True, resamples=50)
    assert len(found["agents"]) == 4
    assert "played in the real game only, and left out: agent-4 1, agent-5 1" in found["notes"]
    with pytest.raises(TooFewAgentsError, match="2 agents"):
        rank_agents(real[:2], imagined, few=True)


def test_tables_that_do_not_belong_together_are_refused() -> None:
    real, imagined = sides(np.arange(10.0), np.arange(10.0))
    with pytest.raises(BadSettingError, match="comes twice among the real tables"):
        rank_agents([*real, real[3]], imagined)
    with pytest.raises(BadSettingError, match="of several environments: another; the game"):
        rank_agents([*real[1:], played("0", 1.0, title="another")], imagined)
    with pytest.raises(StateError, match="the same imagined return"):
        rank_agents(real, [played(str(i), 2.0, spread=0.0, title="the world") for i in range(10)])


def table(folder: Path, **changes: Any) -> Path:
    value = {
        "policy": {"name": "agent", "version": "3"},
        "title": "the game",
        "complete": True,
        "rows": [{"key": key, "role": role} for key, role in
                 (("sample", "agent"), ("argmax", "agent"), ("random", "baseline"))],
        "episodes": [{"row": row, "score": score} for row, score in
                     (("sample", 1.0), ("sample", 3.0), ("argmax", 5.0), ("random", 0.0))],
    } | changes  # fmt: skip
    folder.mkdir(exist_ok=True)
    (folder / "results.json").write_text(json.dumps(value))
    return folder


def test_the_sampled_agent_of_a_table_is_read_or_the_row_that_is_named(tmp_path: Path) -> None:
    found = read_played(table(tmp_path))
    assert (found.policy, found.version, found.row, found.scores.tolist()) == ("agent", "3", "sample", [1.0, 3.0])
    assert read_played(tmp_path, "argmax").scores.tolist() == [5.0]
    with pytest.raises(BadSettingError, match="--row"):
        read_played(tmp_path, "random")


def test_tables_that_are_not_there_or_damaged_are_told(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="playserve rollout --out"):
        read_played(tmp_path / "nowhere")
    with pytest.raises(DataLossError, match="damaged"):
        read_played(table(tmp_path, policy={}))
    with pytest.raises(DataLossError, match="0 episodes"):
        read_played(table(tmp_path, episodes=[]))
    with pytest.raises(BadSettingError, match="wanted one row of an agent"):
        read_played(table(tmp_path, policy={"name": "", "version": ""}))
