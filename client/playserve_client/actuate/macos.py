"""Presses through pynput on macOS."""

from __future__ import annotations

from typing import Any

from playserve_client.actuate.base import ActuationError
from playserve_client.actuate.codes import KEYS
from playserve_client.capture.errors import PermissionMissingError

__all__ = ["MacBackend"]


class MacBackend:
    """See :class:`playserve_client.actuate.base.Backend`.

    Args:
        pynput: Packages `keyboard` and `mouse` as attributes, or doubles of them; None: pynput itself.
        quartz: The module Quartz, for motion that carries its difference; None with pynput's: the system's.
    """

    def __init__(self, pynput: Any = None, quartz: Any = None) -> None:
        if pynput is None:
            import importlib

            pynput = importlib.import_module("pynput")  # which looks for a display
            services, quartz = importlib.import_module("ApplicationServices"), importlib.import_module("Quartz")
            if not services.AXIsProcessTrusted():
                raise PermissionMissingError(
                    "macOS does not let this program press keys: System Settings, Privacy & Security, Accessibility, "
                    "allow your terminal, and start it again"
                )
        self._quartz = quartz
        self._keyboard, self._mouse = pynput.keyboard.Controller(), pynput.mouse.Controller()
        self._code = pynput.keyboard.KeyCode
        button = pynput.mouse.Button
        self._buttons = {0: button.left, 1: button.middle, 2: button.right}
        self._down: set[int] = set()

    def can_press(self, code: str) -> bool:
        """Return whether macOS has the key."""
        return code in KEYS and KEYS[code].mac is not None

    def key(self, code: str, down: bool) -> None:
        """Press or release a key."""
        key = self._code.from_vk(KEYS[code].mac)
        (self._keyboard.press if down else self._keyboard.release)(key)

    def button(self, button: int, down: bool) -> None:
        """Press or release a mouse button."""
        if button not in self._buttons:
            raise ActuationError(f"mouse button {button}, macOS takes one of {sorted(self._buttons)}")
        (self._down.add if down else self._down.discard)(button)
        (self._mouse.press if down else self._mouse.release)(self._buttons[button])

    def move(self, dx: int, dy: int) -> None:
        """Move the mouse by points; the event says by how much, which games that hold the pointer still read."""
        quartz = self._quartz
        x, y = self._mouse.position
        kind, which = quartz.kCGEventMouseMoved, quartz.kCGMouseButtonLeft
        if 0 in self._down:
            kind = quartz.kCGEventLeftMouseDragged
        elif 2 in self._down:
            kind, which = quartz.kCGEventRightMouseDragged, quartz.kCGMouseButtonRight
        event = quartz.CGEventCreateMouseEvent(None, kind, (x + dx, y + dy), which)
        quartz.CGEventSetIntegerValueField(event, quartz.kCGMouseEventDeltaX, dx)
        quartz.CGEventSetIntegerValueField(event, quartz.kCGMouseEventDeltaY, dy)
        quartz.CGEventPost(quartz.kCGHIDEventTap, event)

    def scroll(self, steps: int) -> None:
        """Turn the wheel."""
        self._mouse.scroll(0, steps)

    def flush(self) -> None:
        """Do nothing: events are posted at once."""

    def close(self) -> None:
        """Do nothing: there is nothing to let go of."""
