"""Statistics of the actions in recordings: histograms, how long keys are held, how long nothing is done."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from playserve.p2p.vocabulary import OPEN_P2P, Vocabulary
from playserve_client.p2p.recording import FrameAction, Recording, Source

__all__ = ["ActionTally", "tally"]

_SUMS = ("frames", "user", "system", "unknown", "idle", "instructions", "instructed")
_MAXIMA = ("longest_idle_s", "keys_at_once_max")


@dataclass
class ActionTally:
    """Counts over frames; tallies of several recordings add up.

    Attributes:
        seconds: Length.
        frames: Frames.
        user: Frames whose action is a person's.
        system: Frames whose action is a policy's.
        unknown: Frames whose action nobody knows; nothing below counts them.
        idle: Frames without key, button, motion or scroll.
        longest_idle_s: Longest stretch of them, seconds.
        keys: Frames in which each key is held, by W3C code.
        presses: How often each key went down.
        longest_held_s: Longest stretch for which each key was held, seconds.
        buttons: Frames in which each mouse button is held.
        keys_at_once: Frames by the number of keys held, known to any table or not.
        keys_at_once_max: The largest of these numbers.
        dx: Frames by the bin of mouse dx.
        dy: Frames by the bin of mouse dy.
        dropped: Frames in which each key or button is held that the vocabulary cannot say.
        unknown_names: Frames in which each name stands that no table knows.
        instructions: Instructions.
        instructed: Frames with an instruction in force.
        encoders: Instructions with a stored embedding, by encoder.
    """

    seconds: float = 0.0
    frames: int = 0
    user: int = 0
    system: int = 0
    unknown: int = 0
    idle: int = 0
    longest_idle_s: float = 0.0
    keys: Counter[str] = field(default_factory=Counter)
    presses: Counter[str] = field(default_factory=Counter)
    longest_held_s: dict[str, float] = field(default_factory=dict)
    buttons: Counter[str] = field(default_factory=Counter)
    keys_at_once: Counter[str] = field(default_factory=Counter)
    keys_at_once_max: int = 0
    dx: Counter[str] = field(default_factory=Counter)
    dy: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    unknown_names: Counter[str] = field(default_factory=Counter)
    instructions: int = 0
    instructed: int = 0
    encoders: Counter[str] = field(default_factory=Counter)

    @property
    def known(self) -> int:
        """Frames whose action somebody knows."""
        return self.user + self.system

    @property
    def activity(self) -> float:
        """Share of the known frames in which something is done; 0 where nothing is known."""
        return 1 - self.idle / self.known if self.known else 0.0

    def held_share(self, key: str) -> float:
        """Return the share of the known frames in which a key is held."""
        return self.keys[key] / self.known if self.known else 0.0

    def mean_held_s(self, key: str) -> float:
        """Return for how long a key is held at a time, seconds."""
        return self.keys[key] / self.presses[key] * self.seconds / self.frames if self.presses[key] else 0.0

    def merge(self, other: ActionTally) -> None:
        """Add another tally."""
        self.seconds += other.seconds
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in _MAXIMA:
            setattr(self, name, max(getattr(self, name), getattr(other, name)))
        for each in dataclasses.fields(self):
            mine = getattr(self, each.name)
            if isinstance(mine, Counter):
                mine.update(getattr(other, each.name))
        for key, seconds in other.longest_held_s.items():
            self.longest_held_s[key] = max(seconds, self.longest_held_s.get(key, 0.0))

    def to_json(self) -> dict[str, Any]:
        """Return a JSON value: the counts, and the shares that people read."""
        value = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        plain = {name: dict(item) if isinstance(item, dict) else item for name, item in value.items()}
        return {
            **plain,
            "hours": self.seconds / 3600,
            "activity": self.activity,
            "held_share": {key: self.held_share(key) for key in self.keys},
            "mean_held_s": {key: self.mean_held_s(key) for key in self.keys},
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ActionTally:
        """Return the tally of a JSON value."""
        result = cls()
        for each in dataclasses.fields(cls):
            stored = value[each.name]
            setattr(result, each.name, Counter(stored) if isinstance(getattr(result, each.name), Counter) else stored)
        return result


def tally(recording: Recording, vocabulary: Vocabulary = OPEN_P2P) -> ActionTally:
    """Return the statistics of one recording."""
    fps = recording.metadata.fps
    result = ActionTally(seconds=len(recording.frames) / fps, frames=len(recording.frames))
    result.unknown = sum(frame.source is Source.UNKNOWN for frame in recording.frames)
    result.user = sum(frame.source is Source.USER for frame in recording.frames)
    result.system = result.frames - result.unknown - result.user
    known = [frame for frame in recording.frames if frame.source is not Source.UNKNOWN]
    tokens = vocabulary.encode_arrays([frame.action for frame in known])
    result.dx.update(map(str, tokens[:, -2].tolist()))
    result.dy.update(map(str, tokens[:, -1].tolist()))
    for frame in known:
        action = frame.action
        result.keys.update(action.keys)
        result.buttons.update(map(str, action.buttons))
        names = [name for name in frame.unknown_keys if not name.startswith("button ")]
        at_once = len(action.keys) + len(names)
        result.keys_at_once[str(at_once)] += 1
        result.keys_at_once_max = max(result.keys_at_once_max, at_once)
        result.dropped.update(vocabulary.dropped(action))
        result.unknown_names.update(frame.unknown_keys)
    _held(recording.frames, fps, result)
    result.instructions = len(recording.instructions)
    result.instructed = int((recording.instruction_index() >= 0).sum())
    result.encoders.update(encoder for span in recording.instructions for encoder in span.embeddings)
    return result


def _is_idle(frame: FrameAction) -> bool:
    action = frame.action
    moved = action.mouse_dx_px or action.mouse_dy_px or action.scroll
    return not (action.keys or action.buttons or moved or frame.unknown_keys)


def _held(frames: Iterable[FrameAction], fps: float, result: ActionTally) -> None:
    """Count presses, idle frames and the longest stretches; an unknown frame ends every stretch."""
    held: dict[str, int] = {}
    idle = 0
    for frame in frames:
        keys = frame.action.keys
        held = {key: held.get(key, 0) + 1 for key in keys}
        for key, count in held.items():
            if count == 1:
                result.presses[key] += 1
            if count / fps > result.longest_held_s.get(key, 0.0):
                result.longest_held_s[key] = count / fps
        idle = idle + 1 if frame.source is not Source.UNKNOWN and _is_idle(frame) else 0
        result.idle += idle > 0
        result.longest_idle_s = max(result.longest_idle_s, idle / fps)
