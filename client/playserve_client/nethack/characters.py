"""The characters of NetHack: which roles, races, alignments and genders go together."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Final

from playserve.errors import BadSettingError

__all__ = ["RANDOM_CHARACTER", "all_characters", "check_character"]

#: The seed draws role, race, alignment and gender.
RANDOM_CHARACTER: Final = "@"

# Races and alignments of each role (role.c of NetHack 3.6); a race other than human has one alignment.
_ROLES: Final[dict[str, tuple[str, str]]] = {
    "arc": ("hum dwa gno", "law neu"),
    "bar": ("hum orc", "neu cha"),
    "cav": ("hum dwa gno", "law neu"),
    "hea": ("hum gno", "neu"),
    "kni": ("hum", "law"),
    "mon": ("hum", "law neu cha"),
    "pri": ("hum elf", "law neu cha"),
    "ran": ("hum elf gno orc", "neu cha"),
    "rog": ("hum orc", "cha"),
    "sam": ("hum", "law"),
    "tou": ("hum", "neu"),
    "val": ("hum dwa", "law neu"),
    "wiz": ("hum elf gno orc", "neu cha"),
}
_ALIGNMENT_OF_RACE: Final = {"dwa": "law", "elf": "cha", "gno": "neu", "orc": "cha"}
_GENDERS: Final = ("mal", "fem")


def all_characters() -> Iterator[str]:
    """Yield every character that NetHack has, such as "mon-hum-neu-mal" (role, race, alignment, gender)."""
    for role, (races, alignments) in _ROLES.items():
        for race in races.split():
            for alignment in alignments.split():
                if _ALIGNMENT_OF_RACE.get(race, alignment) == alignment:
                    yield from (f"{role}-{race}-{alignment}-{gender}" for gender in _genders(role))


def _genders(role: str) -> tuple[str, ...]:
    return ("fem",) if role == "val" else _GENDERS


def check_character(character: str) -> str:
    """Return `character`, or raise BadSettingError: NetHack itself silently plays another one instead.

    Args:
        character: "@" for a random one (it is the seed's), or role, race, alignment and gender in this order.
    """
    characters = [RANDOM_CHARACTER, *all_characters()]
    if character in characters:
        return character
    # All four parts, but in another order or in capitals.
    wanted = sorted(character.lower().split("-"))
    close = [known for known in characters if sorted(known.split("-")) == wanted]
    close = close or difflib.get_close_matches(character.lower(), characters, n=3, cutoff=0.6)
    hint = f"; close ones: {', '.join(close)}" if close else ""
    raise BadSettingError(
        f"there is no NetHack character {character!r}: it is role-race-alignment-gender, such as mon-hum-neu-mal, "
        f'or "@" for a random one{hint}'
    )
