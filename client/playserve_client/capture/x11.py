"""Windows of an X server: found by title, followed as they move, and watched for the focus and for what covers them."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from playserve_client.capture.base import Region, Target, Window
from playserve_client.capture.errors import DisplayMissingError, WaylandError, WindowGoneError, WindowNotFoundError

__all__ = ["X11Windows", "open_display"]

#: How deep below the root a window manager may put the game's own window.
_DEPTH = 4
_XWAYLAND_ADVICE = (
    "this X server is XWayland: what it shows of other programs is black, and keys reach X programs only. Log in to an "
    "X11 (Xorg) session, or start the game in an X server of its own (Xephyr, TigerVNC's Xvnc) and set DISPLAY to it"
)


def open_display(name: str | None = None) -> Any:
    """Return a connection to an X server that lets itself be watched.

    Raises:
        DisplayMissingError: There is none.
        WaylandError: It is XWayland.
    """
    from Xlib import display as xdisplay
    from Xlib import error as xerror

    try:
        display = xdisplay.Display(name)
    except (xerror.DisplayError, OSError) as error:
        shown = name or os.environ.get("DISPLAY", "")
        raise DisplayMissingError(f"no X server answers at {shown!r}: {str(error).splitlines()[0]}") from error
    if _is_xwayland(display):
        display.close()
        raise WaylandError(_XWAYLAND_ADVICE)
    # Windows come and go while they are looked at; what matters is seen in the answers.
    display.set_error_handler(lambda *_: None)
    return display


def _is_xwayland(display: Any) -> bool:
    """Return whether an X server is Wayland's: it says so since version 22, and its outputs are named so before."""
    from Xlib import error as xerror

    if "XWAYLAND" in display.list_extensions():
        return True
    if not os.environ.get("WAYLAND_DISPLAY"):
        return False
    try:
        found = display.screen().root.xrandr_get_screen_resources()
        names = [display.xrandr_get_output_info(output, found.config_timestamp).name for output in found.outputs]
    except (AttributeError, xerror.XError):  # it has no RandR
        return False
    return any(str(name).startswith("XWAYLAND") for name in names)


