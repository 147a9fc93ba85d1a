"""A window in which a world is played: its frames, the keyboard and the mouse, and a line of numbers. Needs pygame.

Shape legend: H height, W width.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from playserve.errors import UnsupportedError
from playserve_client.actuate.codes import KEYS
from playserve_client.worlds.bindings import Held

__all__ = ["Wishes", "WorldWindow", "load_pygame"]

_BAR_PX = 28
_SMALLEST_PX = 512  # of the longer side, when the window opens
_GREY, _WHITE, _BLACK = (150, 150, 150), (235, 235, 235), (12, 12, 12)
#: W3C buttons by SDL's numbers.
_BUTTONS: Mapping[int, int] = {1: 0, 2: 1, 3: 2, 6: 3, 7: 4}
#: Where SDL's name of a place on the keyboard is not that of W3C.
_OTHER_NAMES: Mapping[str, str] = {
    "Escape": "ESCAPE", "Minus": "MINUS", "Equal": "EQUALS", "Backspace": "BACKSPACE", "Tab": "TAB",
    "BracketLeft": "LEFTBRACKET", "BracketRight": "RIGHTBRACKET", "Enter": "RETURN", "ControlLeft": "LCTRL",
    "Semicolon": "SEMICOLON", "Quote": "APOSTROPHE", "Backquote": "GRAVE", "ShiftLeft": "LSHIFT",
    "Backslash": "BACKSLASH", "Comma": "COMMA", "Period": "PERIOD", "Slash": "SLASH", "ShiftRight": "RSHIFT",
    "AltLeft": "LALT", "Space": "SPACE", "CapsLock": "CAPSLOCK", "ControlRight": "RCTRL", "AltRight": "RALT",
    "ArrowUp": "UP", "ArrowDown": "DOWN", "ArrowLeft": "LEFT", "ArrowRight": "RIGHT", "Home": "HOME", "End": "END",
    "PageUp": "PAGEUP", "PageDown": "PAGEDOWN", "Insert": "INSERT", "Delete": "DELETE", "MetaLeft": "LGUI",
    "MetaRight": "RGUI", "NumpadEnter": "KP_ENTER", "NumpadAdd": "KP_PLUS", "NumpadSubtract": "KP_MINUS",
    "NumpadMultiply": "KP_MULTIPLY", "NumpadDivide": "KP_DIVIDE", "NumpadDecimal": "KP_PERIOD",
}  # fmt: skip


def load_pygame() -> Any:
    """Return the module pygame, which does not advertise itself on stdout.

    Raises:
        ModuleNotFoundError: It is not installed.
    """
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    import pygame

    return pygame


@dataclass(slots=True)
class Wishes:
    """What a person wants of the window itself.

    Attributes:
        quit: To end.
        begin: Another world.
        pause: To stop or to go on.
    """

    quit: bool = False
    begin: bool = False
    pause: bool = False


class WorldWindow:
    """Opens with the first call of its constructor; a context manager. One thread.

    F2 begins another world, F3 stops and goes on, F12 or closing the window ends. A click holds the mouse where its
    motion means something; Escape lets it go.

    Args:
        title: Of the window.
        size: Height and width of the frames.
        holds_mouse: Whether motion means something.

    Raises:
        UnsupportedError: There is no display.
    """

    def __init__(self, title: str, size: tuple[int, int], *, holds_mouse: bool) -> None:
        self._pygame = pygame = load_pygame()
        try:
            pygame.display.init()
            scale = max(1, -(-_SMALLEST_PX // max(size)))
            self._screen = pygame.display.set_mode((size[1] * scale, size[0] * scale + _BAR_PX), pygame.RESIZABLE)
        except pygame.error as error:
            raise UnsupportedError(f"no window can be opened here ({error}); --film needs none") from error
        pygame.display.set_caption(title)
        pygame.font.init()
        self._font = pygame.font.Font(None, 20)
        self._codes = _scancodes(pygame)
        self._holds_mouse, self._holding = holds_mouse, False
        self._frame: Any = None
        self.held = Held()

    def __enter__(self) -> WorldWindow:
        return self

    def __exit__(self, *_: object) -> None:
        self._pygame.display.quit()
        self._pygame.font.quit()

    def read(self) -> Wishes:
        """Take what was pressed and moved into `held`; return what is wanted of the window."""
        pygame, wishes = self._pygame, Wishes()
        for event in pygame.event.get():
            if event.type == pygame.QUIT:
                wishes.quit = True
            elif event.type in (pygame.KEYDOWN, pygame.KEYUP):
                self._key(event, wishes)
            elif event.type in (pygame.MOUSEBUTTONDOWN, pygame.MOUSEBUTTONUP):
                self._button(event)
            elif event.type == pygame.MOUSEMOTION and self._holding:
                self.held.moved(float(event.rel[0]), float(event.rel[1]))
            elif event.type == pygame.MOUSEWHEEL:
                self.held.moved(scroll=float(event.y))
            elif event.type == pygame.WINDOWFOCUSLOST:
                self._hold(on=False)
                self.held.release()
        return wishes

    def draw(self, frame_HW3: NDArray[np.uint8] | None, text: str) -> None:
        """Show a frame (None: the one of before) and a line of text."""
        pygame, screen = self._pygame, self._screen
        if frame_HW3 is not None:
            self._frame = pygame.surfarray.make_surface(frame_HW3.swapaxes(0, 1))
        width, height = screen.get_size()
        screen.fill(_BLACK)
        if self._frame is not None:
            room = max(1, height - _BAR_PX)
            scale = min(width / self._frame.get_width(), room / self._frame.get_height())
            size = max(1, int(self._frame.get_width() * scale)), max(1, int(self._frame.get_height() * scale))
            scaled = pygame.transform.scale(self._frame, size)
            screen.blit(scaled, ((width - size[0]) // 2, (room - size[1]) // 2))
        line = self._font.render(text, True, _WHITE if self._holding else _GREY)
        screen.blit(line, (8, height - _BAR_PX + (_BAR_PX - line.get_height()) // 2))
        pygame.display.flip()

    def _key(self, event: Any, wishes: Wishes) -> None:
        pygame, down = self._pygame, event.type == self._pygame.KEYDOWN
        if down and event.key == pygame.K_ESCAPE and self._holding:
            self._hold(on=False)
        elif event.key in (pygame.K_F2, pygame.K_F3, pygame.K_F12):
            wishes.begin |= down and event.key == pygame.K_F2
            wishes.pause |= down and event.key == pygame.K_F3
            wishes.quit |= down and event.key == pygame.K_F12
        elif (code := self._codes.get(event.scancode)) is not None:
            self.held.key(code, down=down)
            if down:
                self.held.type(code, _with_meta(event.unicode, meta=bool(event.mod & pygame.KMOD_ALT)))

    def _button(self, event: Any) -> None:
        down = event.type == self._pygame.MOUSEBUTTONDOWN
        if down and self._holds_mouse and not self._holding:
            self._hold(on=True)  # this click is for the window
        elif event.button in _BUTTONS:
            self.held.button(_BUTTONS[event.button], down=down)

    def _hold(self, *, on: bool) -> None:
        if on != self._holding:
            self._holding = on
            self._pygame.mouse.set_visible(not on)
            self._pygame.event.set_grab(on)  # hidden and held, the mouse is told by its motion alone


def _with_meta(text: str, *, meta: bool) -> str:
    """Return the character as a terminal sends it with Alt held: 128 above its own."""
    return chr(ord(text) + 128) if meta and len(text) == 1 and ord(text) < 128 else text


def _scancodes(pygame: Any) -> dict[int, str]:
    """Return W3C codes by SDL's scan codes: both say a key's place, whatever the layout."""
    found = {}
    for code in KEYS:
        if code.startswith(("Key", "Digit")):
            name = code[-1]
        elif code.startswith("Numpad") and code[-1].isdigit():
            name = f"KP_{code[-1]}"
        else:
            name = _OTHER_NAMES.get(code, code)  # F1 to F24
        number = getattr(pygame, f"KSCAN_{name}", None)
        if number is not None:
            found[int(number)] = code
    return found
