"""Windows of macOS, through Quartz, which pyobjc brings (pynput needs it, too)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from playserve_client.capture.base import Region, Target, Window
from playserve_client.capture.errors import PermissionMissingError, WindowGoneError, WindowNotFoundError

__all__ = ["QuartzWindows"]

# A window's bounds take in its title bar, whose height macOS tells nobody but its owner: 28 points for a plain one.
_TITLE_BAR_POINTS = 28


class QuartzWindows:
    """See :class:`playserve_client.capture.base.WindowSystem`.

    macOS gives windows' titles only to programs that may record the screen. The window in front is the first of
    normal level in the order of the screen, and its program must be the active one.

    Args:
        quartz: The module Quartz, or a double of it; None: the system's.
        active_process: Gives the number of the process in front; None: the workspace's.
    """

    def __init__(self, quartz: Any = None, active_process: Any = None) -> None:
        if quartz is None:
            import importlib

            quartz = importlib.import_module("Quartz")
            workspace = importlib.import_module("AppKit").NSWorkspace.sharedWorkspace()

            def active_process() -> int:
                return int(workspace.frontmostApplication().processIdentifier())

            if not quartz.CGPreflightScreenCaptureAccess():
                raise PermissionMissingError(
                    "macOS does not let this program record the screen: System Settings, Privacy & Security, Screen & "
                    "System Audio Recording, allow your terminal, and start it again"
                )
        self._quartz, self._active_process = quartz, active_process

    def close(self) -> None:
        """Do nothing: there is nothing to let go of."""

    def windows(self) -> Sequence[Window]:
        """Return the visible windows that have a title."""
        return [
            Window(int(entry["kCGWindowNumber"]), str(entry.get("kCGWindowName") or ""), str(_owner(entry)))
            for entry in self._entries()
            if entry.get("kCGWindowLayer", 0) == 0 and entry.get("kCGWindowName")
        ]

    def window_at(self, region: Region) -> Window:
        """Return the frontmost window over the middle of `region`."""
        point = Region(region.x + region.width // 2, region.y + region.height // 2, 1, 1)
        for entry in self._entries():
            if entry.get("kCGWindowLayer", 0) == 0 and _bounds(entry).overlaps(point):
                return Window(int(entry["kCGWindowNumber"]), str(entry.get("kCGWindowName") or ""), str(_owner(entry)))
        raise WindowNotFoundError(f"no window lies at the middle of region {region}")

    def look(self, window: Window, region: Region | None = None) -> Target:
        """Return where a window is now, and whether it is in front."""
        above: list[Mapping[str, Any]] = []
        for entry in self._entries():
            if int(entry["kCGWindowNumber"]) == window.handle:
                break
            above.append(entry)
        else:
            if any(int(e["kCGWindowNumber"]) == window.handle for e in self._entries(on_screen=False)):
                return Target(region or Region(0, 0, 1, 1), False, "it is minimized or on another space")
            raise WindowGoneError(f"the window {window.title!r} has been closed")
        bounds = _bounds(entry)
        place = region or _inside(bounds, full_screen=bounds.y == 0)
        if not bounds.contains(place):
            return Target(place, False, f"region {place} is not wholly inside the window ({bounds})")
        if self._active_process() != entry["kCGWindowOwnerPID"]:
            return Target(place, False, "another window has the focus")
        for other in above:
            if other.get("kCGWindowAlpha", 1) and _bounds(other).overlaps(place):
                return Target(place, False, f"a window of {_owner(other)} lies over it")
        return Target(place, True)

    def glance(self, window: Window, region: Region | None = None) -> Target:
        """Look."""
        return self.look(window, region)

    def _entries(self, *, on_screen: bool = True) -> Sequence[Mapping[str, Any]]:
        """Return the windows, the frontmost first."""
        option = self._quartz.kCGWindowListOptionOnScreenOnly if on_screen else self._quartz.kCGWindowListOptionAll
        listed = self._quartz.CGWindowListCopyWindowInfo(option, self._quartz.kCGNullWindowID)
        return [entry for entry in listed or () if _area(entry)]


def _owner(entry: Mapping[str, Any]) -> object:
    return entry.get("kCGWindowOwnerName") or entry.get("kCGWindowOwnerPID")


def _area(entry: Mapping[str, Any]) -> float:
    bounds = entry["kCGWindowBounds"]
    return float(bounds["Width"]) * float(bounds["Height"])


def _bounds(entry: Mapping[str, Any]) -> Region:
    bounds = entry["kCGWindowBounds"]
    return Region(int(bounds["X"]), int(bounds["Y"]), max(1, int(bounds["Width"])), max(1, int(bounds["Height"])))


def _inside(bounds: Region, *, full_screen: bool) -> Region:
    bar = 0 if full_screen or bounds.height <= _TITLE_BAR_POINTS else _TITLE_BAR_POINTS
    return Region(bounds.x, bounds.y + bar, bounds.width, bounds.height - bar)
