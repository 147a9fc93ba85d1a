"""Reads a trace: messages of one or more calls in the order in which they were sent, in protobuf's text format.

A line is one of these, and a line that begins with a space goes on with the one before it::

    # text                          a comment
    stream NAME = SERVICE/METHOD    a call begins
    NAME > MESSAGE                  the caller sends a message
    NAME < MESSAGE                  the server sends one
    NAME x CODE [REASON]            the call ends

Angle brackets stand for what is too long to be written: ``<12 bytes>`` (any content), ``<lz4 of 12 bytes>``,
``<jpeg of 8 x 8>``, ``<sha256 of 12 bytes>``, ``<f32 0 1>`` (likewise i32, i64, u64, bool: packed little-endian),
``<0 to 3>`` is ``0, 1, 2, 3`` and ``<3 times 7>`` is ``7, 7, 7``.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import lz4.block
import numpy as np
import simplejpeg
from google.protobuf import descriptor_pool, message_factory, text_format
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from tritonclient.grpc import service_pb2

from playserve.v1 import admin_service_pb2, policy_service_pb2, state_transfer_service_pb2

__all__ = ["Event", "read", "read_text"]

# Importing them is what puts their descriptors into the pool.
_FILES = (admin_service_pb2, policy_service_pb2, state_transfer_service_pb2, service_pb2, error_details_pb2)

_START = re.compile(r"stream (\w+) = ([\w.]+)/(\w+)")
_LINE = re.compile(r"(\w+) ([<>x])(?:\s(.*))?", re.DOTALL)
_PACKED = {"f32": "f", "i32": "i", "i64": "q", "u64": "Q", "bool": "?"}


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened in a trace.

    Attributes:
        line: Where it begins, from 1.
        stream: Name of the call.
        kind: "start", "up", "down" or "end".
        method: "service/method", full name.
        message: Of "up" and "down".
        code: gRPC code of "end".
        reason: ErrorInfo.reason of "end", or "".
    """

    line: int
    stream: str
    kind: str
    method: str
    message: Message | None = None
    code: str = ""
    reason: str = ""


def read(path: Path) -> list[Event]:
    """Return the events of a trace file."""
    return read_text(path.read_text())


def read_text(text: str) -> list[Event]:
    """Return the events of a trace; ValueError, with the line, for what is none."""
    events: list[Event] = []
    methods: dict[str, str] = {}
    for number, entry in _entries(text):
        try:
            events.append(_event(number, entry, methods))
        except (ValueError, KeyError, text_format.ParseError) as error:
            raise ValueError(f"line {number}: {error}") from error
    return events


def _entries(text: str) -> list[tuple[int, str]]:
    """Return the lines with those that go on joined to theirs, without comments."""
    entries: list[tuple[int, str]] = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith(" "):
            first, so_far = entries.pop()
            entries.append((first, f"{so_far}\n{line}"))
        elif line and not line.startswith("#"):
            # The closing brace of a message stands at the margin.
            if line == "}":
                first, so_far = entries.pop()
                entries.append((first, f"{so_far}\n}}"))
            else:
                entries.append((number, line))
    return entries


def _event(number: int, entry: str, methods: dict[str, str]) -> Event:
    if match := _START.fullmatch(entry):
        name, service, method = match.groups()
        descriptor_pool.Default().FindServiceByName(service).methods_by_name[method]
        if name in methods:
            raise ValueError(f"stream {name!r} begins twice")
        methods[name] = f"{service}/{method}"
        return Event(number, name, "start", methods[name])
    match = _LINE.fullmatch(entry)
    if match is None:
        raise ValueError(f"{entry[:60]!r} is no line of a trace")
    name, mark, rest = match[1], match[2], match[3] or ""
    method_name = methods[name]
    if mark == "x":
        code, _, reason = rest.strip().partition(" ")
        return Event(number, name, "end", method_name, code=code, reason=reason.strip())
    service, method = method_name.split("/")
    descriptor = descriptor_pool.Default().FindServiceByName(service).methods_by_name[method]
    kind = descriptor.input_type if mark == ">" else descriptor.output_type
    message = text_format.Parse(_expand(rest), message_factory.GetMessageClass(kind)())
    return Event(number, name, "up" if mark == ">" else "down", method_name, message)


def _expand(text: str) -> str:
    return re.sub(r"<([^<>]*)>", lambda match: _value(match[1]), text)


def _value(words: str) -> str:
    for pattern, make in _MACROS.items():
        if match := re.fullmatch(pattern, words):
            return make(*match.groups())
    raise ValueError(f"<{words}> stands for nothing")


def _quoted(data: bytes) -> str:
    return '"' + "".join(f"\\{byte:03o}" for byte in data) + '"'


def _filler(size: str) -> bytes:
    return b"." * int(size)


def _jpeg(height: str, width: str) -> str:
    image = np.full((int(height), int(width), 3), 127, np.uint8)
    return _quoted(simplejpeg.encode_jpeg(image, colorspace="RGB", colorsubsampling="444"))


def _pack(kind: str, numbers: str) -> str:
    values = [float(word) if kind == "f32" else int(word) for word in numbers.split()]
    return _quoted(struct.pack(f"<{len(values)}{_PACKED[kind]}", *values))


_MACROS: dict[str, Callable[..., str]] = {
    r"(\d+) bytes": lambda size: f'"{_filler(size).decode()}"',
    r"lz4 of (\d+) bytes": lambda size: _quoted(lz4.block.compress(_filler(size), store_size=False)),
    r"sha256 of (\d+) bytes": lambda size: _quoted(hashlib.sha256(_filler(size)).digest()),
    r"jpeg of (\d+) x (\d+)": _jpeg,
    r"(f32|i32|i64|u64|bool) ([-\d. ]+)": _pack,
    r"(\d+) to (\d+)": lambda low, high: ", ".join(str(i) for i in range(int(low), int(high) + 1)),
    r"(\d+) times (\S+)": lambda count, value: ", ".join([value] * int(count)),
}
