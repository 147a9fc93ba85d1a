"""Server-side recording: the games of players who consent to it, as P2P recordings, without anybody's game waiting.

A recording holds the frames as they came, what was held when each came (a person's keys as USER, the policy's as
SYSTEM) and the instructions: what `playserve play --record` keeps, at the size that the policy sees. Each session has
a thread of its own for the compression. What cannot be kept is left out and counted; the game goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge

from playserve.actions import DesktopAction
from playserve.errors import UnsupportedError
from playserve.settings import ActionSource
from playserve.specs import DesktopActionSpec, ImageFormat, PolicyKind, PolicySpec
from playserve_client.play.core import FramePlan
from playserve_client.play.recorder import Recorder
from playserve_services.inference.decoding import Executed
from playserve_services.inference.sessions import Frame, Session

__all__ = ["KeeperMetrics", "SessionKeeper"]

_log = logging.getLogger(__name__)
_audit = logging.getLogger("playserve.audit")

#: Sessions that are recorded at a time: each takes a thread, and a few percent of a core at 20 Hz.
_MOST_SESSIONS = 32
#: Frames of one session that wait for their compression: five seconds, and ten megabytes.
_WAITING = 100


class KeeperMetrics:
    """What an operator sees of recording.

    Args:
        registry: Where they are registered.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.sessions = Gauge("playserve_sessions_recorded", "Sessions that are recorded now.", registry=registry)
        self.frames = Counter("playserve_recorded_frames", "Frames that went into recordings.", registry=registry)
        self.failed = Counter(
            "playserve_recordings_failed", "Sessions whose recording was broken off.", ("reason",), registry=registry
        )


@dataclass(slots=True)
class _Tape:
    """One session that is being recorded."""

    session: Session
    image: str
    recorder: Recorder
    text: str = ""
    last_seq: int = 0
    last_episode: int = -1
    executed: tuple[int, DesktopAction | None, ActionSource] = (0, None, ActionSource.UNKNOWN)
    first: tuple[Frame, FramePlan] | None = None  # of a stretch, if another frame follows it
    broken: bool = False

    def add(self, frame: Frame, plan: FramePlan) -> int:
        """Record a frame; return how many went into the recording. One of which nothing is known waits for the next."""
        if plan.source is ActionSource.UNKNOWN:
            self.first = (frame, plan)
            return 0
        frames, self.first = [*filter(None, [self.first]), (frame, plan)], None
        for each, what in frames:
            # The client's clock where it tells: ours has the network's jitter in it.
            at_ns = each.capture_time_ns or each.arrived_ns
            if each.settings.instruction != self.text:
                self.text = each.settings.instruction
                self.recorder.instruct(self.text)
            self.recorder.add(each.inputs[self.image], what, at_ns * 1e-9)
        return len(frames)


