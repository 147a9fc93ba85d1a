"""What presses keys: the interface of its backends, and the one that only says what it would press."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from playserve_client.actuate.codes import BUTTONS, KEYS
from playserve_client.capture.errors import DesktopError

__all__ = ["ActuationError", "Backend", "DryRunBackend"]


class ActuationError(DesktopError):
    """A key, a button or the mouse could not be moved."""


class Backend(Protocol):
    """Presses keys and buttons and moves the mouse, at once and once: no state. Used by one thread at a time."""

    def can_press(self, code: str) -> bool:
        """Return whether this desktop has the key of a W3C code."""
        ...

    def key(self, code: str, down: bool) -> None:
        """Press or release a key."""
        ...

    def button(self, button: int, down: bool) -> None:
        """Press or release a mouse button, in W3C's numbers."""
        ...

    def move(self, dx: int, dy: int) -> None:
        """Move the mouse by pixels, to the right and down, as a mouse would: without a position."""
        ...

    def scroll(self, steps: int) -> None:
        """Turn the wheel, away from the user where `steps` is positive."""
        ...

    def flush(self) -> None:
        """Return when all of it has reached the system."""
        ...

    def close(self) -> None:
        """Let go of the system."""
        ...


class DryRunBackend:
    """Says what would be pressed.

    Args:
        say: Takes one line for each edge.
    """

    def __init__(self, say: Callable[[str], object]) -> None:
        self._say = say

    def can_press(self, code: str) -> bool:
        """Return whether any desktop has the key."""
        return code in KEYS

    def key(self, code: str, down: bool) -> None:
        """Say that a key is pressed or released."""
        self._say(f"{'press' if down else 'release'} {code}")

    def button(self, button: int, down: bool) -> None:
        """Say that a button is pressed or released."""
        if button not in BUTTONS:
            raise ActuationError(f"mouse button {button}, wanted one of {sorted(BUTTONS)}")
        self._say(f"{'press' if down else 'release'} button {button}")

    def move(self, dx: int, dy: int) -> None:
        """Say how the mouse is moved."""
        self._say(f"move {dx:+d} {dy:+d}")

    def scroll(self, steps: int) -> None:
        """Say how the wheel is turned."""
        self._say(f"scroll {steps:+d}")

    def flush(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""
