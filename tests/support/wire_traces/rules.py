"""Says whether a trace keeps the rules of docs/protocol.md: a judge of messages, which knows no server."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import grpc
from google.rpc import error_details_pb2

from playserve.errors import DOMAIN, REASONS
from wire_traces.parse import Event

__all__ = ["BrokenRuleError", "Judge", "Scene", "check", "demand", "reason_of"]


class BrokenRuleError(Exception):
    """The trace breaks a rule."""


def demand(rule: bool, text: str) -> None:
    """Raise BrokenRuleError with `text` unless the rule is kept."""
    if not rule:
        raise BrokenRuleError(text)


def reason_of(status: Any) -> str:
    """Return the reason of an in-band status, checked against the documented list."""
    [info] = [_unpack(detail) for detail in status.details if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR)]
    demand(info.domain == DOMAIN, f"an ErrorInfo of domain {info.domain!r}")
    demand(info.reason in REASONS, f"{info.reason} is no documented reason")
    code = REASONS[info.reason].code
    demand(status.code == code.value[0], f"{info.reason} has the code {code.name}, not {status.code}")
    demand(bool(status.message), f"{info.reason} without a text")
    return str(info.reason)


def _unpack(detail: Any) -> error_details_pb2.ErrorInfo:
    info = error_details_pb2.ErrorInfo()
    detail.Unpack(info)
    return info


class Judge(Protocol):
    """Judges one call."""

    def up(self, message: Any) -> None:
        """Take a message of the caller."""

    def down(self, message: Any) -> None:
        """Take a message of the server."""

    def end(self, code: str, reason: str) -> None:
        """Take the end of the call."""


@dataclass
class Scene:
    """What the calls of one trace share.

    Attributes:
        sessions: Sessions by resume token.
        committed: Tokens that a transfer gave, with their addresses and the public ids of their sessions.
        generations: Last generation of each slot behind Triton.
        judges: Makes the judge of a method.
    """

    judges: dict[str, Callable[[Scene], Judge]]
    sessions: dict[bytes, Any] = field(default_factory=dict)
    committed: dict[bytes, tuple[str, str, int]] = field(default_factory=dict)
    generations: dict[int, int] = field(default_factory=dict)


def check(events: Iterable[Event], judges: dict[str, Callable[[Scene], Judge]]) -> None:
    """Raise BrokenRuleError, with the line, where a trace breaks a rule or a call of it has no end."""
    scene = Scene(judges)
    running: dict[str, Judge] = {}
    line = 0
    for event in events:
        line = event.line
        try:
            if event.kind == "start":
                running[event.stream] = judges[event.method](scene)
                continue
            demand(event.stream in running, f"call {event.stream!r} is over")
            judge = running[event.stream]
            if event.kind == "up":
                judge.up(event.message)
            elif event.kind == "down":
                judge.down(event.message)
            else:
                demand(hasattr(grpc.StatusCode, event.code), f"{event.code} is no gRPC code")
                if event.reason:
                    demand(event.reason in REASONS, f"{event.reason} is no documented reason")
                    demand(REASONS[event.reason].code.name == event.code, f"{event.reason} is not {event.code}")
                judge.end(event.code, event.reason)
                del running[event.stream]
        except BrokenRuleError as error:
            raise BrokenRuleError(f"line {event.line}: {error}") from error
    if running:
        raise BrokenRuleError(f"line {line}: calls without an end: {sorted(running)}")
