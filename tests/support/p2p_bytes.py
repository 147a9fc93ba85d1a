"""Serialized Open P2P annotations by hand: tags and lengths from the field numbers, none of our generated code."""

from __future__ import annotations

import struct


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1  # negative int32 are ten bytes
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def number(field: int, value: int) -> bytes:
    return varint(field << 3 | 0) + varint(value)


def real32(field: int, value: float) -> bytes:
    return varint(field << 3 | 5) + struct.pack("<f", value)


def part(field: int, content: bytes | str) -> bytes:
    raw = content.encode() if isinstance(content, str) else content
    return varint(field << 3 | 2) + varint(len(raw)) + raw


def vec2int(x: int, y: int) -> bytes:
    return (number(1, x) if x else b"") + (number(2, y) if y else b"")


def low_level_action(
    keys: tuple[str, ...] = (), buttons: tuple[str, ...] = (), delta: tuple[int, int] = (0, 0), *, known: bool = True
) -> bytes:
    keyboard = b"".join(part(1, key) for key in keys)
    mouse = part(3, vec2int(*delta)) + b"".join(part(9, button) for button in buttons)
    return part(2, keyboard) + (number(3, 1) if known else b"") + part(4, mouse)


def embedding(version: str, encoder: str, shape: tuple[int, ...], values: list[float]) -> bytes:
    """Return a text_embedding_dict entry: version -> {text_embeddings: {encoder -> FloatTensor}}."""
    packed_shape = b"".join(varint(side) for side in shape)
    tensor = part(1, packed_shape) + part(2, struct.pack(f"<{len(values)}f", *values))
    tokenizers = part(1, part(1, encoder) + part(2, tensor))
    return part(4, part(1, version) + part(2, tokenizers))


def text(instruction: str, seconds: float, version: str = "gemini-2.5-flash", extra: bytes = b"") -> bytes:
    return part(1, instruction) + part(2, part(1, "gemini") + part(2, version)) + real32(3, seconds) + extra


def frame(
    user: bytes | None = None, system: bytes | None = None, *, time_ns: int = 0, texts: tuple[bytes, ...] = ()
) -> bytes:
    out = part(1, user) if user is not None else b""
    if system is not None:
        out += part(6, system)
    out += b"".join(part(7, entry) for entry in texts)
    return out + (number(8, time_ns) if time_ns else b"")


def annotation(frames: list[bytes], *, env: str = "Quake", subtype: str = "", fps: float = 20.0) -> bytes:
    environment = part(1, env) + (part(2, subtype) if subtype else b"")
    metadata = part(1, "0193-test") + number(2, 1_733_000_000_000) + real32(5, fps) + part(6, environment)
    return part(2, metadata) + b"".join(part(3, entry) for entry in frames) + number(6, 5)
