"""Captures with mss: X11, Windows, macOS."""

from __future__ import annotations

import sys
from typing import Any

from playserve_client.capture.base import Picture, Region
from playserve_client.capture.errors import CaptureFailedError, DisplayMissingError, RegionError

__all__ = ["ScreenCapture"]

# mss reads X servers through XCB and shared memory; some servers' visuals are beyond it (TigerVNC's), and plain Xlib
# reads them.
_X11_BACKENDS = ("default", "xlib")


class ScreenCapture:
    """Reads the screen; see :class:`playserve_client.capture.base.Capture`.

    Args:
        display: X display, where that is not the one of DISPLAY.
    """

    def __init__(self, display: str | None = None) -> None:
        import mss

        self._mss: Any = _opened(mss, display)
        screen = self._mss.monitors[0]
        self._screen = Region(screen["left"], screen["top"], screen["width"], screen["height"])

    @property
    def screen(self) -> Region:
        """Return the whole desktop, all monitors together, as it was when this was made."""
        return self._screen

    def grab(self, region: Region) -> Picture:
        """Return what is on the screen now, in physical pixels."""
        if not self._screen.contains(region):
            raise RegionError(f"region {region} is not wholly on the screen, which is {self._screen}; move the window")
        try:
            shot = self._mss.grab({"left": region.x, "top": region.y, "width": region.width, "height": region.height})
        except Exception as error:  # mss has an error of its own, and lets its libraries' through
            raise CaptureFailedError(f"the screen could not be read at {region}: {error}") from error
        return Picture(shot.raw, shot.height, shot.width)

    def close(self) -> None:
        """Let go of the display."""
        self._mss.close()


def _opened(mss: Any, display: str | None) -> Any:
    if not sys.platform.startswith("linux"):
        return mss.MSS()
    failures = []
    for backend in _X11_BACKENDS:
        try:
            opened = mss.MSS(backend=backend, display=display)
            first = opened.monitors[0]
            opened.grab({"left": first["left"], "top": first["top"], "width": 1, "height": 1})
        except Exception as error:  # noqa: BLE001 - the next backend may do
            failures.append(f"{backend}: {error}")
        else:
            return opened
    raise DisplayMissingError(f"the screen cannot be read: {'; '.join(failures)}")
