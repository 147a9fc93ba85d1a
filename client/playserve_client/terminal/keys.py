"""Names of keys for people who watch a game."""

from __future__ import annotations

from playserve_client.nethack.keys import ACTION_NAMES, KEY_TO_ACTION

__all__ = ["key_name", "key_text"]

_TEXT = {0: "nothing", 10: "^J", 13: "Enter", 27: "Esc", 32: "space", 127: "Del"}
_DIRECTIONS = {
    "N": "north", "E": "east", "S": "south", "W": "west",
    "NE": "northeast", "SE": "southeast", "SW": "southwest", "NW": "northwest",
}  # fmt: skip


def key_text(code: int) -> str:
    """Return a key code as people write it: ``k``, ``space``, ``^D``, ``M-q``."""
    if code >= 128:
        return f"M-{key_text(code - 128)}"
    return _TEXT.get(code) or (f"^{chr(code + 64)}" if code < 32 else chr(code))


def key_name(code: int) -> str:
    """Return a key and what it does where it is a command: ``k north``, ``K far north``, ``s search``, ``7``."""
    action = int(KEY_TO_ACTION[code])
    text = key_text(code)
    if action < 0:
        return text
    group, _, name = ACTION_NAMES[action].partition(".")
    if group == "TextCharacters":
        return text
    meaning = _DIRECTIONS.get(name, name.lower())
    if group == "CompassDirectionLonger":
        meaning = f"far {meaning}"
    return text if meaning == text.lower() else f"{text} {meaning}"
