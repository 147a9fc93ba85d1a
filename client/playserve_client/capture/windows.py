"""Windows of Microsoft Windows, through user32."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

from playserve_client.capture.base import Region, Target, Window
from playserve_client.capture.errors import WindowGoneError, WindowNotFoundError

__all__ = ["Win32Windows"]

_TITLE_CHARS = 512
_GA_ROOT = 2
_GW_HWNDPREV = 3  # the next window above
_DWMWA_CLOAKED = 14
_GWL_EXSTYLE = -20
_WS_EX_TRANSPARENT = 0x20


class _Rect(ctypes.Structure):
    _fields_ = (
        ("left", ctypes.c_long), ("top", ctypes.c_long), ("right", ctypes.c_long), ("bottom", ctypes.c_long),
    )  # fmt: skip


class _Point(ctypes.Structure):
    _fields_ = (("x", ctypes.c_long), ("y", ctypes.c_long))


class Win32Windows:
    """See :class:`playserve_client.capture.base.WindowSystem`.

    Args:
        user32: The system's library, or a double of it; None: the system's.
        dwmapi: The same for the desktop's compositor, which knows windows that exist and are not shown.
    """

    def __init__(self, user32: Any = None, dwmapi: Any = None) -> None:
        if user32 is None:
            user32 = ctypes.WinDLL("user32", use_last_error=True)  # type: ignore[attr-defined,unused-ignore]
            dwmapi = ctypes.WinDLL("dwmapi")  # type: ignore[attr-defined,unused-ignore]
            # Rectangles in physical pixels, as the capture has them.
            user32.SetProcessDPIAware()
            for name in ("GetForegroundWindow", "GetAncestor", "GetWindow", "WindowFromPoint"):
                getattr(user32, name).restype = ctypes.c_void_p
            user32.WindowFromPoint.argtypes = [_Point]
        self._user32, self._dwmapi = user32, dwmapi

    def close(self) -> None:
        """Do nothing: there is nothing to let go of."""

    def windows(self) -> Sequence[Window]:
        """Return the visible windows that have a title."""
        found: list[Window] = []

        def take(handle: int | None, _: object) -> int:
            if handle and self._shown(handle) and (title := self._title(handle)):
                found.append(Window(handle, title, str(self._process(handle))))
            return 1

        prototype = getattr(ctypes, "WINFUNCTYPE", ctypes.CFUNCTYPE)
        self._user32.EnumWindows(prototype(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(take), None)
        return found

    def window_at(self, region: Region) -> Window:
        """Return the frontmost window over the middle of `region`."""
        point = _Point(region.x + region.width // 2, region.y + region.height // 2)
        handle = self._user32.WindowFromPoint(point)
        root = self._user32.GetAncestor(ctypes.c_void_p(handle), _GA_ROOT) if handle else None
        if not root:
            raise WindowNotFoundError(f"no window lies at the middle of region {region}")
        return Window(int(root), self._title(root), str(self._process(root)))

    def look(self, window: Window, region: Region | None = None) -> Target:
        """Return where a window is now, and whether it is in front."""
        handle = ctypes.c_void_p(window.handle)
        if not self._user32.IsWindow(handle):
            raise WindowGoneError(f"the window {window.title!r} has been closed")
        if self._user32.IsIconic(handle) or not self._user32.IsWindowVisible(handle):
            return Target(region or Region(0, 0, 1, 1), False, "it is minimized or hidden")
        rect, origin = _Rect(), _Point()
        self._user32.GetClientRect(handle, ctypes.byref(rect))
        self._user32.ClientToScreen(handle, ctypes.byref(origin))
        inside = Region(origin.x, origin.y, max(1, rect.right), max(1, rect.bottom))
        place = region or inside
        if not inside.contains(place):
            return Target(place, False, f"region {place} is not wholly inside the window ({inside})")
        if self._user32.GetForegroundWindow() != window.handle:
            return Target(place, False, "another window has the focus")
        over = self._over(window.handle, place)
        return Target(place, over is None, "" if over is None else f"the window {over!r} lies over it")

    def glance(self, window: Window, region: Region | None = None) -> Target:
        """Look."""
        return self.look(window, region)

    def _over(self, handle: int, place: Region) -> str | None:
        above = self._user32.GetWindow(ctypes.c_void_p(handle), _GW_HWNDPREV)
        while above:
            rect = _Rect()
            # Overlays that let clicks through (frame counters, recorders) are part of the picture that the user sees.
            style = self._user32.GetWindowLongW(ctypes.c_void_p(above), _GWL_EXSTYLE)
            if (
                self._shown(above)
                and not style & _WS_EX_TRANSPARENT
                and self._user32.GetWindowRect(ctypes.c_void_p(above), ctypes.byref(rect))
                and rect.right > rect.left
                and rect.bottom > rect.top
                and Region(rect.left, rect.top, rect.right - rect.left, rect.bottom - rect.top).overlaps(place)
            ):
                return self._title(above) or hex(above)
            above = self._user32.GetWindow(ctypes.c_void_p(above), _GW_HWNDPREV)
        return None

    def _shown(self, handle: int) -> bool:
        if not self._user32.IsWindowVisible(ctypes.c_void_p(handle)):
            return False
        cloaked = ctypes.c_int(0)
        if self._dwmapi is not None:
            self._dwmapi.DwmGetWindowAttribute(
                ctypes.c_void_p(handle), _DWMWA_CLOAKED, ctypes.byref(cloaked), ctypes.sizeof(cloaked)
            )
        return not cloaked.value

    def _title(self, handle: int) -> str:
        text = ctypes.create_unicode_buffer(_TITLE_CHARS)
        self._user32.GetWindowTextW(ctypes.c_void_p(handle), text, _TITLE_CHARS)
        return text.value

    def _process(self, handle: int) -> int:
        number = ctypes.c_ulong(0)
        self._user32.GetWindowThreadProcessId(ctypes.c_void_p(handle), ctypes.byref(number))
        return int(number.value)
