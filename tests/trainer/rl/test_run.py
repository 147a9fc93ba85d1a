"""Whole runs: the real server, actor processes, the wire between them, and what a kill leaves."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from playserve.errors import NotFoundError
from playserve_trainer import checkpoint
from playserve_trainer.processes import serve
from playserve_trainer.rl.config import RLConfig
from playserve_trainer.rl.errors import ActorsLostError
from playserve_trainer.rl.publishing import Publisher
from playserve_trainer.rl.run import LIVE_STORE, RLRun, Service
from playserve_trainer.train.state import read_state


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def silent(_text: str) -> None:
    pass


@pytest.mark.slow
def test_it_learns_through_the_service_stops_and_goes_on(config: Callable[..., RLConfig]) -> None:
    settings = config(max_steps=2_400)
    out = Path(settings.out)
    run = RLRun(settings, say=silent)
    start = {name: tensor.clone() for name, tensor in run.learner.net.state_dict().items()}
    assert not run.run(lambda: run.learner.steps >= 1_200)
    updates, steps = run.learner.updates, run.learner.steps
    state, tensors = read_state(out)
    assert (state.step, state.samples) == (updates, steps)
    assert any(not torch.equal(tensors[f"model/{name}"], tensor) for name, tensor in start.items())

    again = RLRun(settings, resume=True, say=silent)
    assert (again.learner.updates, again.learner.steps, again.learner.flops) == (updates, steps, run.learner.flops)
    for name, tensor in run.learner.net.state_dict().items():
        assert torch.equal(again.learner.net.state_dict()[name], tensor)
    assert again.run()
    summary = again.finish(finished=True)
    assert summary["steps"] >= 2_400

    curve = lines(out / "curve.jsonl")
    assert [line["step"] for line in curve] == list(range(2, again.learner.updates + 1, 2))
    assert [line["frames"] for line in curve] == [line["steps"] for line in curve]
    assert all(line["lag_updates"] >= 0 and line["lag_versions"] >= 0 for line in curve)
    episodes = lines(out / "episodes.jsonl")
    assert max(episode["version"] for episode in episodes) > 2  # sessions followed
    assert all(episode["length"] == 8 for episode in episodes)
    assert len({episode["seed"] for episode in episodes}) == len(episodes)  # none twice, over the resume either
    scores = [episode["score"] for episode in episodes]
    # A guess scores 8 / 3; who reads the observation, 8.
    assert statistics.fmean(scores[:40]) < 4.5 < 5.5 < statistics.fmean(scores[-40:])

    policy, manifest = checkpoint.load(out / "checkpoint")
    assert manifest.samples_seen == again.learner.steps
    assert not any("critic" in name for name in policy.state_dict())
    assert len(list((out / LIVE_STORE / "learner").iterdir())) <= settings.keep_versions


def test_what_the_wire_says_is_what_the_policy_did(config: Callable[..., RLConfig]) -> None:
    """Before anything is learnt, the learner's log-probabilities are the service's, memory included."""
    settings = config(lr=1e-12, replay=0, max_steps=200)
    run = RLRun(settings, say=silent)
    assert run.run()
    # Means over the two updates of each line; the memory goes on over unrolls and begins anew with episodes.
    for line in lines(Path(settings.out) / "curve.jsonl"):
        assert line["ratio"] == pytest.approx(1.0, abs=1e-4)
        assert line["divergence"] == pytest.approx(0.0, abs=1e-4)


@pytest.mark.slow
def test_a_server_of_ones_own_is_used(config: Callable[..., RLConfig], tmp_path: Path) -> None:
    settings = config(max_steps=60)
    store = tmp_path / "store"
    Publisher(store, "toy", tmp_path, 4, {}).publish(RLRun(settings, say=silent).learner)
    with serve(("serve", "--store", f"{store}", "--port", "0", "--poll-s", "0.2"), tmp_path / "serve.log") as server:
        run = RLRun(settings, Service(server=server, store=str(store), name="toy"), say=silent)
        assert run.run()
    assert not (Path(settings.out) / LIVE_STORE).exists()


@pytest.mark.slow
def test_dead_actors_are_reported_and_the_last_one_ends_the_run(
    config: Callable[..., RLConfig], tmp_path: Path
) -> None:
    crash, said = tmp_path / "crash", list[str]()
    settings = config(max_steps=1_000_000, actor_processes=2, env_options={"crash": str(crash)})
    run = RLRun(settings, say=said.append)

    def soon() -> bool:
        if run.learner.steps >= 60:
            crash.touch()
        return False

    with pytest.raises(ActorsLostError, match="actor 0 died"):
        run.run(soon)
    assert sum("died" in text for text in said) == 2
    assert any("1 of 2 actor processes go on" in text for text in said)
    crash.unlink()
    again = RLRun(config(max_steps=run.learner.steps + 40, env_options={"crash": str(crash)}), resume=True, say=silent)
    assert again.run()


def test_nothing_to_resume_is_an_error(config: Callable[..., RLConfig]) -> None:
    with pytest.raises(NotFoundError):
        RLRun(config(), resume=True, say=silent)
