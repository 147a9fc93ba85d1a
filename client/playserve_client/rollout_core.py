"""Messages of a rollout and their checks, without I/O: both clients, sync and async, drive this one."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from playserve.codec import Action, action_to_proto, clip_action
from playserve.errors import BadRowError, PlayserveError, StateError, from_status
from playserve.settings import ActionSource, Extras, Sampling, check_instruction
from playserve.specs import Codec, PolicySpec
from playserve.v1 import policy_service_pb2 as ps
from playserve.v1 import types_pb2 as pb
from playserve_client.inputs import Frame, InputPacker
from playserve_client.results import RolloutBatch

__all__ = ["Executed", "Ids", "RolloutCore", "RolloutView"]

#: Ids of n rows.
Ids = Sequence[int] | npt.NDArray[np.integer]
#: What was really executed in some environments in answer to their last row, by environment.
Executed = Mapping[int, tuple[Action | None, ActionSource]]

# Room in a message for all that is not input bytes.
_SLACK_BYTES = 64 * 1024


class RolloutCore:
    """One rollout. Not thread-safe: its driver holds a lock.

    Args:
        policy: Name.
        num_envs: Environments.
        version: Version or alias; empty: the newest.
        seed: Seed for rows without episode seeds; None: the server draws one.
        sampling: Sampling settings; None: the server's own.
        extras: Extras wanted.
        codecs: Packings to offer besides raw, best first.
        client: Who is calling.
    """

    def __init__(
        self,
        policy: str,
        num_envs: int,
        *,
        version: str,
        seed: int | None,
        sampling: Sampling | None,
        extras: Extras | None,
        codecs: Sequence[Codec],
        client: pb.ClientInfo,
    ) -> None:
        self.num_envs = num_envs
        self._preferred = tuple(codecs)
        self._opening = ps.RolloutOpen(
            policy=policy,
            version=version,
            num_envs=num_envs,
            seed=seed,
            sampling=sampling.to_proto() if sampling is not None else None,
            extras=extras.to_proto() if extras is not None else None,
            codecs=[codec.value for codec in self._preferred],
            client=client,
        )
        self.opened: ps.RolloutOpened | None = None
        self.spec: PolicySpec | None = None
        self.error: PlayserveError | None = None
        self.pongs = 0
        self._packer: InputPacker | None = None
        self._inbox: deque[RolloutBatch | PlayserveError] = deque()

    def open_request(self) -> ps.RolloutRequest:
        """Return the first message."""
        return ps.RolloutRequest(open=self._opening)

    def step_requests(
        self,
        env_ids: Ids,
        episode_ids: Ids,
        inputs: Frame,
        episode_seeds: Ids | None = None,
        executed: Executed | None = None,
        instructions: Sequence[str] | None = None,
    ) -> list[ps.RolloutRequest]:
        """Return the messages of n rows: one, or as many as the server's largest message makes necessary."""
        if self.error is not None:
            raise self.error
        if self._packer is None or self.opened is None or self.spec is None:
            raise StateError("the rollout is not open yet")
        n = len(env_ids)
        if n == 0 or len(episode_ids) != n or (episode_seeds is not None and len(episode_seeds) != n):
            seeds = "no" if episode_seeds is None else str(len(episode_seeds))
            raise BadRowError(f"{n} env ids, {len(episode_ids)} episode ids, {seeds} seeds; wanted as many of each")
        if instructions is not None:
            if len(instructions) != n:
                raise BadRowError(f"{n} env ids, {len(instructions)} instructions; wanted as many of each")
            for text in set(instructions):
                check_instruction(text)
        arrays = self._packer.rows(inputs, n)
        rest = [] if executed is None else [self._executed(env, *what) for env, what in executed.items()]
        row_bytes = 64 + sum(array.nbytes // n + 1 for _, array in arrays)
        row_bytes += 4 * max(map(len, instructions or ("",)))
        size = max(1, min(n, (self.opened.max_message_bytes - _SLACK_BYTES) // row_bytes))
        requests = []
        for start in range(0, n, size):
            rows = slice(start, start + size)
            mine = {int(env) for env in env_ids[rows]}
            last = start + size >= n
            step = ps.RolloutStep(
                env_ids=[int(i) for i in env_ids[rows]],
                episode_ids=[int(i) for i in episode_ids[rows]],
                episode_seeds=None if episode_seeds is None else [int(i) for i in episode_seeds[rows]],
                inputs=[self._packer.pack_rows(name, array[rows]) for name, array in arrays],
                episode_instructions=None if instructions is None else instructions[rows],
                # With its own row; for environments without a row, with the last message.
                executed=[row for row in rest if row.env_id in mine or last],
            )
            rest = [row for row in rest if row.env_id not in mine]
            requests.append(ps.RolloutRequest(step=step))
        return requests

    def _executed(self, env_id: int, action: Action | None, source: ActionSource) -> ps.RowExecuted:
        assert self.spec is not None  # noqa: S101 - the caller has checked
        if action is not None and source is ActionSource.HUMAN:
            action = clip_action(action, self.spec.action)
        message = None if action is None else action_to_proto(action, self.spec.action)
        return ps.RowExecuted(env_id=env_id, action=message, source=source.value)

    def on_opened(self, opened: ps.RolloutOpened) -> None:
        """Take the answer to `open_request`."""
        self.opened = opened
        self.spec = PolicySpec.from_proto(opened.policy)
        self._packer = InputPacker(self.spec, self._preferred, frozenset(opened.codecs))

    def on_response(self, response: ps.RolloutResponse) -> None:
        """Sort one message of an open stream."""
        kind = response.WhichOneof("message")
        if kind == "result" and self.spec is not None:
            try:
                self._inbox.append(RolloutBatch.from_proto(response.result, self.spec))
            except PlayserveError as error:  # a server that breaks its own spec
                self._inbox.append(error)
        elif kind == "error":
            row_error = from_status(response.error.status)
            row_error.env_id = response.error.env_id if response.error.HasField("env_id") else None
            self._inbox.append(row_error)
        elif kind == "pong":
            self.pongs += 1

    def fail(self, error: PlayserveError) -> None:
        """End the rollout with `error`; the first one stands."""
        self.error = error if self.error is None else self.error

    def has_next(self) -> bool:
        """Return whether :meth:`take` has something to give or to raise."""
        return bool(self._inbox) or self.error is not None

    def take(self) -> RolloutBatch:
        """Return the next batch, or raise the next row's error or, when nothing is left, the rollout's."""
        if not self._inbox:
            raise self.error if self.error is not None else StateError("nothing has come")
        item = self._inbox.popleft()
        if isinstance(item, PlayserveError):
            raise item
        return item


class RolloutView:
    """What both rollouts, sync and async, say of themselves."""

    _core: RolloutCore

    @property
    def spec(self) -> PolicySpec:
        """Return the spec of the policy version in use."""
        if self._core.spec is None:
            raise StateError("the rollout is not open yet")
        return self._core.spec

    @property
    def opened(self) -> ps.RolloutOpened:
        """Return the server's answer to RolloutOpen: limits and seed."""
        if self._core.opened is None:
            raise StateError("the rollout is not open yet")
        return self._core.opened

    @property
    def session_id(self) -> str:
        """Return the public id, for operators and logs."""
        return self.opened.session_id

    @property
    def seed(self) -> int:
        """Return the seed in use."""
        return self.opened.seed

    @property
    def num_envs(self) -> int:
        """Return the number of environments."""
        return self._core.num_envs
