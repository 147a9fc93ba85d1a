"""An actor process: several environments, each with a FOLLOW session of its own at the inference service.

It holds no weights and knows no torch. Actions, their log-probabilities and the version that drew them come from the
wire; every T steps an unroll goes to the learner. A pipe that is full makes environments wait, and nothing else.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from playserve.errors import (
    BadActionError,
    ServerFault,
    ServerUnavailableError,
    SessionEndedError,
    TimeoutExceededError,
)
from playserve.settings import Extras, Pace, VersionPolicy
from playserve.specs import PolicySpec
from playserve_client.aio import PolicyClient
from playserve_client.aio.session import Session
from playserve_client.envs.registry import make_env
from playserve_client.evaluate.observations import EnvSpec, match_inputs
from playserve_client.workers import worker_life
from playserve_trainer.rl.unrolls import EpisodeEnd, UnrollBuilder

__all__ = ["ActorSettings", "act"]

#: What `Session.step` waits for an answer: a server on a busy machine that loads a version may take its time.
_TIMEOUT_S = 60.0
#: How often in a row a session may be lost before its first answer.
_MAX_LOSSES = 3
_AFTER_LOSS_S = 1.0

# A session that ends so is opened again: the server has restarted, or all processes stood still for a while.
_LOSSES = (SessionEndedError, ServerUnavailableError, TimeoutExceededError)


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorSettings:
    """What every actor process is told.

    Attributes:
        server: "host:port".
        policy: Name of the policy.
        env: Family of the environments, or module:factory.
        game: Game of the family, or "".
        env_options: Further arguments of the environments' factory.
        unroll: Steps of an unroll.
        life_ends: Whether the loss of a life ends what an action is worth; the game goes on.
        seed: Of the run.
        attempt: How often the run was resumed: its episodes shall not be played again.
    """

    server: str
    policy: str
    env: str
    game: str
    env_options: Mapping[str, Any]
    unroll: int
    life_ends: bool
    seed: int
    attempt: int


def act(connection: Connection, config: str) -> None:
    """Live in an actor process: play the environments of the first job until the learner closes the pipe."""
    with worker_life(connection) as jobs:
        settings = ActorSettings(**json.loads(config))
        for job in jobs:
            asyncio.run(_Actor(connection, settings).run(job["env_ids"]))
            return


class _Actor:
    def __init__(self, connection: Connection, settings: ActorSettings) -> None:
        self._connection, self._settings = connection, settings
        # One thread sends: unrolls of an environment keep their order, and a full pipe does not stop the others.
        self._sender = ThreadPoolExecutor(1, thread_name_prefix="playserve-unrolls")

    async def run(self, env_ids: Sequence[int]) -> None:
        """Play until the pipe closes."""
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self._connection.fileno(), stop.set)  # the learner says nothing more: it closes
        async with PolicyClient(self._settings.server, timeout_s=_TIMEOUT_S) as client:
            tasks = [asyncio.create_task(self._play(client, env_id)) for env_id in env_ids]
            stopping = asyncio.create_task(stop.wait())
            try:
                await asyncio.wait([*tasks, stopping], return_when=asyncio.FIRST_COMPLETED)
            finally:
                loop.remove_reader(self._connection.fileno())
                for task in (*tasks, stopping):
                    task.cancel()
                results = await asyncio.gather(*tasks, return_exceptions=True)
        # Two messages at once would be none: the pipe is this thread's from here on.
        await loop.run_in_executor(None, self._sender.shutdown)
        if not stop.is_set():
            raise next((r for r in results if isinstance(r, Exception)), ServerFault("a game ended for no reason"))

    async def _play(self, client: PolicyClient, env_id: int) -> None:
        settings = self._settings
        env = make_env(settings.env, settings.game, **settings.env_options)
        if (cv2 := sys.modules.get("cv2")) is not None:
            cv2.setNumThreads(1)
        game, losses = _Game(self, env, env_id), 0
        while True:
            session = client.play(
                settings.policy,
                version_policy=VersionPolicy.FOLLOW,
                pace=Pace.LOCKSTEP,
                seed=_seed(settings.seed, settings.attempt, env_id, game.episode),
                extras=Extras(log_prob=True),
            )
            try:
                async with session:
                    await game.run(session)
            except _LOSSES:
                losses = 1 if game.steps else losses + 1
                if losses > _MAX_LOSSES:
                    raise
                game.give_up_episode()
                await asyncio.sleep(_AFTER_LOSS_S)

    async def send(self, data: bytes) -> None:
        """Send a message to the learner; wait while it has no room."""
        await asyncio.get_running_loop().run_in_executor(self._sender, self._connection.send_bytes, data)

    @property
    def settings(self) -> ActorSettings:
        """What the process was told."""
        return self._settings


class _Game:
    """One environment, whatever session it plays by.

    Attributes:
        episode: Number of the episode.
        steps: That this session has answered.
    """

    def __init__(self, actor: _Actor, env: Any, env_id: int) -> None:
        self._actor, self._env, self._env_id = actor, env, env_id
        self._spec, self._names = EnvSpec.of(env), dict[str, str]()
        self._lives = getattr(env, "lives", None) if actor.settings.life_ends else None
        self._builder = UnrollBuilder(env_id, actor.settings.unroll)
        self.episode, self.steps = 0, 0

    async def run(self, session: Session) -> None:
        """Play one episode after another."""
        settings, self.steps = self._actor.settings, 0
        self._names = match_inputs(self._spec, session.spec)
        _check_heads(session.spec)
        while True:
            seed = _seed(settings.seed, settings.attempt, self._env_id, self.episode)
            # The first reset seeds the emulator; afterwards its own random stream goes on, which spares loading it.
            options = {"reseed": False} if self.episode else None
            observation, _ = self._env.reset(seed=seed, options=options)
            if self.steps:
                await session.reset()
            await self._episode(session, observation, seed)
            self.episode += 1

    def give_up_episode(self) -> None:
        """Forget what of the episode was not sent; the learner sees by the number that something is missing."""
        self._builder = UnrollBuilder(self._env_id, self._actor.settings.unroll, number=self._builder.number + 1)
        self.episode += 1

    async def _episode(self, session: Session, observation: Any, seed: int) -> None:
        """Play one episode to its end."""
        builder, env = self._builder, self._env
        lives = self._lives() if self._lives else 0
        score, steps, action, ended = 0.0, 0, -1, False
        while not ended:
            inputs = self._inputs(observation)
            unroll = builder.observe(inputs, executed=action, first=steps == 0)
            if unroll is not None:
                await self._actor.send(unroll.to_bytes())
            action = int(await session.step(inputs))  # type: ignore[arg-type]
            result = session.last_result
            if result is None or len(result.log_prob) != 1:
                raise ServerFault(f"the service sent no log-probability with step {session.last_seq}")
            observation, reward, terminated, truncated, _ = env.step(action + self._spec.first_action)
            self.steps += 1
            left = self._lives() if self._lives else 0
            score, steps, ended = score + float(reward), steps + 1, bool(terminated or truncated)
            version = int(result.version)
            builder.act(action, result.log_prob[0], float(reward), end=ended or left < lives, version=version)
            lives = left
        builder.end_episode(EpisodeEnd(score, steps, version, seed))

    def _inputs(self, observation: Any) -> dict[str, NDArray[Any]]:
        if isinstance(observation, Mapping):
            return {name: observation[key] for name, key in self._names.items()}
        return dict.fromkeys(self._names, observation)


def _check_heads(spec: PolicySpec) -> None:
    if getattr(spec.action, "n", None) is None:
        raise BadActionError(f"policy {spec.name!r} has keyboard and mouse; learning from play knows discrete actions")


def _seed(*key: int) -> int:
    """Return a seed of 32 bits that no other key is likely to have, an evaluator's small numbers neither."""
    return int(np.random.SeedSequence(key).generate_state(1)[0])
