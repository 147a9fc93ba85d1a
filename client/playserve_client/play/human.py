"""What a person does with a real keyboard and mouse: events, whoever watches for them, and what they add up to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from playserve.actions import DesktopAction

__all__ = ["ButtonEvent", "HumanEvent", "HumanState", "KeyEvent", "MotionEvent", "OnEvent", "ScrollEvent", "Watcher"]


@dataclass(frozen=True, slots=True)
class KeyEvent:
    """A key went down or up; `code` is W3C's, or "" for a key that it does not name."""

    code: str
    down: bool


@dataclass(frozen=True, slots=True)
class ButtonEvent:
    """A mouse button went down or up, in W3C's numbers."""

    button: int
    down: bool


@dataclass(frozen=True, slots=True)
class MotionEvent:
    """The mouse was moved, pixels to the right and down."""

    dx: float
    dy: float


@dataclass(frozen=True, slots=True)
class ScrollEvent:
    """The wheel was turned, away from the user where `steps` is positive."""

    steps: float


HumanEvent = KeyEvent | ButtonEvent | MotionEvent | ScrollEvent
#: Takes an event, in the watcher's own thread.
OnEvent = Callable[[HumanEvent], None]


class Watcher(Protocol):
    """Reports what real devices do, and nothing that a program does."""

    def start(self) -> None:
        """Begin."""
        ...

    def close(self) -> None:
        """End; no event comes after it."""
        ...

    def ignored(self) -> str:
        """Return, for people, which devices or events are not a person's."""
        ...


class HumanState:
    """What a person holds, and how far they have moved the mouse since it was last asked.

    Args:
        not_the_game: Keys that are no part of an action: hotkeys.
    """

    def __init__(self, not_the_game: frozenset[str] = frozenset()) -> None:
        self._not_the_game = not_the_game
        self._keys: set[str] = set()
        self._buttons: set[int] = set()
        self._pressed: set[str] = set()  # since the last sample, though they may be up again
        self._clicked: set[int] = set()
        self._dx = self._dy = self._scroll = 0.0

    def take(self, event: HumanEvent) -> bool:
        """Add an event; return whether it is one by which a person takes part: no release, no repeat, no hotkey."""
        if isinstance(event, KeyEvent):
            if event.code in self._not_the_game:
                return False
            new = event.down and (not event.code or event.code not in self._keys)
            if event.code:
                (self._keys.add if event.down else self._keys.discard)(event.code)
                self._pressed |= {event.code} if new else set()
            return new
        if isinstance(event, ButtonEvent):
            new = event.down and event.button not in self._buttons
            (self._buttons.add if event.down else self._buttons.discard)(event.button)
            self._clicked |= {event.button} if new else set()
            return new
        if isinstance(event, ScrollEvent):
            self._scroll += event.steps
            return event.steps != 0
        self._dx, self._dy = self._dx + event.dx, self._dy + event.dy
        return event.dx != 0 or event.dy != 0

    @property
    def moved_px(self) -> float:
        """Return how far the mouse is from where it was at the last sample."""
        return abs(self._dx) + abs(self._dy)

    def sample(self, mouse_scale: float = 1.0) -> DesktopAction:
        """Return what is held, with motion since the last sample, and begin anew.

        What was pressed and let go in between counts as held: a frame must not lose a click. That differs from a
        recording by P2P's own client, which samples what is down at the frame and nothing else.

        Args:
            mouse_scale: Pixels of motion that count as one.
        """
        action = DesktopAction(
            keys=frozenset(self._keys | self._pressed),
            buttons=frozenset(self._buttons | self._clicked),
            mouse_dx_px=self._dx / mouse_scale,
            mouse_dy_px=self._dy / mouse_scale,
            scroll=self._scroll,
        )
        self.forget()
        return action

    def forget(self) -> None:
        """Drop what happened since the last sample; what is held stays."""
        self._pressed.clear()
        self._clicked.clear()
        self._dx = self._dy = self._scroll = 0.0
