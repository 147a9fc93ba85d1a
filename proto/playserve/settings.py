"""Settings of a session as frozen dataclasses and enums, with their checks: the same on both ends of the wire."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from playserve.errors import BadSettingError
from playserve.specs import MouseDecode
from playserve.v1 import policy_service_pb2 as ps
from playserve.v1 import types_pb2 as pb

__all__ = [
    "MAX_INSTRUCTION_CHARS", "MAX_TEMPERATURE", "ActionSource", "Consent", "DropReason", "Extras", "MouseDecode",
    "Pace", "Sampling", "SamplingMode", "VersionPolicy", "check_instruction", "check_rate",
]  # fmt: skip

MAX_INSTRUCTION_CHARS = 4096
MAX_TEMPERATURE = 100.0


def _checked(what: str, value: int, known: type[enum.IntEnum]) -> int:
    if value not in {member.value for member in known}:
        raise BadSettingError(f"{what} {value}, wanted one of {', '.join(m.name for m in known)}")
    return value


class Pace(enum.IntEnum):
    """Whether the game waits for the answer."""

    LIVE = ps.PACE_LIVE
    LOCKSTEP = ps.PACE_LOCKSTEP

    @classmethod
    def from_proto(cls, value: int) -> Pace:
        """Return the pace of a wire value; unspecified means LOCKSTEP, an unknown one raises BadSettingError."""
        return cls(_checked("pace", value or ps.PACE_LOCKSTEP, cls))


class VersionPolicy(enum.IntEnum):
    """Which versions a session may run on."""

    PINNED = ps.VERSION_POLICY_PINNED
    FOLLOW = ps.VERSION_POLICY_FOLLOW

    @classmethod
    def from_proto(cls, value: int) -> VersionPolicy:
        """Return the policy of a wire value; unspecified means PINNED, an unknown one raises BadSettingError."""
        return cls(_checked("version policy", value or ps.VERSION_POLICY_PINNED, cls))


class ActionSource(enum.IntEnum):
    """Who chose an action that was executed in the game."""

    POLICY = pb.ACTION_SOURCE_POLICY
    HUMAN = pb.ACTION_SOURCE_HUMAN
    NONE = pb.ACTION_SOURCE_NONE
    UNKNOWN = pb.ACTION_SOURCE_UNKNOWN


class DropReason(enum.IntEnum):
    """Why a step has no answer of its own."""

    UNSPECIFIED = ps.DROP_REASON_UNSPECIFIED
    SUPERSEDED = ps.DROP_REASON_SUPERSEDED
    STALE = ps.DROP_REASON_STALE
    QUOTA = ps.DROP_REASON_QUOTA


class SamplingMode(enum.IntEnum):
    """How an action is drawn."""

    SAMPLE = pb.SAMPLING_MODE_SAMPLE
    ARGMAX = pb.SAMPLING_MODE_ARGMAX


@dataclass(frozen=True, slots=True)
class Sampling:
    """How actions are drawn; BadSettingError for a temperature outside its range.

    Attributes:
        mode: SAMPLE draws from softmax(logits / temperature), ARGMAX takes the most probable action.
        temperature: More than 0, at most 100; ignored under ARGMAX.
        mouse_decode: How mouse motion becomes pixels, for policies that draw it in coarse steps.
    """

    mode: SamplingMode = SamplingMode.SAMPLE
    temperature: float = 1.0
    mouse_decode: MouseDecode = MouseDecode.DEFAULT

    def __post_init__(self) -> None:
        if self.mode is SamplingMode.SAMPLE and not 0 < self.temperature <= MAX_TEMPERATURE:
            raise BadSettingError(f"temperature {self.temperature}, wanted more than 0, at most {MAX_TEMPERATURE:g}")

    def to_proto(self) -> pb.Sampling:
        """Return the wire message."""
        return pb.Sampling(mode=self.mode.value, temperature=self.temperature, mouse_decode=self.mouse_decode.value)

    @classmethod
    def from_proto(cls, message: pb.Sampling) -> Sampling:
        """Return the settings of a wire message; a temperature of 0 means 1."""
        mode = message.mode or pb.SAMPLING_MODE_SAMPLE
        if mode not in (pb.SAMPLING_MODE_SAMPLE, pb.SAMPLING_MODE_ARGMAX):
            raise BadSettingError(f"sampling mode {mode}, wanted {[m.name for m in SamplingMode]}")
        decode = MouseDecode(_checked("mouse decode", message.mouse_decode, MouseDecode))
        if mode == pb.SAMPLING_MODE_ARGMAX:
            return cls(mode=SamplingMode.ARGMAX, mouse_decode=decode)
        return cls(temperature=message.temperature or 1.0, mouse_decode=decode)


@dataclass(frozen=True, slots=True)
class Extras:
    """What is wanted with every result besides the action: its log-probability, the value estimate."""

    log_prob: bool = False
    value: bool = False

    def to_proto(self) -> pb.Extras:
        """Return the wire message."""
        return pb.Extras(log_prob=self.log_prob, value=self.value)

    @classmethod
    def from_proto(cls, message: pb.Extras) -> Extras:
        """Return the extras of a wire message."""
        return cls(log_prob=message.log_prob, value=message.value)


@dataclass(frozen=True, slots=True)
class Consent:
    """What the player allows operators: to watch live, and to record."""

    watch: bool = False
    record: bool = False

    def to_proto(self) -> ps.Consent:
        """Return the wire message."""
        return ps.Consent(watch=self.watch, record=self.record)

    @classmethod
    def from_proto(cls, message: ps.Consent) -> Consent:
        """Return the consent of a wire message."""
        return cls(watch=message.watch, record=message.record)


def check_instruction(text: str) -> str:
    """Return `text` if it may be an instruction, else raise BadSettingError."""
    if len(text) > MAX_INSTRUCTION_CHARS:
        raise BadSettingError(f"instruction of {len(text)} characters, wanted at most {MAX_INSTRUCTION_CHARS}")
    return text


def check_rate(rate_hz: float) -> float:
    """Return `rate_hz` if it is a rate (0: the policy's own), else raise BadSettingError."""
    if not 0 <= rate_hz <= 10_000:
        raise BadSettingError(f"rate of {rate_hz} Hz, wanted 0 (the policy's own) to 10000")
    return rate_hz
