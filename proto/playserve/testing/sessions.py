"""Sessions of the fake server: the rules of one session and its memory, and the table of all."""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

from playserve.actions import clip_action, merge_executed
from playserve.codec import (
    Action,
    Array,
    Decoder,
    DesktopAction,
    action_from_proto,
    action_to_proto,
    encode,
    executed_from_proto,
    negotiate,
)
from playserve.errors import (
    AccessDeniedError,
    BadActionError,
    BadSettingError,
    EpisodeReusedError,
    ExecutedUnknownError,
    NoFreeSlotError,
    PlayserveError,
    PolicyNotFoundError,
    RateMismatchError,
    SeqNotIncreasingError,
    SessionNotFoundError,
    StepFailedError,
    VersionNotFoundError,
)
from playserve.settings import (
    ActionSource,
    Consent,
    DropReason,
    Extras,
    Pace,
    Sampling,
    VersionPolicy,
    check_instruction,
    check_rate,
)
from playserve.specs import ActionSpec, DesktopActionSpec, GapMode, Merge, PolicyKind, PolicySpec
from playserve.testing.policies import FakePolicy, FakeReply, StepContext, as_reply
from playserve.v1 import policy_service_pb2 as ps
from playserve.v1 import types_pb2 as pb

__all__ = ["Memory", "Session", "Table", "check_executed", "log_probs", "read_sampling"]


class Memory:
    """Memory of one session, or of one environment of a rollout."""

    def __init__(self, episode_id: int, seed: int) -> None:
        self.episode_id = episode_id
        self.seed = seed
        self.instruction = ""  # of a rollout's episode
        self.reset(episode_id)

    def reset(self, episode_id: int, seed: int | None = None) -> None:
        """Begin an episode."""
        self.episode_id = episode_id
        self.seed = self.seed if seed is None else seed
        self.step = 0
        self.state: dict[str, Any] = {}
        self.executed: Action | None = None
        self.source = ActionSource.UNKNOWN
        self.said = False  # whether the client said so
        self.carried: DesktopAction | None = None  # executed before frames that were dropped since the last step

    def drop(self) -> None:
        """Keep what was executed before a frame that does not enter: it passes to the next one that does."""
        if self.said and isinstance(self.executed, DesktopAction):
            self.carried = self.executed if self.carried is None else merge_executed(self.carried, self.executed)
            self.executed, self.source, self.said = None, self.source, False
        elif self.said:
            self.carried = None  # what was done is unknown from here on

    def told(self, spec: ActionSpec) -> tuple[Action | None, ActionSource]:
        """Return what was executed since the last step that entered, and who chose it."""
        if self.carried is None:
            return self.executed, self.source
        if self.said and isinstance(self.executed, DesktopAction):
            return clip_action(merge_executed(self.carried, self.executed), spec), self.source
        return (None, self.source) if self.said else (clip_action(self.carried, spec), self.source)

    def tell(self, executed: Action | None, source: ActionSource) -> None:
        """Take note of what was executed in answer to the last frame."""
        self.executed, self.source, self.said = executed, source, True

    def run(self, policy: FakePolicy, inputs: dict[str, Array], **context: Any) -> FakeReply:
        """Play one step; when it fails the memory is as it was before."""
        before = dict(self.state)
        executed, source = self.told(policy.spec.action)
        step = StepContext(
            policy=policy.spec, episode_id=self.episode_id, step=self.step, state=self.state, seed=self.seed,
            executed=executed, source=source, **context,
        )  # fmt: skip
        try:
            reply = as_reply(policy.handler(inputs, step))
            for action in reply.actions:
                action_to_proto(action, policy.spec.action)
        except Exception as error:
            self.state = before
            if isinstance(error, PlayserveError) and not isinstance(error, BadActionError):
                raise
            raise StepFailedError(f"the handler failed: {type(error).__name__}: {error}") from error
        self.step += 1
        self.carried, self.said = None, False
        self.executed = reply.actions[0] if reply.actions else None
        self.source = ActionSource.POLICY if reply.actions else ActionSource.UNKNOWN
        return reply


def read_sampling(message: Any) -> Sampling:
    """Return the sampling settings of a message that may carry some."""
    return Sampling.from_proto(message.sampling) if message.HasField("sampling") else Sampling()


def check_executed(message: Any, policy: FakePolicy) -> tuple[Action | None, ActionSource]:
    """Return action and source of an Executed or RowExecuted."""
    spec = policy.spec.action
    action = executed_from_proto(message.action, message.source, spec)
    if message.source == ActionSource.NONE and isinstance(spec, DesktopActionSpec):
        action = DesktopAction()  # nothing is something here: everything is up
    return action, ActionSource(message.source)


