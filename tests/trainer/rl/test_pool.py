"""Actor processes against a fake server: what they send is what was played; those that die are reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from playserve.errors import BadSettingError, ServerFault
from playserve.specs import DiscreteActionSpec, PolicySpec, TensorSpec
from playserve.testing import FakePolicy, FakePolicyServer, FakeReply
from playserve_trainer.rl.actors import ActorSettings
from playserve_trainer.rl.errors import ActorsLostError
from playserve_trainer.rl.pool import ActorPool
from playserve_trainer.rl.unrolls import Unroll


def follower(inputs: dict[str, Any], context: Any) -> FakeReply:
    """Play the lit field, and say so with a log-probability that tells the field."""
    lit = int(np.argmax(inputs["frame"]))
    return FakeReply(actions=(lit,), log_prob=(-0.25 * lit,))


def settings(server: str, **options: Any) -> ActorSettings:
    return ActorSettings(
        server=server, policy="toy", env="toy_bandit:Bandit", game="", env_options=options, unroll=5, life_ends=True,
        seed=3, attempt=0,
    )  # fmt: skip


def exhaust(pool: ActorPool) -> None:
    while True:
        pool.take(0.2)


def toy() -> FakePolicy:
    frame = TensorSpec(name="frame", dtype="uint8", shape=(3,))
    spec = PolicySpec(name="toy", version="7", family="fake", inputs=(frame,), action=DiscreteActionSpec(n=3))
    return FakePolicy(spec=spec, handler=follower)


def test_unrolls_are_what_was_played_and_a_dead_process_is_reported(tmp_path: Path) -> None:
    said, crash = list[str](), tmp_path / "crash"
    with FakePolicyServer({"toy": toy()}) as server:
        pool = ActorPool(
            settings(server.address, lives=2, crash=str(crash)), num_envs=3, processes=1, queue_size=2, note=said.append
        )
        with pool:
            unrolls = list[Unroll]()
            while len(unrolls) < 8:
                unroll = pool.take(0.2)
                unrolls += [unroll] if unroll and unroll.env_id == 1 else []
            assert pool.waiting <= 2
            crash.touch()
            with pytest.raises(ActorsLostError, match="actor 0 died"):
                exhaust(pool)
    assert said == ["actor 0 died; 0 of 1 actor processes go on"]
    assert [unroll.number for unroll in unrolls] == list(range(8))
    steps = 0
    for unroll in unrolls:
        lit = unroll.inputs["frame"].argmax(-1)
        assert unroll.actions.tolist() == lit[:-1].tolist()
        np.testing.assert_allclose(unroll.log_probs, -0.25 * unroll.actions)
        assert unroll.rewards.tolist() == [1.0] * 5
        assert unroll.versions.tolist() == [7] * 5
        for t in range(6):
            first = (steps + t) % 8 == 0
            assert unroll.first[t] == first
            if t:
                assert unroll.executed[t] == (-1 if first else unroll.actions[t - 1])
                assert unroll.ends[t - 1] == ((steps + t) % 4 == 0)  # a life is lost in the middle of each episode
        steps += 5
    episodes = [episode for unroll in unrolls for episode in unroll.episodes]
    assert [(e.score, e.steps, e.version) for e in episodes] == [(8.0, 8, 7)] * 5
    assert len({e.seed for e in episodes}) == 5


def test_a_lost_session_is_opened_again_and_what_was_under_way_is_not_made_up() -> None:
    with FakePolicyServer({"toy": toy()}) as server:
        with ActorPool(settings(server.address), num_envs=1, processes=1, queue_size=2, note=print) as pool:
            before = next_of(pool).number
            (session,) = server.sessions()
            server.end_session(session)
            while (unroll := next_of(pool)).number == before + 1:
                before = unroll.number
            assert server.sessions() != [session]
    assert unroll.number == before + 2
    assert unroll.first[0]


def next_of(pool: ActorPool) -> Unroll:
    while (unroll := pool.take(0.2)) is None:
        pass
    return unroll


def test_an_actor_that_fails_says_why() -> None:
    said = list[str]()
    with FakePolicyServer({"toy": toy()}) as server:
        with ActorPool(
            settings(server.address, wrong=1), num_envs=1, processes=1, queue_size=2, note=said.append
        ) as pool:
            with pytest.raises(ActorsLostError, match="wrong"):
                exhaust(pool)
    assert "actor 0 failed: TypeError" in said[0]
    assert issubclass(ActorsLostError, ServerFault)


def test_more_processes_than_environments_are_refused() -> None:
    with pytest.raises(BadSettingError, match="2 actor processes"):
        ActorPool(settings(""), num_envs=1, processes=2, queue_size=1, note=print)
