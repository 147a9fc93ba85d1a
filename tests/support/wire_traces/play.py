"""The rules of Play: one session, over as many streams as it takes."""

from __future__ import annotations

from dataclasses import dataclass, field

from playserve.codec import Decoder, action_from_proto, decode_output
from playserve.errors import PlayserveError
from playserve.specs import DTYPES, GapMode, PolicyKind, PolicySpec
from playserve.v1 import policy_service_pb2 as ps
from playserve.v1 import types_pb2 as pb
from wire_traces.rules import Scene, demand, reason_of

__all__ = ["PlayJudge"]


@dataclass
class _Sent:
    """A step that went up.

    Attributes:
        step: The message.
        state: "waiting", "answered", "dropped" or "refused".
        revisions: Oldest and newest that the settings may have had when it arrived.
    """

    step: ps.Step
    revisions: tuple[int, int]
    state: str = "waiting"


@dataclass
class _Session:
    """What outlives a stream."""

    opening: ps.Open
    opened: ps.Opened
    spec: PolicySpec
    decoder: Decoder
    episode: int
    sent: dict[int, _Sent] = field(default_factory=dict)
    last_seq: int = 0
    last_answer: ps.StepResult | None = None
    revision: int = 1
    configures: int = 0
    attached: bool = True
    over: bool = False

    @property
    def live(self) -> bool:
        return self.opening.pace == ps.PACE_LIVE

    @property
    def keeps_every_step(self) -> bool:
        return self.spec.kind is PolicyKind.WORLD or not all(tensor.droppable for tensor in self.spec.inputs)


