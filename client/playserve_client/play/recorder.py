"""Keeps what was played as P2P recordings: a person's corrections as USER, the policy's actions as SYSTEM.

Each stretch during which the window was in front and frames came one after another is a recording of its own: the
format knows no pauses. Compression takes longer than a frame's time allows the loop, so it has a thread of its own.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from playserve.errors import ExhaustedError
from playserve.settings import ActionSource
from playserve_client.capture import Image
from playserve_client.p2p.recording import Source
from playserve_client.p2p.writer import RecordingWriter
from playserve_client.play.core import FramePlan

__all__ = ["Recorder"]

# A pause of more frames than this begins a new recording; a shorter one is time that passed between two frames.
_PAUSE_TICKS = 3
# Shorter stretches teach nothing: a second.
_SHORTEST_S = 1.0
_WAITING = 600

_SOURCES = {ActionSource.HUMAN: Source.USER, ActionSource.POLICY: Source.SYSTEM}


class Recorder:
    """See :class:`playserve_client.play.player.Keeper`; and :meth:`close` it.

    Args:
        root: Folder of the recordings.
        game: What is played.
        rate_hz: Frames a second.
        episode: What else to keep with each recording: policy, version, server.
        waiting: Frames that may wait for their compression.
    """

    def __init__(
        self, root: Path, *, game: str, rate_hz: float, episode: Mapping[str, Any], waiting: int = _WAITING
    ) -> None:
        self._root, self._game, self._rate_hz, self._episode = root, game, rate_hz, dict(episode)
        self.paths: list[Path] = []
        self.frames = {Source.USER: 0, Source.SYSTEM: 0, Source.UNKNOWN: 0}
        self.too_short = 0
        self._writer: RecordingWriter | None = None
        self._began = 0.0
        self._text = ""
        self._spans: list[tuple[str, int]] = []  # texts and the frames at which they came into force
        self._error: Exception | None = None
        self._queue: queue.Queue[tuple[Image, FramePlan, float] | str | None] = queue.Queue(waiting)
        self._thread = threading.Thread(target=self._run, name="playserve-recorder", daemon=True)
        self._thread.start()

    def add(self, frame: Image, plan: FramePlan, captured_at: float) -> None:
        """Take a frame as the policy sees it, and what was done until it was captured.

        Raises:
            ExhaustedError: The disk or the processor is too slow for it; what was kept so far is kept.
        """
        self._put((frame, plan, captured_at))

    def instruct(self, text: str) -> None:
        """Take the instruction that is in force from now on; empty: none.

        Raises:
            ExhaustedError: As :meth:`add`.
        """
        self._put(text)

    def _put(self, item: tuple[Image, FramePlan, float] | str) -> None:
        if self._error is not None:
            raise self._error
        try:
            self._queue.put_nowait(item)
        except queue.Full:
            raise ExhaustedError(
                f"recording is {self._queue.maxsize} frames behind: this machine cannot compress {self._rate_hz:g} "
                "frames a second"
            ) from None

    def close(self) -> None:
        """Finish what waits; raise what went wrong."""
        self._queue.put(None)
        self._thread.join()
        if self._error is not None:
            raise self._error

    def report(self) -> dict[str, Any]:
        """Return what was kept, as a JSON value."""
        return {
            "recordings": [str(path) for path in self.paths],
            "frames": {source.value: count for source, count in self.frames.items()},
            "too_short": self.too_short,
        }

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            if self._error is not None:
                continue  # so that nobody waits for room
            try:
                if isinstance(item, str):
                    self._instruct(item)
                else:
                    self._add(*item)
            except Exception as error:  # noqa: BLE001 - raised where frames come in
                self._error = error
        try:
            self._finish()
        except Exception as error:  # noqa: BLE001 - raised by close
            self._error = self._error or error

    def _add(self, frame: Image, plan: FramePlan, captured_at: float) -> None:
        if plan.source is ActionSource.UNKNOWN or plan.ticks > _PAUSE_TICKS:
            self._finish()
        if self._writer is None:
            self._writer = RecordingWriter(
                self._root,
                env=self._game,
                fps=self._rate_hz,
                frame_size=(frame.shape[0], frame.shape[1]),
                episode=self._episode,
            )
            self._began, self._spans = captured_at, [(self._text, 0)]
        source = _SOURCES.get(plan.source, Source.UNKNOWN)
        # Monotonic clocks tick more finely than this; two frames never share a time.
        self._writer.add(frame, plan.executed, source, time_ns=int((captured_at - self._began) * 1e9))
        self.frames[source] += 1

    def _instruct(self, text: str) -> None:
        self._text = text
        if self._writer is not None:
            self._spans.append((text, self._writer.num_frames))

    def _finish(self) -> None:
        writer, self._writer = self._writer, None
        if writer is None:
            return
        total = writer.num_frames
        if total < _SHORTEST_S * self._rate_hz:
            self.too_short += 1
            writer.abort()
            return
        ends = [start for _, start in self._spans[1:]] + [total]
        for (text, start), end in zip(self._spans, ends, strict=True):
            if text and end > start:
                writer.instruct(text, start, end - start)
        self.paths.append(writer.close())
