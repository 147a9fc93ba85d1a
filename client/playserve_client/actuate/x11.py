"""Presses through pynput on X11, and moves the mouse through XTEST itself."""

from __future__ import annotations

from typing import Any

from playserve_client.actuate.base import ActuationError
from playserve_client.actuate.codes import BUTTONS, KEYS, XKB_OFFSET

__all__ = ["X11Backend", "has_evdev_codes"]


class X11Backend:
    """See :class:`playserve_client.actuate.base.Backend`.

    pynput presses keys and buttons. Its mouse can only be set to a position, which games that read motion ignore and
    games that hold the pointer still misread; so motion goes to XTEST as what it is, a difference. Keys are given to
    pynput by the keysym that is at the code's place on the user's layout: by letter it would send events that games
    ignore.
    """

    def __init__(self) -> None:
        from pynput import keyboard, mouse

        from playserve_client.capture.x11 import open_display

        self._display: Any = open_display()
        if not self._display.query_extension("XTEST").present:
            raise ActuationError("the X server has no XTEST extension, through which keys are pressed")
        self._keyboard, self._mouse = keyboard.Controller(), mouse.Controller()
        self._errors: list[Any] = []
        self._display.set_error_handler(lambda error, _request: self._errors.append(error))
        for controller in (self._keyboard, self._mouse):
            _share(controller, self._display)
        self._pynput = keyboard.KeyCode
        self._buttons = {ours: _pynput_button(mouse.Button, theirs) for ours, theirs in BUTTONS.items()}
        self._keysyms = _keysyms(self._display)

    def can_press(self, code: str) -> bool:
        """Return whether the user's keyboard has the key."""
        return code in self._keysyms

    def key(self, code: str, down: bool) -> None:
        """Press or release a key."""
        key = self._pynput.from_vk(self._keysyms[code])
        try:
            (self._keyboard.press if down else self._keyboard.release)(key)
        except Exception as error:
            raise ActuationError(f"{code} could not be {'pressed' if down else 'released'}: {error}") from error

    def button(self, button: int, down: bool) -> None:
        """Press or release a mouse button."""
        try:
            (self._mouse.press if down else self._mouse.release)(self._buttons[button])
        except Exception as error:
            raise ActuationError(
                f"button {button} could not be {'pressed' if down else 'released'}: {error}"
            ) from error

    def move(self, dx: int, dy: int) -> None:
        """Move the mouse by pixels."""
        from Xlib import X
        from Xlib.ext import xtest

        limit = 0x7FFF
        xtest.fake_input(
            self._display,
            X.MotionNotify,
            detail=True,
            x=max(-limit, min(limit, dx)),
            y=max(-limit, min(limit, dy)),
        )

    def scroll(self, steps: int) -> None:
        """Turn the wheel."""
        self._mouse.scroll(0, steps)

    def flush(self) -> None:
        """Send what has been asked for, in its order, and return when the X server has taken it."""
        self._display.sync()
        if self._errors:
            errors, self._errors = self._errors, []
            raise ActuationError(f"the X server refused {len(errors)} events: {errors[0]}")

    def close(self) -> None:
        """Let go of the display."""
        # pynput's controllers close their displays when they are forgotten, and complain where the server has gone.
        del self._keyboard, self._mouse
        self._display.close()


class _Unhurried:
    """A connection as pynput gets to see it: it does not wait after each event, and closes nothing."""

    def __init__(self, display: Any) -> None:
        self._shared = display

    def __getattr__(self, name: str) -> Any:
        return getattr(self._shared, name)

    def sync(self) -> None:
        """Do nothing: whoever owns the connection waits once, after the last event."""

    def set_error_handler(self, _handler: Any) -> None:
        """Do nothing: the owner hears of errors."""

    def close(self) -> None:
        """Do nothing: the owner closes it."""


def _share(controller: Any, display: Any) -> None:
    """Give a controller of pynput's our connection: keys, buttons and motion then come in order, and with one wait.

    A pynput that keeps its connection elsewhere is left as it is.
    """
    own = getattr(controller, "_display", None)
    if own is not None:
        own.close()
        controller._display = _Unhurried(display)


def has_evdev_codes(display: Any) -> bool:
    """Return whether the X server's keycodes are Linux' own plus 8."""
    rules = display.screen().root.get_full_property(display.intern_atom("_XKB_RULES_NAMES"), 0)
    if rules is None:
        return False
    value = rules.value if isinstance(rules.value, bytes) else str(rules.value).encode()
    return value.split(b"\0")[0] == b"evdev"


def _keysyms(display: Any) -> dict[str, int]:
    """Return the keysym that reaches the key of each code, for those that the keyboard has."""
    from Xlib import XK

    found = {}
    evdev = has_evdev_codes(display)
    for code, key in KEYS.items():
        # At the key's own place where places are known, else where a US keyboard's letter is.
        keysym = display.keycode_to_keysym(key.evdev + XKB_OFFSET, 0) if evdev else XK.string_to_keysym(key.keysym)
        if keysym and display.keysym_to_keycode(keysym):
            found[code] = keysym
    return found


def _pynput_button(buttons: Any, number: int) -> Any:
    """Return pynput's button of X11's number."""
    return next(button for button in buttons if button.value == number)