class X11Windows:
    """See :class:`playserve_client.capture.base.WindowSystem`. Thread-safe.

    Where a window is and what lies over it is asked for again only after the server has told of a change; who has the
    focus is asked for at each look. A glance asks nothing where the server has told of no change.

    Args:
        display: Name of the X display; None: the one of DISPLAY.
    """

    def __init__(self, display: str | None = None) -> None:
        from Xlib import X

        self._display = open_display(display)
        self._lock = threading.Lock()
        self._root = self._display.screen().root
        self._root.change_attributes(event_mask=X.SubstructureNotifyMask | X.PropertyChangeMask)
        self._display.sync()
        self._watched: set[int] = set()
        self._focus_follows = False
        self._placed: tuple[int, Region | None, int, Target] | None = None
        self._frames: dict[int, int] = {}  # of windows that had the focus, until something changes
        self._seen: Target | None = None  # by the last look, where the server tells of every change to it

    def close(self) -> None:
        """Let go of the display."""
        with self._lock:
            self._display.close()

    def windows(self) -> Sequence[Window]:
        """Return the visible windows that have a title."""
        with self._lock:
            return list(self._titled())

    def window_at(self, region: Region) -> Window:
        """Return the frontmost window over the middle of `region`."""
        x, y = region.x + region.width // 2, region.y + region.height // 2
        point = Region(x, y, 1, 1)
        with self._lock:
            known = {self._frame(window.handle): window for window in self._titled()}
            for child in reversed(self._root.query_tree().children):
                place = self._shown(child)
                if place is not None and place.overlaps(point):
                    return known.get(child.id) or Window(child.id, "", "")
        raise WindowNotFoundError(f"no window lies at {x},{y}, the middle of region {region}")

    def look(self, window: Window, region: Region | None = None) -> Target:
        """Return where a window is now, and whether it is in front."""
        with self._lock:
            self._drain()
            return self._look(window, region)

    def glance(self, window: Window, region: Region | None = None) -> Target:
        """Return what the last :meth:`look` did, unless the server has told of a change since."""
        with self._lock:
            changed = self._drain() or self._seen is None or self._placed is None
            if changed or (self._placed is not None and self._placed[:2] != (window.handle, region)):
                return self._look(window, region)
            assert self._seen is not None  # noqa: S101 - else it has changed
            return self._seen

    # ---- with the lock held

    def _look(self, window: Window, region: Region | None) -> Target:
        from Xlib import error as xerror

        self._seen = None
        try:
            self._watch(window.handle)
            if self._placed is None or self._placed[:2] != (window.handle, region):
                frame = self._frame(window.handle)
                self._watch(frame)
                self._placed = (window.handle, region, frame, self._place(window, region))
            _, _, frame, target = self._placed
            if target.in_front and not self._has_focus(frame):
                return Target(target.region, False, "another window has the focus")
        except xerror.XError as error:
            self._placed = None
            raise WindowGoneError(f"the window {window.title!r} has been closed") from error
        # Where keys go to the window under the pointer, the server tells nobody when it is another.
        self._seen = target if target.in_front and not self._focus_follows else None
        return target

    def _watch(self, handle: int) -> None:
        """Hear of a window's own changes too: under a window manager it is no child of the root."""
        from Xlib import X

        if handle not in self._watched:
            window = self._display.create_resource_object("window", handle)
            window.change_attributes(event_mask=X.StructureNotifyMask | X.FocusChangeMask)
            self._watched.add(handle)

    def _drain(self) -> bool:
        """Take what the server has told; return whether it has told anything."""
        changed = False
        while self._display.pending_events():
            self._display.next_event()
            changed = True
        if changed:
            self._frames.clear()
            self._placed = self._seen = None
        return changed

    def _place(self, window: Window, region: Region | None) -> Target:
        """Return where the window is and whether it could be in front, the focus left out."""
        from Xlib import X

        handle = self._display.create_resource_object("window", window.handle)
        geometry, origin = handle.get_geometry(), self._root.translate_coords(handle, 0, 0)
        inside = Region(origin.x, origin.y, geometry.width, geometry.height)
        place = region or inside
        if handle.get_attributes().map_state != X.IsViewable:
            return Target(place, False, "it is minimized or on another desktop")
        screen = self._root.get_geometry()
        if not Region(0, 0, screen.width, screen.height).contains(place):
            return Target(place, False, f"it is not wholly on the screen ({place})")
        if not inside.contains(place):
            return Target(place, False, f"region {place} is not wholly inside the window ({inside})")
        over = self._over(self._frame(window.handle), place)
        return Target(place, over is None, "" if over is None else f"{over} lies over it")

    def _over(self, frame: int, place: Region) -> str | None:
        """Return the name of a window that hides part of `place`."""
        above = False
        for child in self._root.query_tree().children:  # from the lowest to the highest
            if above:
                shown = self._shown(child)
                if shown is not None and shown.overlaps(place):
                    return f"the window {self._title(child) or hex(child.id)!r}"
            above = above or child.id == frame
        return None

    def _shown(self, window: Any) -> Region | None:
        """Return where a window has pixels on the screen, its border included."""
        from Xlib import X
        from Xlib import error as xerror

        try:
            attributes = window.get_attributes()
            if attributes.map_state != X.IsViewable or attributes.win_class != X.InputOutput:
                return None
            geometry = window.get_geometry()
        except xerror.XError:
            return None
        border = 2 * geometry.border_width
        return Region(geometry.x, geometry.y, geometry.width + border, geometry.height + border)

    def _has_focus(self, frame: int) -> bool:
        from Xlib import X
        from Xlib import error as xerror

        focus = self._display.get_input_focus().focus
        self._focus_follows = focus == X.PointerRoot
        if self._focus_follows:  # without a window manager keys go to where the pointer is
            pointed = self._root.query_pointer().child
            return bool(pointed != X.NONE and pointed.id == frame)
        try:
            if focus != X.NONE and focus.id not in self._frames:
                self._frames[focus.id] = self._frame(focus.id)
            return focus != X.NONE and self._frames[focus.id] == frame
        except xerror.XError:  # the window with the focus was closed just now
            return False

    def _frame(self, handle: int) -> int:
        """Return the child of the root that a window lies in: its frame, or itself."""
        window = self._display.create_resource_object("window", handle)
        while True:
            parent = window.query_tree().parent
            # The parent of the root is none.
            if not hasattr(parent, "id") or parent.id == self._root.id:
                return int(window.id)
            window = parent

    def _titled(self) -> Iterator[Window]:
        from Xlib import X
        from Xlib import error as xerror

        for handle in self._candidates():
            window = self._display.create_resource_object("window", handle)
            try:
                title = self._title(window)
                if title and window.get_attributes().map_state == X.IsViewable:
                    names = window.get_wm_class()
                    yield Window(handle, title, names[1] if names else "")
            except xerror.XError:
                continue

    def _candidates(self) -> list[int]:
        """Return the windows of programs: what the window manager lists, or all that there are without one."""
        listed = self._root.get_full_property(self._display.intern_atom("_NET_CLIENT_LIST"), 0)
        if listed is not None:
            return [int(handle) for handle in listed.value]
        found: list[int] = []
        level = [self._root]
        for _ in range(_DEPTH):
            level = [child for window in level for child in self._children(window)]
            found += [child.id for child in level]
        return found

    def _children(self, window: Any) -> list[Any]:
        from Xlib import error as xerror

        try:
            return list(window.query_tree().children)
        except xerror.XError:
            return []

    def _title(self, window: Any) -> str:
        """Return the title, by the newer property or the older; empty where it has none."""
        from Xlib import error as xerror

        try:
            utf8 = window.get_full_property(self._display.intern_atom("_NET_WM_NAME"), 0)
            if utf8 is not None and utf8.value:
                value = utf8.value
                return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
            name = window.get_wm_name()
        except xerror.XError:
            return ""
        return name.decode("latin-1") if isinstance(name, bytes) else name or ""
