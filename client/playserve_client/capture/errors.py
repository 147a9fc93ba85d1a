"""What can be wrong with a desktop, by name; each message says what to do about it."""

from __future__ import annotations

from playserve.errors import (
    AccessError,
    BadSettingError,
    NotFoundError,
    PlayserveError,
    ServerFault,
    StateError,
    UnsupportedError,
)

__all__ = [
    "CaptureFailedError", "DesktopError", "DisplayMissingError", "PermissionMissingError", "PlatformUnknownError",
    "RegionError", "WaylandError", "WindowAmbiguousError", "WindowGoneError", "WindowNotFoundError",
]  # fmt: skip


class DesktopError(PlayserveError):
    """Base of what a desktop does not allow or does not have."""


class DisplayMissingError(DesktopError, StateError):
    """There is no screen to look at."""


class WaylandError(DesktopError, UnsupportedError):
    """Wayland lets no program see another's window or press keys in it."""


class PlatformUnknownError(DesktopError, UnsupportedError):
    """An operating system that nobody has taught us."""


class PermissionMissingError(DesktopError, AccessError):
    """The system wants its user to allow this program first."""


class WindowNotFoundError(DesktopError, NotFoundError):
    """No visible window has such a title."""


class WindowAmbiguousError(DesktopError, BadSettingError):
    """Several windows fit a title."""


class WindowGoneError(DesktopError, StateError):
    """The window was there and is no more."""


class RegionError(DesktopError, BadSettingError):
    """A rectangle that is none, or not on the screen."""


class CaptureFailedError(DesktopError, ServerFault):
    """The screen could not be read."""
