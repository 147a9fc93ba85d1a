"""Which desktop this is, and what looks at it."""

from __future__ import annotations

import enum
import os
import sys
from collections.abc import Mapping

from playserve_client.capture.base import Capture, WindowSystem
from playserve_client.capture.errors import DisplayMissingError, PlatformUnknownError, WaylandError

__all__ = ["Platform", "detect_platform", "open_capture", "open_windows"]


class Platform(enum.Enum):
    """A desktop that can be captured and played."""

    X11 = "X11"
    WINDOWS = "Windows"
    MACOS = "macOS"


def detect_platform(system: str = sys.platform, environ: Mapping[str, str] | None = None) -> Platform:
    """Return the desktop of this process.

    Args:
        system: As `sys.platform`.
        environ: Environment; None: this process'.

    Raises:
        WaylandError: A Wayland session without an X server.
        DisplayMissingError: Linux without a display.
        PlatformUnknownError: Another system.
    """
    environ = os.environ if environ is None else environ
    if system == "win32":
        return Platform.WINDOWS
    if system == "darwin":
        return Platform.MACOS
    if not system.startswith(("linux", "freebsd", "openbsd")):
        raise PlatformUnknownError(f"no way to capture and play on {system!r}; X11, Windows and macOS are known")
    if environ.get("DISPLAY"):
        return Platform.X11  # whether that is XWayland, the X server itself says
    if environ.get("WAYLAND_DISPLAY"):
        raise WaylandError(
            "Wayland lets no program see other programs' windows or press keys in them; log in to an X11 (Xorg) "
            "session, or start the game in an X server of its own and set DISPLAY to it"
        )
    raise DisplayMissingError("DISPLAY is not set: there is no screen to look at; start this where the game runs")


def open_windows(platform: Platform) -> WindowSystem:
    """Return what finds windows on this desktop."""
    if platform is Platform.X11:
        from playserve_client.capture.x11 import X11Windows

        return X11Windows()
    if platform is Platform.WINDOWS:
        from playserve_client.capture.windows import Win32Windows

        return Win32Windows()
    from playserve_client.capture.macos import QuartzWindows

    return QuartzWindows()


def open_capture() -> Capture:
    """Return what reads pixels on this desktop."""
    from playserve_client.capture.screen import ScreenCapture

    return ScreenCapture()