class PlayJudge:
    """Judges one Play call."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._opening: ps.Open | None = None
        self._session: _Session | None = None
        self._expected: dict[int, list[str]] = {}
        self._resets: list[int] = []
        self._pings: list[int] = []
        self._closed = self._moved = False

    # -- up

    def up(self, message: ps.PlayRequest) -> None:
        """Take a message of the player."""
        kind = message.WhichOneof("message")
        if self._opening is None:
            demand(kind == "open", f"the first message is {kind}, not open (NOT_OPEN)")
            self._opening = message.open
            return
        demand(kind != "open", "open came twice (ALREADY_OPEN)")
        demand(not self._closed, "nothing counts after close")
        demand(self._session is not None, f"{kind} before opened: its specs and codecs are not known yet")
        assert self._session is not None
        demand(kind is not None, "a message without content (MALFORMED_MESSAGE)")
        if kind == "close":
            self._closed = True
        elif kind == "ping":
            self._pings.append(message.ping.nonce)
        elif kind == "configure":
            self._session.configures += 1
        else:
            getattr(self, f"_up_{kind}")(self._session, getattr(message, str(kind)))

    def _up_step(self, session: _Session, step: ps.Step) -> None:
        repeated = session.last_answer is not None and step.seq == session.last_answer.seq == session.last_seq
        if repeated:
            session.sent[step.seq].state = "waiting"
            return
        demand(step.seq > session.last_seq, f"step {step.seq} after step {session.last_seq} (SEQ_NOT_INCREASING)")
        demand(step.episode_id >= session.episode, f"episode {step.episode_id} after {session.episode}")
        try:
            session.decoder.decode_step(step.inputs)
            if session.spec.kind is PolicyKind.WORLD:
                action_from_proto(step.action, session.spec.action)
        except PlayserveError as error:
            self._expected.setdefault(step.seq, []).append(error.reason)
            return
        demand(session.spec.kind is PolicyKind.WORLD or not step.HasField("action"), "an action for an agent")
        session.sent[step.seq] = _Sent(step, (session.revision, session.revision + session.configures))
        session.last_seq, session.episode = step.seq, step.episode_id

    def _up_executed(self, session: _Session, message: ps.Executed) -> None:
        demand(message.seq in session.sent, f"executed of step {message.seq}, which was never sent")
        if session.spec.kind is PolicyKind.WORLD:  # its steps bring what is done
            self._expected.setdefault(message.seq, []).append("EXECUTED_UNKNOWN")
            return
        if message.seq != session.last_seq:  # late: it may be too late
            self._expected.setdefault(message.seq, []).append("EXECUTED_UNKNOWN")
        demand(message.source in pb.ActionSource.values() and bool(message.source), f"source {message.source}")
        if message.source in (pb.ACTION_SOURCE_POLICY, pb.ACTION_SOURCE_HUMAN):
            _demand_action(message.action, session.spec)
        else:
            demand(not message.HasField("action"), "an action that nobody looks at")

    def _up_reset(self, session: _Session, message: ps.Reset) -> None:
        demand(message.episode_id > session.episode, f"reset to {message.episode_id} in {session.episode}")
        session.episode = message.episode_id
        self._resets.append(message.episode_id)

    # -- down

    def down(self, message: ps.PlayResponse) -> None:
        """Take a message to the player."""
        kind = message.WhichOneof("message")
        demand(self._opening is not None, f"{kind} before open")
        demand(not self._moved, f"{kind} after moved")
        if self._session is None and kind == "moved":
            self._down_sent_on(message.moved)
            return
        if self._session is None:
            demand(kind == "opened", f"the first answer is {kind}, not opened")
            self._down_opened(message.opened)
            return
        session = self._session
        if kind == "pong":
            demand(bool(self._pings) and self._pings.pop(0) == message.pong.nonce, "a pong without its ping")
        elif kind == "reset_done":
            demand(bool(self._resets), "reset_done without a reset")
            demand(self._resets.pop(0) == message.reset_done.episode_id, "reset_done of another episode")
        elif kind == "configured":
            demand(session.configures > 0, "configured without a configure")
            demand(message.configured.revision == session.revision + 1, f"revision {message.configured.revision}")
            session.configures, session.revision = session.configures - 1, message.configured.revision
        elif kind == "moved":
            committed = self._scene.committed.get(message.moved.resume_token)
            demand(committed is not None, "moved to where no transfer was committed")
            assert committed is not None
            demand(committed[:2] == (message.moved.address, session.opened.session_id), "moved to another place")
            self._moved = True
        else:
            demand(kind in ("result", "error"), f"{kind} came again")
            getattr(self, f"_down_{kind}")(session, getattr(message, str(kind)))

    def _down_sent_on(self, moved: ps.Moved) -> None:
        """Take `Moved` instead of `Opened`."""
        assert self._opening is not None
        session = self._scene.sessions.get(self._opening.resume_token)
        demand(session is not None, "no session has that token (SESSION_NOT_FOUND)")
        demand(not session.over and not session.attached, "the session cannot be resumed")
        committed = self._scene.committed.get(moved.resume_token)
        demand(committed is not None, "moved to where no transfer was committed")
        assert committed is not None
        demand(committed[:2] == (moved.address, session.opened.session_id), "moved to another place")
        self._scene.sessions[moved.resume_token] = session
        self._moved = True

    def _down_opened(self, opened: ps.Opened) -> None:
        assert self._opening is not None
        spec = PolicySpec.from_proto(opened.policy)
        demand(bool(opened.session_id and opened.resume_token), "opened without id or token")
        demand(pb.CODEC_RAW in opened.codecs, "opened without CODEC_RAW")
        offered = {pb.CODEC_RAW, *self._opening.codecs}
        demand(set(opened.codecs) <= offered, "a codec that the client did not offer")
        demand(min(opened.max_message_bytes, opened.idle_timeout_us, opened.max_steps_in_flight) > 0, "no limits")
        token = self._opening.resume_token
        demand(opened.resumed == bool(token), f"resumed is {opened.resumed}")
        if token:
            self._session = self._resume(token, opened)
        else:
            demand(opened.policy.name == self._opening.policy, "another policy")
            demand(not opened.last_seq and not opened.HasField("last_result"), "a new session with a past")
            demand(opened.episode_id == self._opening.episode_id, "another episode")
            seed = self._opening.seed if self._opening.HasField("seed") else opened.seed
            demand(opened.seed == seed, "another seed")
            if self._opening.pace == ps.PACE_LIVE and spec.rate_hz and self._opening.rate_hz:
                demand(self._opening.rate_hz == spec.rate_hz, "a live client of another rate (RATE_MISMATCH)")
            decoder = Decoder(spec.inputs, opened.codecs, opened.max_message_bytes)
            self._session = _Session(self._opening, opened, spec, decoder, opened.episode_id)
            self._session.revision = opened.config_revision
        self._scene.sessions[opened.resume_token] = self._session

    def _resume(self, token: bytes, opened: ps.Opened) -> _Session:
        demand(token in self._scene.sessions, "no session has that token (SESSION_NOT_FOUND)")
        session: _Session = self._scene.sessions[token]
        demand(not session.over and not session.attached, "the session cannot be resumed")
        demand(opened.session_id == session.opened.session_id, "another session")
        if session.opening.version_policy != ps.VERSION_POLICY_FOLLOW:
            demand(opened.policy.version == session.opened.policy.version, "another version")
        demand(opened.policy.state_layout == session.opened.policy.state_layout, "another memory")
        demand(opened.last_seq in session.sent or not opened.last_seq, f"last_seq {opened.last_seq}")
        demand(opened.config_revision >= session.revision, "settings were lost")
        if token in self._scene.committed:
            demand(opened.last_seq == self._scene.committed[token][2], "last_seq is not the transfer's")
        # Steps after it never arrived; those up to it are in the memory or were dropped for good.
        session.sent = {seq: sent for seq, sent in session.sent.items() if seq <= opened.last_seq}
        last = opened.last_result if opened.HasField("last_result") else None
        for seq, sent in session.sent.items():
            if sent.state == "waiting" and seq != (last.seq if last else 0):
                sent.state = "dropped"
        if last is not None:
            demand(last.seq in session.sent, f"last_result of step {last.seq}, which was never sent")
            session.sent[last.seq].state = "answered"
            session.last_answer = last
        session.last_seq, session.episode, session.revision = opened.last_seq, opened.episode_id, opened.config_revision
        session.attached, session.configures = True, 0
        return session

    def _down_error(self, session: _Session, error: ps.StepError) -> None:
        reason = reason_of(error.status)
        if error.seq == 0:  # of a Configure, a Reset, an empty message or a second Open
            return
        expected = self._expected.get(error.seq, [])
        if reason in expected:
            expected.remove(reason)
            return
        sent = session.sent.get(error.seq)
        if reason == "EXECUTED_UNKNOWN" and sent is not None and sent.state == "refused":
            return  # a refused step never was
        demand(sent is not None and sent.state == "waiting", f"{reason} for step {error.seq}, which does not wait")
        demand(reason in ("QUEUE_FULL", "STEP_FAILED", "BAD_ACTION"), f"{reason} for a step that is as it should be")
        session.sent[error.seq].state = "refused"

    def _down_result(self, session: _Session, result: ps.StepResult) -> None:
        seq = result.seq
        demand(seq in session.sent, f"a result of step {seq}, which was never sent")
        sent = session.sent[seq]
        demand(sent.state == "waiting", f"a result of step {seq}, which was {sent.state}")
        demand(not sent.step.observe_only, f"a result of step {seq}, which was only observed")
        last = session.last_answer.seq if session.last_answer is not None else 0
        demand(seq >= last, f"a result of step {seq} after that of step {last}")
        demand(result.episode_id == sent.step.episode_id, f"episode {result.episode_id}")
        demand(result.capture_time_ns == sent.step.capture_time_ns, "capture_time_ns is no echo")
        # Configured is sent before any result of a step that came after its Configure.
        oldest, newest = sent.revisions[0], min(sent.revisions[1], session.revision)
        demand(oldest <= result.config_revision <= newest, f"revision {result.config_revision} was not in force")
        if session.opening.version_policy != ps.VERSION_POLICY_FOLLOW:
            demand(result.version == session.opened.policy.version, "a pinned session changed its version")
        demand(bool(result.log_prob) == session.opening.extras.log_prob, "log_prob is sent where it is asked for")
        demand(not result.HasField("value") or session.opening.extras.value, "a value that nobody asked for")
        if seq != last:  # a repeated answer repeats its drops
            self._dropped(session, result)
        _demand_content(result, session.spec)
        sent.state = "answered"
        session.last_answer = result

    def _dropped(self, session: _Session, result: ps.StepResult) -> None:
        """Each older step without an answer is reported once, and none is left out."""
        older = {seq: sent for seq, sent in session.sent.items() if seq < result.seq and sent.state == "waiting"}
        reported = [drop.seq for drop in result.dropped]
        demand(len(set(reported)) == len(reported), "a step is dropped twice")
        demand(set(reported) <= set(older), f"dropped {sorted(set(reported) - set(older))}, which did not wait")
        silent = [seq for seq in older if seq not in reported and not older[seq].step.observe_only]
        demand(not silent, f"steps {silent} have no answer and are not reported")
        rule = session.spec.gap_rule
        # The newest step of a pass is the answered one, or one that nobody wants an answer to.
        stale = {drop.seq for drop in result.dropped if drop.reason == ps.DROP_REASON_STALE}
        ends = {result.seq, *stale, *(seq for seq, sent in older.items() if sent.step.observe_only)}
        most = rule.catch_up_frames - 1 if rule.mode is GapMode.CATCH_UP else 0
        caught_up: dict[int, int] = {}
        for drop in result.dropped:
            step = older[drop.seq].step
            if drop.reason == ps.DROP_REASON_STALE:
                demand(step.budget_us > 0, f"step {drop.seq} has no budget and is stale")
                continue
            demand(drop.reason == ps.DROP_REASON_SUPERSEDED, f"step {drop.seq} is dropped for no reason")
            demand(session.live, f"step {drop.seq} is superseded in LOCKSTEP")
            if session.keeps_every_step:
                demand(drop.in_memory, f"step {drop.seq} of inputs that may not be dropped is not in the memory")
            elif drop.in_memory:
                end = min(seq for seq in ends if seq > drop.seq)
                caught_up[end] = caught_up.get(end, 0) + 1
        for end, count in caught_up.items():
            demand(count <= most, f"{count} steps caught up with step {end}, the gap rule allows {most}")
        ticks = sum(older[drop.seq].step.ticks or 1 for drop in result.dropped if not drop.in_memory)
        demand(result.gap_ticks == ticks, f"gap_ticks {result.gap_ticks}, the steps have {ticks}")
        for seq in older:
            session.sent[seq].state = "dropped"

    # -- end

    def end(self, code: str, reason: str) -> None:
        """Take the end of the stream."""
        if self._session is None:
            demand(code != "OK" or self._moved, "a stream ends with OK and was never open")
            return
        session = self._session
        session.attached = False
        session.over = bool(reason) and reason not in ("SUPERSEDED", "MALFORMED_MESSAGE", "MESSAGE_TOO_LARGE")
        if code != "OK":
            return
        demand(self._closed or self._moved, "OK without a close")
        if self._moved:
            token = next(t for t, c in self._scene.committed.items() if c[1] == session.opened.session_id)
            self._scene.sessions[token] = session
            return
        waiting = [seq for seq, sent in session.sent.items() if sent.state == "waiting" and not sent.step.observe_only]
        demand(not waiting, f"steps {waiting} were never answered")
        demand(not any(self._expected.values()) or session.live, f"errors that never came: {self._expected}")
        demand(not (self._resets or self._pings or session.configures), "something was never acknowledged")
        session.over = True


def _demand_action(message: pb.Action, spec: PolicySpec) -> None:
    try:
        action_from_proto(message, spec.action)
    except PlayserveError as error:
        demand(False, f"{error.reason}: {error}")


def _demand_content(result: ps.StepResult, spec: PolicySpec) -> None:
    if spec.kind is PolicyKind.WORLD:
        demand(not result.actions, "a world acts")
    else:
        demand(1 <= len(result.actions) <= spec.chunk_length, f"{len(result.actions)} actions")
        demand((result.action_period_us == 0) == (len(result.actions) == 1), "action_period_us")
        for action in result.actions:
            _demand_action(action, spec)
    outputs = {tensor.name: decode_output(tensor) for tensor in result.outputs}
    demand(set(outputs) == {tensor.name for tensor in spec.outputs}, f"outputs {sorted(outputs)}")
    for tensor in spec.outputs:
        array = outputs[tensor.name]
        demand(array.shape == tensor.shape and tensor.dtype in DTYPES, f"output {tensor.name!r} of {array.shape}")
        demand(array.dtype == tensor.numpy_dtype, f"output {tensor.name!r} of {array.dtype}")
