"""Our own maps, as WAD files in UDMF text that are made by code; ZDoom builds the nodes itself.

``two_vests`` is a closed room with a green vest (armor 100) and a red one (armor 200). Which of them stands on which
side, where, and where the player stands and looks, differs between the variants; the seed picks one. Seeds from
1,000,000 on, where evaluations begin, pick from variants of their own: none of those is ever recorded by its seed.
"""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["EVALUATION_SEED", "VARIANTS", "map_name", "two_vests_wad", "variant_of", "write_wad"]

#: Maps of a WAD; the first half is recorded, the second evaluated on.
VARIANTS = 1024
#: First seed that the evaluator uses.
EVALUATION_SEED = 1_000_000
_SEED = 20_26
_THING_PLAYER, _THING_GREEN, _THING_BLUE = 1, 2018, 2019  # Freedoom paints the blue armor red
_FLAGS = " ".join(f"skill{skill} = true;" for skill in range(1, 6)) + " single = true; coop = true; dm = true;"
_WALLS = ("STONE2", "BROWN1", "STARTAN3", "GRAY1", "BRICK7", "METAL1")
_FLOORS = ("FLOOR0_1", "FLOOR4_8", "FLAT5_4", "FLOOR7_1")


def map_name(variant: int) -> str:
    """Return the lump name of a variant, from 0 to VARIANTS - 1."""
    return f"MAP{variant + 1:02d}"


def variant_of(seed: int, word: int) -> int:
    """Return the variant of an episode's seed; `word` is random bits that were drawn for that seed."""
    return word % (VARIANTS // 2) + (VARIANTS // 2 if seed >= EVALUATION_SEED else 0)


def write_wad(path: Path, maps: Mapping[str, str]) -> None:
    """Write a PWAD of UDMF maps, TEXTMAP by lump name."""
    lumps: list[tuple[str, bytes]] = []
    for name, text in maps.items():
        lumps += [(name, b""), ("TEXTMAP", text.encode("ascii")), ("ENDMAP", b"")]
    directory, offset = [], 12
    for name, content in lumps:
        directory.append(struct.pack("<ii8s", offset, len(content), name.encode("ascii")))
        offset += len(content)
    header = struct.pack("<4sii", b"PWAD", len(lumps), offset)
    path.write_bytes(b"".join([header, *(content for _, content in lumps), *directory]))


def two_vests_wad(path: Path) -> None:
    """Write the maps of ``two_vests``; the same bytes each time."""
    write_wad(path, {map_name(variant): _two_vests(random.Random(_SEED + variant)) for variant in range(VARIANTS)})


def _two_vests(draw: random.Random) -> str:
    half_width, half_depth = draw.randint(280, 400), draw.randint(280, 400)
    x, y = draw.uniform(-80, 80) - half_width / 2, draw.uniform(-60, 60)
    looks = draw.uniform(0, 360)
    # Both vests stand ahead of the player, left and right, apart by more than a player is wide. They are near: their
    # colours show in a frame of 96 pixels, and the choice is much of the way, not the first tenth of it.
    spots = []
    middle = draw.uniform(-8, 8)
    apart = draw.uniform(24, 34)
    for side in (1, -1):
        angle = math.radians(middle + side * apart)
        far = draw.uniform(80, 120)
        spots.append((_within(x + far * math.cos(angle), half_width), _within(y + far * math.sin(angle), half_depth)))
    if draw.random() < 0.5:
        spots.reverse()
    things = [
        (_THING_PLAYER, x, y, round(looks if draw.random() < 0.2 else draw.uniform(-10, 10)) % 360),
        (_THING_GREEN, *spots[0], 0),
        (_THING_BLUE, *spots[1], 0),
    ]
    corners = [
        (-half_width, -half_depth),
        (-half_width, half_depth),
        (half_width, half_depth),
        (half_width, -half_depth),
    ]
    return _room(corners, things, draw.choice(_WALLS), draw.choice(_FLOORS), draw.randint(160, 240))


def _within(value: float, half: float) -> float:
    return max(-half + 48, min(half - 48, value))


def _room(
    corners: Sequence[tuple[float, float]],
    things: Sequence[tuple[int, float, float, int]],
    wall: str,
    floor: str,
    light: int,
) -> str:
    lines = ['namespace = "ZDoom";']
    lines += [f"vertex {{ x = {x:.1f}; y = {y:.1f}; }}" for x, y in corners]
    count = len(corners)
    lines += [
        f"linedef {{ v1 = {i}; v2 = {(i + 1) % count}; sidefront = {i}; blocking = true; }}" for i in range(count)
    ]
    lines += [f'sidedef {{ sector = 0; texturemiddle = "{wall}"; }}' for _ in corners]
    lines.append(
        f'sector {{ heightfloor = 0; heightceiling = 128; texturefloor = "{floor}"; textureceiling = "CEIL1_1"; '
        f"lightlevel = {light}; }}"
    )
    lines += [
        f"thing {{ x = {x:.1f}; y = {y:.1f}; type = {kind}; angle = {angle}; {_FLAGS} }}"
        for kind, x, y, angle in things
    ]
    return "\n".join(lines) + "\n"
