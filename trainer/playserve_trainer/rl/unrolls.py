"""Unrolls: what an actor sends to the learner, T steps of one environment, and their bytes.

Numpy only: actors are light processes. Nothing is pickled: a JSON header says names, dtypes and shapes of the arrays
that follow it.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from playserve.errors import MalformedMessageError

__all__ = ["EpisodeEnd", "Unroll", "UnrollBuilder"]

_COLUMNS = ("executed", "first", "actions", "log_probs", "rewards", "ends", "versions")
_LENGTH = struct.Struct("<I")


class EpisodeEnd(NamedTuple):
    """An episode that has ended.

    Attributes:
        score: Sum of the unclipped rewards.
        steps: Its actions.
        version: Policy version of its last action.
        seed: Of the environment.
    """

    score: float
    steps: int
    version: int
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Unroll:
    """T steps of one environment, and the observation after them.

    Attributes:
        env_id: The environment.
        number: How many unrolls of this environment came before.
        inputs: The policy's inputs by name, [T + 1, *shape].
        executed: int64 [T + 1], the action before each observation; -1 at the begin of an episode.
        first: bool [T + 1], observations that begin an episode.
        actions: int64 [T], as the service drew them, and as they were executed.
        log_probs: float32 [T], of the actions under the policy that drew them, from the wire.
        rewards: float32 [T], unclipped.
        ends: bool [T], actions behind which nothing is worth anything: the episode was over, or a life.
        versions: int64 [T], policy version that drew each action, from the wire.
        episodes: Episodes that ended in it.
    """

    env_id: int
    number: int
    inputs: Mapping[str, NDArray[Any]]
    executed: NDArray[np.int64]
    first: NDArray[np.bool_]
    actions: NDArray[np.int64]
    log_probs: NDArray[np.float32]
    rewards: NDArray[np.float32]
    ends: NDArray[np.bool_]
    versions: NDArray[np.int64]
    episodes: tuple[EpisodeEnd, ...] = ()

    @property
    def length(self) -> int:
        """T."""
        return len(self.actions)

    def to_bytes(self) -> bytes:
        """Return the message that :meth:`from_bytes` reads."""
        arrays = [*((f"inputs/{name}", array) for name, array in self.inputs.items()),
                  *((name, getattr(self, name)) for name in _COLUMNS)]  # fmt: skip
        header = json.dumps({
            "env_id": self.env_id, "number": self.number, "episodes": self.episodes,
            "arrays": [[name, array.dtype.name, array.shape] for name, array in arrays],
        }).encode()  # fmt: skip
        parts = [np.ascontiguousarray(array).data.cast("B") if array.size else b"" for _, array in arrays]
        return b"".join([b"U", _LENGTH.pack(len(header)), header, *parts])

    @classmethod
    def from_bytes(cls, data: bytes) -> Unroll:
        """Return the unroll of a message; its arrays lie in `data`.

        Raises:
            MalformedMessageError: The message is cut, or is no unroll.
        """
        try:
            (size,) = _LENGTH.unpack_from(data, 1)
            at = 1 + _LENGTH.size
            header = json.loads(data[at : at + size])
            at += size
            columns: dict[str, Any] = {}
            for name, dtype_name, shape in header["arrays"]:
                dtype, count = np.dtype(dtype_name), math.prod(shape)
                columns[name] = np.frombuffer(data, dtype, count, at).reshape(shape)
                at += count * dtype.itemsize
            inputs = {name.removeprefix("inputs/"): columns.pop(name) for name in list(columns) if "/" in name}
            episodes = tuple(EpisodeEnd(*values) for values in header["episodes"])
            return cls(env_id=header["env_id"], number=header["number"], inputs=inputs, episodes=episodes, **columns)
        except (ValueError, KeyError, TypeError, struct.error) as error:
            raise MalformedMessageError(f"{len(data)} bytes are no unroll: {error}") from error


@dataclass(slots=True)
class UnrollBuilder:
    """Collects the steps of one environment; every T actions an unroll is full.

    Attributes:
        env_id: The environment.
        length: T.
        number: Unrolls made so far.
    """

    env_id: int
    length: int
    number: int = 0
    _seen: list[tuple[Mapping[str, NDArray[Any]], int, bool]] = field(default_factory=list)
    _done: list[tuple[int, float, float, bool, int]] = field(default_factory=list)
    _episodes: list[EpisodeEnd] = field(default_factory=list)

    def observe(self, inputs: Mapping[str, NDArray[Any]], *, executed: int, first: bool) -> Unroll | None:
        """Take an observation, after the action before it; return an unroll if that makes one full.

        Args:
            inputs: The policy's inputs by name; they must not change afterwards.
            executed: The action before it, -1 at the begin of an episode.
            first: Whether it begins an episode.
        """
        self._seen.append((inputs, executed, first))
        if len(self._done) < self.length:
            return None
        actions, log_probs, rewards, ends, versions = zip(*self._done, strict=True)
        unroll = Unroll(
            env_id=self.env_id,
            number=self.number,
            inputs={name: np.stack([seen[0][name] for seen in self._seen]) for name in inputs},
            executed=np.array([seen[1] for seen in self._seen], np.int64),
            first=np.array([seen[2] for seen in self._seen], np.bool_),
            actions=np.array(actions, np.int64),
            log_probs=np.array(log_probs, np.float32),
            rewards=np.array(rewards, np.float32),
            ends=np.array(ends, np.bool_),
            versions=np.array(versions, np.int64),
            episodes=tuple(self._episodes),
        )
        # What was seen after the last action is where the next unroll begins.
        self._seen, self._done, self._episodes, self.number = self._seen[-1:], [], [], self.number + 1
        return unroll

    def act(self, action: int, log_prob: float, reward: float, *, end: bool, version: int) -> None:
        """Take the action that answered the newest observation, and what it brought."""
        self._done.append((action, log_prob, reward, end, version))

    def end_episode(self, episode: EpisodeEnd) -> None:
        """Note that an episode has ended."""
        self._episodes.append(episode)