def log_probs(reply: FakeReply, extras: Extras) -> tuple[float, ...]:
    """Return the log-probabilities to send."""
    return reply.log_prob if extras.log_prob else ()


class Session:
    """One session: everything that outlives its stream. Callers hold `lock`."""

    def __init__(self, policy: FakePolicy, opened: ps.Open, principal: str, max_bytes: int) -> None:
        spec = policy.spec
        self.policy = policy
        self.pace = Pace.from_proto(opened.pace)
        self.follows = VersionPolicy.from_proto(opened.version_policy) is VersionPolicy.FOLLOW
        self.sampling = read_sampling(opened)
        self.instruction = check_instruction(opened.instruction)
        rate = check_rate(opened.rate_hz)
        if self.pace is Pace.LIVE and rate and spec.rate_hz and rate != spec.rate_hz:
            raise RateMismatchError(f"rate of {rate} Hz, the policy {spec.name!r} plays at {spec.rate_hz} Hz")
        self.extras = Extras.from_proto(opened.extras)
        self.consent = Consent.from_proto(opened.consent)
        self.principal = principal
        self.session_id = secrets.token_hex(8)
        self.token = secrets.token_bytes(16)
        seed = opened.seed if opened.HasField("seed") else secrets.randbits(63)
        self.memory = Memory(opened.episode_id, seed)
        self.revision = 1
        self.last_seq = 0
        self.answered: ps.StepResult | None = None
        self.lock = threading.RLock()
        self.stream: Any = None
        self.detached_at: float | None = None
        self.at_rest = threading.Event()  # cleared while it is handed to another server
        self.at_rest.set()
        self._max_bytes = max_bytes
        self._dropped: list[ps.Dropped] = []
        self._gap_ticks = 0
        self._carried: dict[str, Array] = {}
        self.negotiate(opened.codecs)

    def negotiate(self, offered: Collection[int]) -> None:
        """Agree on codecs with the client that opened or resumed."""
        self.codecs = negotiate(offered, self.policy.spec.inputs)
        self._decoder = Decoder(self.policy.spec.inputs, self.codecs, self._max_bytes)

    def repeated(self, step: ps.Step) -> ps.StepResult | None:
        """Return the answer again where `step` repeats the one answered last."""
        return self.answered if self.answered is not None and step.seq == self.answered.seq else None

    def check(self, step: ps.Step) -> tuple[dict[str, Array], Action | None]:
        """Return inputs and, for worlds, the action of a step that may enter the memory."""
        if step.seq <= self.last_seq:
            raise SeqNotIncreasingError(f"step {step.seq}, wanted more than {self.last_seq}")
        if step.episode_id < self.memory.episode_id:
            raise EpisodeReusedError(f"episode {step.episode_id}, wanted {self.memory.episode_id} or more")
        spec = self.policy.spec
        inputs = self._decoder.decode_step(step.inputs)
        return inputs, action_from_proto(step.action, spec.action) if spec.kind is PolicyKind.WORLD else None

    def drop(self, step: ps.Step, reason: DropReason) -> None:
        """Leave a step out of the memory and remember to say so."""
        inputs, _ = self.check(step)
        self.memory.drop()
        self.last_seq = step.seq
        self._dropped.append(ps.Dropped(seq=step.seq, reason=reason.value))
        self._gap_ticks += step.ticks or 1
        for spec in self.policy.spec.inputs:
            if spec.merge is Merge.SUM:
                self._carried[spec.name] = self._carried.get(spec.name, 0) + inputs[spec.name]

    def play(self, step: ps.Step, *, hidden: DropReason | None = None) -> ps.StepResult | None:
        """Let a step enter the memory; return its answer, unless it is `hidden` for a reason or observes only."""
        inputs, action = self.check(step)
        for name, carried in self._carried.items():
            inputs[name] = (inputs[name] + carried).astype(inputs[name].dtype)
        if step.episode_id > self.memory.episode_id:
            self.memory.reset(step.episode_id)
        ticks = (step.ticks or 1) + (self._gap_ticks if self.policy.spec.gap_rule.mode is GapMode.SKIP else 0)
        started = time.monotonic_ns()
        reply = self.memory.run(
            self.policy, inputs, session_id=self.session_id, sampling=self.sampling, extras=self.extras,
            instruction=self.instruction, ticks=ticks, seq=step.seq, action=action, observe_only=step.observe_only,
        )  # fmt: skip
        self._carried.clear()
        self.last_seq = step.seq
        if self.pace is Pace.LIVE or step.observe_only or hidden:
            # Nobody has said what is executed in answer to it.
            self.memory.executed, self.memory.source = None, ActionSource.UNKNOWN
        if hidden and not step.observe_only:
            self._dropped.append(ps.Dropped(seq=step.seq, reason=hidden.value, in_memory=True))
        if step.observe_only or hidden:
            return None
        self.answered = self._result(step, reply, (time.monotonic_ns() - started) // 1000)
        return self.answered

    def _result(self, step: ps.Step, reply: FakeReply, compute_us: int) -> ps.StepResult:
        spec = self.policy.spec
        result = ps.StepResult(
            seq=step.seq,
            actions=[action_to_proto(action, spec.action) for action in reply.actions],
            action_period_us=reply.action_period_us,
            outputs=[encode(array, name) for name, array in reply.outputs.items()],
            log_prob=log_probs(reply, self.extras),
            value=reply.value if self.extras.value else None,
            version=spec.version,
            config_revision=self.revision,
            dropped=self._dropped,
            gap_ticks=min(self._gap_ticks, 2**32 - 1),
            times=ps.StepTimes(compute_us=compute_us, total_us=compute_us, batch_size=1),
            capture_time_ns=step.capture_time_ns,
            episode_id=step.episode_id,
        )
        self._dropped, self._gap_ticks = [], 0
        return result

    def executed(self, message: ps.Executed) -> None:
        """Take note of what was executed in answer to the last step."""
        if self.policy.spec.kind is PolicyKind.WORLD:
            raise ExecutedUnknownError(f"step {message.seq} is a world's: its steps bring the actions themselves")
        if message.seq == 0 or message.seq != self.last_seq:
            raise ExecutedUnknownError(f"executed names step {message.seq}, the last step is {self.last_seq}")
        self.memory.tell(*check_executed(message, self.policy))

    def configure(self, message: ps.Configure) -> ps.Configured:
        """Change settings; all of them or none."""
        sampling = Sampling.from_proto(message.sampling) if message.HasField("sampling") else self.sampling
        if message.HasField("instruction"):
            self.instruction = check_instruction(message.instruction)
        self.sampling = sampling
        if message.HasField("consent"):
            self.consent = Consent.from_proto(message.consent)
        self.revision += 1
        return ps.Configured(revision=self.revision)

    def reset(self, message: ps.Reset) -> ps.ResetDone:
        """Begin an episode."""
        if message.episode_id <= self.memory.episode_id:
            raise EpisodeReusedError(f"episode {message.episode_id}, wanted more than {self.memory.episode_id}")
        self.memory.reset(message.episode_id, message.seed if message.HasField("seed") else None)
        return ps.ResetDone(episode_id=message.episode_id)


def _layout(spec: PolicySpec) -> str:
    """Return what versions of a policy share whose memories are interchangeable: those that differ by version alone."""
    return hashlib.sha256(repr(replace(spec, version="")).encode()).hexdigest()[:16]


class Table:
    """Policies, sessions and slots of a fake server. Thread-safe."""

    def __init__(self, policies: Collection[FakePolicy], detach_window_s: float) -> None:
        self._lock = threading.RLock()
        self._policies: dict[str, list[FakePolicy]] = {}
        self._sessions: dict[bytes, Session] = {}
        self._rollout_slots: dict[int, int] = {}
        self._moved: dict[bytes, tuple[str, ps.Moved]] = {}  # by the token of before: principal, where to
        self._detach_window_s = detach_window_s
        for policy in policies:
            self.publish(policy)

    def publish(self, policy: FakePolicy) -> None:
        """Add a version; it is the newest from now on."""
        with self._lock:
            self._policies.setdefault(policy.spec.name, []).append(policy)

    def find(self, name: str, version: str = "") -> FakePolicy:
        """Return a version by its number or alias; empty: the newest."""
        with self._lock:
            versions = self._policies.get(name)
            if not versions:
                raise PolicyNotFoundError(f"no policy {name!r}; there are {sorted(self._policies)}")
            for policy in reversed(versions):
                if version in ("", policy.spec.version) or version in policy.aliases:
                    return policy
            raise VersionNotFoundError(
                f"policy {name!r} has no {version!r}; it has {[p.spec.version for p in versions]}"
            )

    def follow(self, session: Session) -> None:
        """Put a session that follows on the newest version that its memory fits, where that has a free slot.

        The caller holds the session's lock, and is between two of its steps.
        """
        if not session.follows:
            return
        with self._lock:
            newest = self.find(session.policy.spec.name)
            fits = newest is not session.policy and _layout(newest.spec) == _layout(session.policy.spec)
            if fits and self._free(newest) > 0:
                session.policy = newest

    def describe(self, policy: FakePolicy) -> pb.PolicySpec:
        """Return the wire spec with what only the server knows."""
        with self._lock:
            message = policy.spec.to_proto()
            message.aliases.extend(policy.aliases)
            message.state_layout = _layout(policy.spec)
            message.slots_total, message.slots_free = policy.slots, self._free(policy)
            return message

    def all(self, prefix: str) -> list[pb.PolicySpec]:
        """Return every version, by name, newest first."""
        with self._lock:
            return [
                self.describe(policy)
                for name in sorted(self._policies)
                if name.startswith(prefix)
                for policy in reversed(self._policies[name])
            ]

    def names(self) -> list[str]:
        """Return the names of all policies."""
        with self._lock:
            return sorted(self._policies)

    def _free(self, policy: FakePolicy) -> int:
        self._prune()
        held = sum(session.policy is policy for session in self._sessions.values())
        return policy.slots - held - self._rollout_slots.get(id(policy), 0)

    def _prune(self) -> None:
        now = time.monotonic()
        for token, session in list(self._sessions.items()):
            if not session.at_rest.is_set():
                continue  # it is being handed over, and outlives its window
            if session.detached_at is not None and now - session.detached_at > self._detach_window_s:
                del self._sessions[token]

    def open(self, policy: FakePolicy, make: Callable[[], Session]) -> Session:
        """Return a new session in a slot."""
        with self._lock:
            if self._free(policy) < 1:
                raise NoFreeSlotError(f"all {policy.slots} slots of {policy.spec.name!r} are taken", retry_after_s=1.0)
            session = make()
            self._sessions[session.token] = session
            return session

    def resume(self, token: bytes, principal: str) -> Session:
        """Return the session of a token."""
        with self._lock:
            self._prune()
            session = self._sessions.get(token)
            if session is None:
                raise SessionNotFoundError("no session for this resume token; it may have expired")
            if session.principal != principal:
                raise AccessDeniedError("the session belongs to another caller")
            return session

    def moved(self, token: bytes, principal: str) -> ps.Moved | None:
        """Return where a session lives now, once that is settled; None: here, or nobody knows."""
        with self._lock:
            session = self._sessions.get(token)
        if session is not None:
            session.at_rest.wait()
        with self._lock:
            whose, moved = self._moved.get(token, ("", None))
            if moved is not None and whose != principal:
                raise AccessDeniedError("the session belongs to another caller")
            return moved

    def take(self, session: Session) -> None:
        """Take over a session of another server, under a token of its own. It waits for its player, as if detached."""
        with self._lock:
            policy = self.find(session.policy.spec.name, session.policy.spec.version)
            if self._free(policy) < 1:
                raise NoFreeSlotError(f"all {policy.slots} slots of {policy.spec.name!r} are taken", retry_after_s=1.0)
            session.policy, session.token = policy, secrets.token_bytes(16)
            session.stream, session.detached_at = None, time.monotonic()
            self._sessions[session.token] = session

    def forward(self, token: bytes, session: Session, moved: ps.Moved) -> None:
        """Forget a session that was taken over, but for where it lives now."""
        with self._lock:
            self._sessions.pop(token, None)
            self._moved[token] = session.principal, moved

    def end(self, session: Session) -> None:
        """Free the slot of a session."""
        with self._lock:
            self._sessions.pop(session.token, None)

    def sessions(self) -> Mapping[str, Session]:
        """Return the sessions by public id, detached ones included."""
        with self._lock:
            self._prune()
            return {session.session_id: session for session in self._sessions.values()}

    def take_slots(self, policy: FakePolicy, n: int) -> None:
        """Take slots for a rollout."""
        with self._lock:
            if n < 1:
                raise BadSettingError(f"num_envs of {n}, wanted 1 or more")
            if (free := self._free(policy)) < n:
                raise NoFreeSlotError(f"{n} environments, {free} free slots of {policy.slots}", retry_after_s=1.0)
            self._rollout_slots[id(policy)] = self._rollout_slots.get(id(policy), 0) + n

    def free_slots(self, policy: FakePolicy, n: int) -> None:
        """Give the slots of a rollout back."""
        with self._lock:
            # After clear() there is nothing left to give back.
            self._rollout_slots[id(policy)] = max(0, self._rollout_slots.get(id(policy), 0) - n)

    def clear(self) -> None:
        """Forget every session, as a restart does."""
        with self._lock:
            self._sessions.clear()
            self._moved.clear()
            self._rollout_slots.clear()
