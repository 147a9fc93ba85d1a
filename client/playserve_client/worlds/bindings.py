"""From what a person holds down to the action of a world: keys as they are, or the named action that fits best.

Names are read as the parts that they are made of: Atari's ("UPRIGHTFIRE"), keys by their W3C codes and mouse buttons
("KeyW+Space", "Mouse0"), and turns ("MouseLeft", "TurnRight"). Where no name says anything, digits choose.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping
from types import MappingProxyType

from playserve.actions import Action, DesktopAction, clip_action
from playserve.specs import ActionSpec, DiscreteActionSpec
from playserve_client.actuate.codes import KEYS
from playserve_client.worlds.view import idle_action

__all__ = ["Bindings", "Held"]

#: What a held key stands for where actions have names. A person's hands know both.
_WORDS: Mapping[str, str] = MappingProxyType({
    "ArrowUp": "UP", "KeyW": "UP", "ArrowDown": "DOWN", "KeyS": "DOWN", "ArrowLeft": "LEFT", "KeyA": "LEFT",
    "ArrowRight": "RIGHT", "KeyD": "RIGHT", "Space": "FIRE", "ControlLeft": "FIRE",
})  # fmt: skip
_ATARI = re.compile(r"(UP|DOWN)?(LEFT|RIGHT)?(FIRE)?")
_TURNS = {"TURNLEFT": "@left", "MOUSELEFT": "@left", "TURNRIGHT": "@right", "MOUSERIGHT": "@right"}
_BUTTONS = re.compile(r"(?:MOUSE|BUTTON)([0-4])")
#: Keys that are typed while a world is slow, and not forgotten.
_TYPED_AHEAD = 32
#: Motion within a step that counts as a turn where actions have names, pixels.
_TURN_PX = 4.0
_CODES: Mapping[str, str] = MappingProxyType({code.upper(): code for code in KEYS})


class Held:
    """What is held down, what was typed, and how the mouse has moved since it was last asked. One thread.

    Attributes:
        keys: Held down, by their W3C codes.
        buttons: Held down, by their W3C numbers.
        typed: Code and character ("": none) of each key that went down, the oldest first; only the newest are kept.
    """

    def __init__(self) -> None:
        self.keys: set[str] = set()
        self.buttons: set[int] = set()
        self.typed: deque[tuple[str, str]] = deque(maxlen=_TYPED_AHEAD)
        self._tapped: set[str] = set()
        self._clicked: set[int] = set()
        self._motion = [0.0, 0.0, 0.0]

    def key(self, code: str, *, down: bool) -> None:
        """A key went down or up. One that did both between two steps counts as held in one of them."""
        if down:
            self.keys.add(code)
            self._tapped.add(code)
        else:
            self.keys.discard(code)

    def type(self, code: str, text: str) -> None:
        """A key went down that types a character, or none."""
        self.typed.append((code, text))

    def button(self, number: int, *, down: bool) -> None:
        """A mouse button went down or up, by its W3C number."""
        if down:
            self.buttons.add(number)
            self._clicked.add(number)
        else:
            self.buttons.discard(number)

    def moved(self, dx_px: float = 0.0, dy_px: float = 0.0, scroll: float = 0.0) -> None:
        """The mouse moved."""
        self._motion = [a + b for a, b in zip(self._motion, (dx_px, dy_px, scroll), strict=True)]

    def release(self) -> None:
        """Everything is up: the window has lost the focus."""
        self.__init__()  # type: ignore[misc]

    def take(self) -> DesktopAction:
        """Return what was held since this was last asked; motion is given once."""
        action = DesktopAction(frozenset(self.keys | self._tapped), frozenset(self.buttons | self._clicked),
                               *self._motion)  # fmt: skip
        self._tapped, self._clicked, self._motion = set(), set(), [0.0, 0.0, 0.0]
        return action


class Bindings:
    """Turns what is held into actions of one world.

    Args:
        spec: The world's actions.
    """

    def __init__(self, spec: ActionSpec) -> None:
        self._spec = spec
        self._idle = idle_action(spec)
        names = spec.names if isinstance(spec, DiscreteActionSpec) else ()
        parts = [_parts(name) for name in names]
        self._parts = parts if any(parts) else []
        self._known = frozenset().union(*[part for part in self._parts if part]) if self._parts else frozenset()

    @property
    def uses_mouse(self) -> bool:
        """Whether motion of the mouse means something, so that a window shall hold it."""
        if not isinstance(self._spec, DiscreteActionSpec):
            return self._spec.max_mouse_px > 0
        return bool(self._known & {"@left", "@right"})

    def take(self, held: Held, *, ready: bool) -> Action:
        """Return the action for what was held since this was last asked, whether or not it can be sent now."""
        return self.action(held.take())

    def action(self, held: DesktopAction) -> Action:
        """Return the action for what is held."""
        if not isinstance(self._spec, DiscreteActionSpec):
            return clip_action(held, self._spec)
        if not self._parts:
            return self._chosen(self._spec.n, held)
        wanted = self._words(held) & self._known
        if not wanted:
            return self._idle
        # As much of what is held as one action has; of equals the one that does least besides.
        scores = [(len(p & wanted), -len(p - wanted)) if p is not None else (-1, 0) for p in self._parts]
        best = max(scores)
        return scores.index(best) if best[0] > 0 else self._idle

    def help(self) -> str:
        """Return one line that says which keys do what."""
        if not isinstance(self._spec, DiscreteActionSpec):
            mouse = ", mouse" if self.uses_mouse else ""
            return f"keys: {' '.join(self._spec.keys)}{mouse}"
        if not self._parts:
            return f"keys: the digits choose among {self._spec.n} actions"
        return f"keys: arrows or WASD, Space; actions: {' '.join(self._spec.names[:18])}"

    def _words(self, held: DesktopAction) -> set[str]:
        words = {_WORDS[key] for key in held.keys if key in _WORDS} | set(held.keys)
        words |= {f"@button{number}" for number in held.buttons}
        if 0 in held.buttons:
            words.add("FIRE")
        if abs(held.mouse_dx_px) >= _TURN_PX:
            words.add("@left" if held.mouse_dx_px < 0 else "@right")
        if not self._known & {"LEFT", "RIGHT"}:  # arrows turn where the mouse does
            words |= {turn for key, turn in (("ArrowLeft", "@left"), ("ArrowRight", "@right")) if key in held.keys}
        return words

    def _chosen(self, n: int, held: DesktopAction) -> int:
        digits = sorted(int(key[-1]) for key in held.keys if key.startswith("Digit"))
        return digits[0] if digits and digits[0] < n else int(self._idle if isinstance(self._idle, int) else 0)


def _parts(name: str) -> frozenset[str] | None:
    """Return what an action is made of; empty: it does nothing; None: its name says nothing."""
    found: set[str] = set()
    for word in re.split(r"[+_ ,&-]+", name.upper()):
        atari = _ATARI.fullmatch(word)
        button = _BUTTONS.fullmatch(word)
        if word in ("", "NOOP", "IDLE", "NONE", "WAIT"):
            continue
        if atari is not None:
            found |= {part for part in atari.groups() if part}
        elif button is not None:
            found.add(f"@button{button[1]}")
        elif word in _TURNS:
            found.add(_TURNS[word])
        elif word in _CODES:
            found.add(_CODES[word])
        else:
            return None
    return frozenset(found)
