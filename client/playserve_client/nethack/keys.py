"""The keyboard of NetHackChallenge: which key each of the 121 actions sends, and which action a key is.

The table is nle 1.3.0's (a test holds it to that), written down so that nothing here needs nle.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["ACTION_KEYS", "ACTION_NAMES", "KEY_TO_ACTION", "NUM_ACTIONS"]

# Groups of nle in its order; each action's name and the code of the key it sends (codes over 127: with Meta).
_GROUPS: Final[dict[str, dict[str, int]]] = {
    "CompassDirection": {
        "N": 107, "E": 108, "S": 106, "W": 104, "NE": 117, "SE": 110, "SW": 98, "NW": 121,
    },
    "CompassDirectionLonger": {
        "N": 75, "E": 76, "S": 74, "W": 72, "NE": 85, "SE": 78, "SW": 66, "NW": 89,
    },
    "MiscDirection": {
        "UP": 60, "DOWN": 62, "WAIT": 46,
    },
    "MiscAction": {
        "MORE": 13,
    },
    "Command": {
        "EXTCMD": 35, "EXTLIST": 191, "ADJUST": 225, "ANNOTATE": 193, "APPLY": 97, "ATTRIBUTES": 24, "AUTOPICKUP": 64,
        "CALL": 67, "CAST": 90, "CHAT": 227, "CLOSE": 99, "CONDUCT": 195, "DIP": 228, "DROP": 100, "DROPTYPE": 68,
        "EAT": 101, "ENGRAVE": 69, "ENHANCE": 229, "ESC": 27, "FIGHT": 70, "FIRE": 102, "FORCE": 230, "GLANCE": 59,
        "HISTORY": 86, "INVENTORY": 105, "INVENTTYPE": 73, "INVOKE": 233, "JUMP": 234, "KICK": 4, "KNOWN": 92,
        "KNOWNCLASS": 96, "LOOK": 58, "LOOT": 236, "MONSTER": 237, "MOVE": 109, "MOVEFAR": 77, "OFFER": 239,
        "OPEN": 111, "OPTIONS": 79, "OVERVIEW": 15, "PAY": 112, "PICKUP": 44, "PRAY": 240, "PUTON": 80, "QUAFF": 113,
        "QUIT": 241, "QUIVER": 81, "READ": 114, "REDRAW": 18, "REMOVE": 82, "RIDE": 210, "RUB": 242, "RUSH": 103,
        "RUSH2": 71, "SAVE": 83, "SEARCH": 115, "SEEALL": 42, "SEEAMULET": 34, "SEEARMOR": 91, "SEEGOLD": 36,
        "SEERINGS": 61, "SEESPELLS": 43, "SEETOOLS": 40, "SEETRAP": 94, "SEEWEAPON": 41, "SHELL": 33, "SIT": 243,
        "SWAP": 120, "TAKEOFF": 84, "TAKEOFFALL": 65, "TELEPORT": 20, "THROW": 116, "TIP": 212, "TRAVEL": 95,
        "TURN": 244, "TWOWEAPON": 88, "UNTRAP": 245, "VERSION": 246, "VERSIONSHORT": 118, "WEAR": 87, "WHATDOES": 38,
        "WHATIS": 47, "WIELD": 119, "WIPE": 247, "ZAP": 122,
    },
    "TextCharacters": {
        "PLUS": 43, "MINUS": 45, "SPACE": 32, "APOS": 39, "QUOTE": 34, "NUM_0": 48, "NUM_1": 49, "NUM_2": 50,
        "NUM_3": 51, "NUM_4": 52, "NUM_5": 53, "NUM_6": 54, "NUM_7": 55, "NUM_8": 56, "NUM_9": 57, "DOLLAR": 36,
    },
}  # fmt: skip

#: Key code of each action, in the order of NetHackChallenge's actions.
ACTION_KEYS: Final[tuple[int, ...]] = tuple(key for group in _GROUPS.values() for key in group.values())

#: Name of each action, such as "CompassDirection.N"; all different.
ACTION_NAMES: Final[tuple[str, ...]] = tuple(f"{group}.{name}" for group, names in _GROUPS.items() for name in names)

NUM_ACTIONS: Final = len(ACTION_KEYS)


def _actions_of_keys() -> NDArray[np.int16]:
    table = np.full(256, -1, np.int16)
    for action, key in enumerate(ACTION_KEYS):
        table[key] = action  # in order: the last one stays
    table.flags.writeable = False
    return table


#: int16 [256], read-only: the action that sends a key, -1 where none does. Three keys (34, 36 and 43: ``"``, ``$``
#: and ``+``) are sent by two actions each; the last one stands here, as in the loader of Tuyls et al.
KEY_TO_ACTION: Final[NDArray[np.int16]] = _actions_of_keys()
