"""Worlds whose sessions move to another replica: their players notice nothing, and nothing that was done is lost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from handoff_kit import give, replica, replicas
from tiny_dream import dream
from tiny_world import TinyWorld

from playserve.errors import NotImplementedHereError
from playserve.settings import Extras, Pace
from playserve_client.aio import PolicyClient
from playserve_services.inference.handoff import giving
from playserve_trainer.models.policy import Policy

ACTIONS = [0, 2, 2, 1, 1, 2, 1, 1, 2, 0, 2, 1]
WORLDS: Mapping[str, Callable[[], Policy]] = {"tiny": TinyWorld, "dream": dream}


def shown(result: Any) -> tuple[Any, ...]:
    named = {name: np.asarray(array).tobytes() for name, array in result.outputs.items()}
    assert set(named) == {"frame", "reward", "terminated", "uncertainty"}
    assert result.actions == ()
    return named, tuple(round(value, 4) for value in result.log_prob), result.dropped


async def played(client: PolicyClient, world: str, pace: Pace, move: Callable[[str], Any] | None = None) -> list[Any]:
    """Return what a world shows; before its sixth step `move` is told its session."""
    session = await client.play(world, pace=pace, seed=5, extras=Extras(log_prob=True))
    frames = []
    for number, action in enumerate(ACTIONS):
        if number == 6 and move is not None:
            await move(session.session_id)
        if number == 9:
            await session.reset()
        frames.append(shown(await session.step_world(action, timeout_s=20)))
    await session.close()
    return frames


@pytest.mark.parametrize("world", sorted(WORLDS))
@pytest.mark.parametrize("pace", [Pace.LIVE, Pace.LOCKSTEP])
@pytest.mark.parametrize("large", [False, True])
async def test_a_world_moves_between_replicas(
    world: str, pace: Pace, large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if large:  # in a snapshot of many pieces, then what has changed
        monkeypatch.setattr(giving, "_AT_ONCE_BYTES", 0)
        monkeypatch.setattr(giving, "CHUNK_BYTES", 1500)
    async with replicas({world: WORLDS[world]}) as (here, there), PolicyClient(f"127.0.0.1:{here.port}") as client:
        wanted = await played(client, world, pace)
        assert len({frame[0]["frame"] for frame in wanted}) > 4
        assert await played(client, world, pace, lambda session_id: give(here, session_id)) == wanted
        assert (len(here.core), len(there.core)) == (0, 0)


async def test_what_a_world_drew_is_as_likely_whoever_shares_its_batch() -> None:
    """Where somebody else's episode begins, one number more is drawn: it is none of this session's."""
    async with replica({"dream": dream}) as server, PolicyClient(f"127.0.0.1:{server.port}") as client:
        alone = await played(client, "dream", Pace.LOCKSTEP)
        assert {len(log_prob) for _, log_prob, _ in alone} == {len(dream().heads())}


async def test_an_evaluator_is_told_that_worlds_have_no_rollout() -> None:
    async with replica({"tiny": TinyWorld}) as server, PolicyClient(f"127.0.0.1:{server.port}") as client:
        with pytest.raises(NotImplementedHereError, match="a world"):
            await client.rollout("tiny", 2)
