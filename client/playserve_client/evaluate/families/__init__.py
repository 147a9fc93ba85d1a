"""Families of environments: what the evaluator has to know about each. Everything else in it knows no game.

Nothing of an emulator is imported before it is needed.
"""

from __future__ import annotations

from playserve_client.evaluate.families.atari import AtariFamily
from playserve_client.evaluate.families.base import Choice, Contender, FactColumn, Family, PlayerSource, Recorded, Role
from playserve_client.evaluate.families.doom import DoomFamily
from playserve_client.evaluate.families.generic import GenericFamily
from playserve_client.evaluate.families.nethack import NetHackFamily
from playserve_client.evaluate.families.world import WorldFamily

__all__ = [
    "COMMANDS",
    "Choice",
    "Contender",
    "FactColumn",
    "Family",
    "PlayerSource",
    "Recorded",
    "Role",
    "family_of",
]

#: The families that are subcommands of ``playserve rollout``, by name.
COMMANDS: dict[str, Family] = {
    "atari": AtariFamily(),
    "doom": DoomFamily(),
    "nethack": NetHackFamily(),
    "world": WorldFamily(),
}


def family_of(name: str) -> Family:
    """Return the family of an environment: one of :data:`COMMANDS`, else that of a user's own."""
    return COMMANDS.get(name) or GenericFamily()
