"""Two replicas in one process, small policies of every family, and games that are the same each time."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import numpy as np
import torch

from playserve.settings import ActionSource, Extras, Pace
from playserve_client.aio import PolicyClient
from playserve_client.aio.session import Session
from playserve_services.inference.app import InferenceServer
from playserve_services.inference.handoff.giving import Given, Giver
from playserve_services.inference.handoff.peers import Peers
from playserve_services.inference.settings import ServeSettings
from playserve_trainer.models.policy import Policy
from playserve_trainer.models.registry import build

__all__ = ["FAMILIES", "Game", "frame_of", "give", "make", "only", "replica", "replicas"]

#: By name: family and config. The transformers' rings wrap within a dozen steps.
FAMILIES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "atari": ("atari", {"game": "breakout", "num_actions": 4, "width": 2}),
    "lstm": ("nethack", {"num_actions": 9, "width": 32, "layers": 2}),
    "transformer": (
        "nethack", {"num_actions": 9, "width": 64, "core": "transformer", "layers": 2, "context": 5},
    ),
    "p2p": (
        "p2p",
        {
            "layers": 3, "width": 32, "heads": 2, "decoder_layers": 2, "decoder_heads": 2, "history": (2, 4, 7),
            "trunk": "conv3", "frame_size": 32, "text_encoder": "words", "text_width": 16, "catch_up_frames": 4,
        },
    ),
}  # fmt: skip


def make(name: str) -> Policy:
    """Return the policy of a name of FAMILIES, the same each time."""
    family, config = FAMILIES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return build(family, config).eval()


def only(*names: str) -> dict[str, Callable[[], Policy]]:
    """Return the factories of some families."""
    return {name: functools.partial(make, name) for name in names}


@contextlib.asynccontextmanager
async def replica(policies: Mapping[str, Callable[[], Policy]], **options: Any) -> AsyncIterator[InferenceServer]:
    """Start one server."""
    settings = ServeSettings(**{"port": 0, "slots": 8, "max_batch": 2, "fixed_batch": True, **options})
    async with InferenceServer(settings, policies) as server:
        yield server


@contextlib.asynccontextmanager
async def replicas(
    policies: Mapping[str, Callable[[], Policy]], **options: Any
) -> AsyncIterator[tuple[InferenceServer, InferenceServer]]:
    """Start two servers, the first of which has the second as its peer."""
    async with (
        replica(policies, **options) as there,
        replica(policies, peers=f"127.0.0.1:{there.port}", **options) as here,
    ):
        yield here, there


async def give(here: InferenceServer, session_id: str, **settings: Any) -> Given:
    """Hand one session to the peer of a server."""
    peers = Peers(here._settings.model_copy(update=settings))
    try:
        (peer,) = await peers.look()
        return await Giver(here.core).give(here.core.find(session_id), peer)
    finally:
        await peers.close()


class Game:
    """One game whose frames are a function of the step: what differs in its answers was caused elsewhere.

    Args:
        client: Plays it.
        policy: Name.
        pace: Whether it waits for answers; here every answer is waited for, so that no step is dropped.
        seed: Of the sampling.
        reset_at: Steps before which an episode begins.
    """

    def __init__(
        self, client: PolicyClient, policy: str, pace: Pace, seed: int = 5, reset_at: tuple[int, ...] = (7,)
    ) -> None:
        self._client, self._policy, self._pace, self._seed = client, policy, pace, seed
        self._reset_at = reset_at
        self.session: Session | None = None
        self.answers: list[Any] = []

    async def __aenter__(self) -> Game:
        instruction = "go on" if self._policy == "p2p" else ""
        self.session = await self._client.play(
            self._policy, pace=self._pace, seed=self._seed, extras=Extras(log_prob=True), instruction=instruction
        )
        return self

    async def __aexit__(self, *error: object) -> None:
        assert self.session is not None
        await self.session.close()

    async def play(self, steps: int) -> None:
        """Play so many steps, and keep their answers."""
        session = self.session
        assert session is not None
        for _ in range(steps):
            number = len(self.answers) + 1
            if number in self._reset_at:
                await session.reset()
            seq = await session.send_step(frame_of(session.spec.inputs, self._seed, number))
            assert seq == number, "no step is taken twice, and none is left out"
            result = await session.recv(20.0)
            assert result.seq == seq
            assert not result.dropped
            self.answers.append((result.action, tuple(result.log_prob or ()), result.episode_id))
            if number % 3:  # at times something else is done than was answered, at times nobody says
                await session.executed(seq, result.action, ActionSource.POLICY)


def frame_of(inputs: Any, seed: int, number: int) -> dict[str, Any]:
    """Return the inputs of one step."""
    rng = np.random.default_rng((seed, number))
    top = {"tty_colors": 16, "tty_cursor": 20}
    return {spec.name: rng.integers(0, top.get(spec.name, 128), spec.shape).astype(spec.numpy_dtype) for spec in inputs}
