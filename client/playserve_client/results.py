"""What comes back: results of steps and rollouts, and what a server says of its policies, as plain dataclasses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from playserve.codec import Action, Array, action_from_proto, decode_output
from playserve.settings import DropReason
from playserve.specs import DiscreteActionSpec, PolicySpec
from playserve.v1 import policy_service_pb2 as ps
from playserve.v1 import types_pb2 as pb

__all__ = ["Dropped", "PolicyInfo", "RolloutBatch", "StepResult", "StepTimes"]


@dataclass(slots=True)
class StepTimes:
    """Where the time of a step went on the server, microseconds, and how many sessions were in its batch."""

    decode_us: int
    queue_us: int
    compute_us: int
    total_us: int
    batch_size: int

    @classmethod
    def from_proto(cls, message: ps.StepTimes) -> StepTimes:
        """Return the times of a wire message."""
        return cls(message.decode_us, message.queue_us, message.compute_us, message.total_us, message.batch_size)


@dataclass(slots=True)
class Dropped:
    """A step without an answer of its own; `in_memory` says whether its observation entered the memory all the same."""

    seq: int
    reason: DropReason
    in_memory: bool


@dataclass(slots=True)
class StepResult:
    """The answer to one step.

    Attributes:
        seq: The step.
        episode_id: Its episode.
        actions: 1..chunk_length actions to execute one after another; empty for worlds.
        action_period_us: Time between two of them; 0 when there is one.
        outputs: Output tensors by name.
        log_prob: Log-probability of the first action by head, when asked for.
        value: Value estimate, when asked for and known.
        version: Version that made it.
        config_revision: Settings revision that it was made under.
        dropped: Steps since the last result that have no answer of their own.
        gap_ticks: Ticks of steps that did not enter the memory since the last result.
        times: Where the time went on the server.
        capture_time_ns: When the frame was captured, on this client's clock.
        round_trip_s: From sending to receiving, on this client's clock; None for an answer repeated after a resume.
    """

    seq: int
    episode_id: int
    actions: tuple[Action, ...]
    action_period_us: int
    outputs: Mapping[str, Array]
    log_prob: tuple[float, ...]
    value: float | None
    version: str
    config_revision: int
    dropped: tuple[Dropped, ...]
    gap_ticks: int
    times: StepTimes
    capture_time_ns: int
    round_trip_s: float | None = None

    @property
    def action(self) -> Action:
        """Return the first action."""
        return self.actions[0]

    @classmethod
    def from_proto(cls, message: ps.StepResult, spec: PolicySpec, round_trip_s: float | None = None) -> StepResult:
        """Return the result of a wire message."""
        dropped = message.dropped
        return cls(
            message.seq,
            message.episode_id,
            tuple([action_from_proto(action, spec.action) for action in message.actions]),
            message.action_period_us,
            {tensor.name: decode_output(tensor) for tensor in message.outputs},
            tuple(message.log_prob),
            message.value if message.HasField("value") else None,
            message.version,
            message.config_revision,
            tuple([Dropped(d.seq, _drop_reason(d.reason), d.in_memory) for d in dropped]) if dropped else (),
            message.gap_ticks,
            StepTimes.from_proto(message.times),
            message.capture_time_ns,
            round_trip_s,
        )


def _drop_reason(value: int) -> DropReason:
    try:
        return DropReason(value)
    except ValueError:  # a newer server's reason
        return DropReason.UNSPECIFIED


@dataclass(slots=True)
class RolloutBatch:
    """Answers for n rows of a rollout.

    Attributes:
        env_ids: int64 [n].
        episode_ids: int64 [n].
        actions: int32 [n] for discrete actions; a list of n DesktopAction otherwise.
        log_probs: float32 [n] or [n, heads] when asked for, else None.
        values: float32 [n] when asked for and known, else None.
        outputs: Output tensors [n, ...] by name.
        version: Version that made them.
        times: Where the time went on the server, for the oldest row.
    """

    env_ids: Array
    episode_ids: Array
    actions: Array | list[Action]
    log_probs: Array | None
    values: Array | None
    outputs: Mapping[str, Array]
    version: str
    times: StepTimes

    def __len__(self) -> int:
        return len(self.env_ids)

    @classmethod
    def from_proto(cls, message: ps.RolloutResult, spec: PolicySpec) -> RolloutBatch:
        """Return the batch of a wire message."""
        n = len(message.env_ids)
        log_probs = np.array(message.log_probs, np.float32) if message.log_probs else None
        actions: Any
        if isinstance(spec.action, DiscreteActionSpec):
            actions = np.array(message.action_indices, np.int32)
        else:
            actions = [action_from_proto(action, spec.action) for action in message.actions]
        return cls(
            env_ids=np.array(message.env_ids, np.int64),
            episode_ids=np.array(message.episode_ids, np.int64),
            actions=actions,
            log_probs=log_probs if log_probs is None or len(log_probs) == n else log_probs.reshape(n, -1),
            values=np.array(message.values, np.float32) if message.values else None,
            outputs={tensor.name: decode_output(tensor) for tensor in message.outputs},
            version=message.version,
            times=StepTimes.from_proto(message.times),
        )


@dataclass(frozen=True, slots=True)
class PolicyInfo:
    """A policy version as its server describes it.

    Attributes:
        spec: What it takes and gives.
        aliases: Names that point at this version.
        slots_total: Sessions that the server can hold for it.
        slots_free: Of these, free now.
        state_layout: Digest of the memory's layout.
        state_bytes_per_session: Memory of one session on the server, bytes.
    """

    spec: PolicySpec
    aliases: tuple[str, ...] = field(default=())
    slots_total: int = 0
    slots_free: int = 0
    state_layout: str = ""
    state_bytes_per_session: int = 0

    @classmethod
    def from_proto(cls, message: pb.PolicySpec) -> PolicyInfo:
        """Return the description of a wire message."""
        return cls(
            spec=PolicySpec.from_proto(message),
            aliases=tuple(message.aliases),
            slots_total=message.slots_total,
            slots_free=message.slots_free,
            state_layout=message.state_layout,
            state_bytes_per_session=message.state_bytes_per_session,
        )