class SessionKeeper:
    """Records whoever consents. Event loop's thread only; use :meth:`close`.

    Args:
        root: Folder of the recordings; a policy has a folder of its own in it.
        metrics: Counted here.

    Raises:
        UnsupportedError: PyAV, which compresses, is not installed.
    """

    def __init__(self, root: Path, metrics: KeeperMetrics) -> None:
        if find_spec("av") is None:
            raise UnsupportedError("recording sessions needs PyAV: pip install av, or the extra 'play'")
        self._root, self._metrics = root, metrics
        self._tapes: dict[str, _Tape] = {}
        self._refused: set[str] = set()
        self._closers = ThreadPoolExecutor(2, thread_name_prefix="playserve-recordings")

    def executed(self, session: Session, seq: int, action: Executed, source: int) -> None:
        """Take what a player says was done in answer to step `seq`."""
        tape = self._tapes.get(session.session_id)
        if tape is not None and (action is None or isinstance(action, DesktopAction)):
            tape.executed = (seq, action, ActionSource(source))

    def frame(self, session: Session, frame: Frame) -> None:
        """Take a frame that the session has taken; called with every frame of every session."""
        if not session.settings.record:
            if session.session_id in self._tapes:
                self._end(session.session_id, "the player took the consent back")
            return
        tape = self._tapes.get(session.session_id) or self._begin(session)
        if tape is None or tape.broken:
            return
        try:
            self._metrics.frames.inc(tape.add(frame, _plan(tape, frame)))
        except Exception as error:  # noqa: BLE001 - whatever it is, the game goes on
            self._break(tape, error)
        tape.last_seq, tape.last_episode = frame.seq, frame.episode_id

    def sweep(self) -> None:
        """End the recordings of sessions that are over; called now and then."""
        for session_id in [key for key, tape in self._tapes.items() if tape.session.ended]:
            self._end(session_id, "it is over")

    def close(self) -> None:
        """Finish every recording; it waits until they are on the disk."""
        for session_id in list(self._tapes):
            self._end(session_id, "the server stops")
        self._closers.shutdown()

    def _begin(self, session: Session) -> _Tape | None:
        spec, image = session.policy.spec, _image(session.policy.spec)
        if image is None:
            self._refuse(spec.name, f"policy {spec.name!r} does not see one picture and play keyboard and mouse")
            return None
        if len(self._tapes) >= _MOST_SESSIONS:
            self._refuse(session.session_id, f"{_MOST_SESSIONS} sessions are recorded, which is the most")
            return None
        recorder = Recorder(
            self._root / spec.name,
            game=spec.name,
            rate_hz=session.rate_hz or spec.rate_hz or 20.0,
            episode={
                "policy": spec.name, "version": spec.version, "session": session.session_id,
                "principal": session.principal, "recorded_by": "server",
            },
            waiting=_WAITING,
        )  # fmt: skip
        _audit.info("session %s of %s is recorded, as its player consents", session.session_id, session.principal)
        tape = self._tapes[session.session_id] = _Tape(session, image, recorder)
        self._metrics.sessions.set(len(self._tapes))
        return tape

    def _refuse(self, key: str, why: str) -> None:
        if key not in self._refused:  # once, not with every frame
            self._refused.add(key)
            self._metrics.failed.labels("refused").inc()
            _log.warning("not recorded: %s", why)

    def _break(self, tape: _Tape, error: Exception) -> None:
        tape.broken = True
        self._metrics.failed.labels(type(error).__name__).inc()
        _log.error("the recording of session %s is broken off: %s", tape.session.session_id, error)

    def _end(self, session_id: str, why: str) -> None:
        tape = self._tapes.pop(session_id)
        self._refused.discard(session_id)
        self._metrics.sessions.set(len(self._tapes))
        self._closers.submit(_finish, tape.recorder, session_id, why, self._count_failed if not tape.broken else None)

    def _count_failed(self, error: Exception) -> None:
        self._metrics.failed.labels(type(error).__name__).inc()


def _image(spec: PolicySpec) -> str | None:
    """Return the name of the one picture that the policy sees; None where the format cannot hold such a game."""
    if spec.kind is PolicyKind.WORLD:  # what there is to see is in its answers
        return None
    pictures = [i.name for i in spec.inputs if i.image_format is ImageFormat.RGB8 and i.shape[0] > 0 and i.shape[1] > 0]
    return pictures[0] if len(pictures) == 1 and isinstance(spec.action, DesktopActionSpec) else None


def _plan(tape: _Tape, frame: Frame) -> FramePlan:
    """Return what was done until a frame was captured, as far as anybody knows."""
    seq, action, source = tape.executed
    last = tape.session.slots[0].last_answer
    if not tape.last_seq or frame.episode_id != tape.last_episode:
        action, source = None, ActionSource.UNKNOWN
    elif seq != tape.last_seq:
        # Nobody said: in LOCKSTEP the answer is what was done.
        told = not tape.session.live and last is not None and last.frame.seq == tape.last_seq
        decoded = last.decoded if told and last is not None else None
        action = decoded if isinstance(decoded, DesktopAction) else None
        source = ActionSource.UNKNOWN if action is None else ActionSource.POLICY
    return FramePlan(observe_only=frame.observe_only, executed=action, source=source, ticks=frame.ticks)


def _finish(recorder: Recorder, session_id: str, why: str, failed: Callable[[Exception], None] | None) -> None:
    """A closer's thread."""
    try:
        recorder.close()
    except Exception as error:  # noqa: BLE001 - the disk may be full; the server goes on
        if failed is not None:
            failed(error)
            _log.error("the recording of session %s could not be finished: %s", session_id, error)
    kept = ", ".join(map(str, recorder.paths)) or "nothing"
    _audit.info("session %s is no longer recorded: %s; kept: %s", session_id, why, kept)
