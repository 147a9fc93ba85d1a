"""Watches real devices on X11 through XInput2's raw events.

pynput's `injected` flag is X's send_event, which XTEST does not set: to it our own presses look real. Raw events name
the device that they come from, and the X server gives XTEST devices of its own, by which ours are told apart; tested
with TigerVNC's Xvnc, whose viewer's input comes from devices named "TigerVNC ...". Programs that pass a person's input
on through XTEST (x11vnc does) are taken for programs.
"""

from __future__ import annotations

import os
import select
import struct
import threading
from dataclasses import dataclass, field
from typing import Any

from playserve_client.actuate.codes import BUTTONS, XKB_OFFSET, code_of_evdev, code_of_keysym
from playserve_client.actuate.x11 import has_evdev_codes
from playserve_client.capture.errors import DisplayMissingError
from playserve_client.capture.x11 import open_display
from playserve_client.play.human import ButtonEvent, HumanEvent, KeyEvent, MotionEvent, OnEvent, ScrollEvent

__all__ = ["Device", "RawEvent", "X11Watcher", "parse_raw"]

_KEY_PRESS, _KEY_RELEASE, _BUTTON_PRESS, _BUTTON_RELEASE, _MOTION = 13, 14, 15, 16, 17
_RAW = (_KEY_PRESS, _KEY_RELEASE, _BUTTON_PRESS, _BUTTON_RELEASE, _MOTION)
_GENERIC_EVENT = 35
# Raw events name their device, and reach whoever asks during another's grab, from this version on.
_XI_MAJOR, _XI_MINOR = 2, 2
_HEADER = struct.Struct("=HIIHHI4x")  # device, time, detail, source device, mask words, flags
_SCROLL_BUTTONS = {4: 1.0, 5: -1.0, 6: 0.0, 7: 0.0}
_W3C_BUTTONS = {theirs: ours for ours, theirs in BUTTONS.items()}
_XTEST_NAMES = (" XTEST pointer", " XTEST keyboard")
_XINPUT_SLAVES = (3, 4)  # XISlavePointer, XISlaveKeyboard
# These call their axes relative, and report positions on the screen all the same.
_POSITIONS = ("TigerVNC pointer", "Xephyr virtual mouse")


@dataclass(frozen=True, slots=True)
class RawEvent:
    """One raw event.

    Attributes:
        source: Device that it comes from.
        detail: Keycode or button.
        values: Value by axis, as the device has it: before any acceleration.
    """

    source: int
    detail: int
    values: dict[int, float]


@dataclass(slots=True)
class Device:
    """A device of the X server.

    Attributes:
        name: As the server has it.
        simulated: Whether programs drive it, through XTEST.
        absolute: Whether its axes are positions (tablets, remote desktops) and not motion.
        scale: Pixels of the screen for one unit of each axis.
        at: Its last position by axis.
    """

    name: str
    simulated: bool
    absolute: bool
    scale: tuple[float, float] = (1.0, 1.0)
    at: dict[int, float] = field(default_factory=dict)


def parse_raw(data: bytes) -> RawEvent:
    """Return the event of the bytes that follow a generic event's header."""
    _, _, detail, source, words, _ = _HEADER.unpack_from(data)
    mask = int.from_bytes(data[_HEADER.size : _HEADER.size + 4 * words], "little" if _little() else "big")
    axes = [axis for axis in range(32 * words) if mask >> axis & 1]
    first = _HEADER.size + 4 * words + 8 * len(axes)  # the accelerated values come first
    values = {}
    for i, axis in enumerate(axes):
        whole, part = struct.unpack_from("=iI", data, first + 8 * i)
        values[axis] = whole + part / 2**32
    return RawEvent(source, detail, values)


def _little() -> bool:
    return struct.pack("=H", 1) == b"\x01\x00"


class X11Watcher:
    """See :class:`playserve_client.play.human.Watcher`.

    Args:
        on_event: Takes events.
        display: Name of the X display; None: the one of DISPLAY.
    """

    def __init__(self, on_event: OnEvent, display: str | None = None) -> None:
        self._on_event = on_event
        self._display = open_display(display)
        extension = self._display.query_extension("XInputExtension")
        if not extension.present:
            raise DisplayMissingError("the X server has no XInput extension: a person could not take over")
        self._opcode = extension.major_opcode
        self._evdev = has_evdev_codes(self._display)
        self._devices: dict[int, Device] = {}
        self._thread = threading.Thread(target=self._run, name="playserve-human", daemon=True)
        self._wake_r, self._wake_w = os.pipe()
        self._select_events()

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """End; no event comes after it."""
        if self._wake_w < 0:
            return
        os.write(self._wake_w, b".")
        if self._thread.ident is not None:
            self._thread.join()
        os.close(self._wake_r)
        os.close(self._wake_w)
        self._wake_w = -1
        self._display.close()

    def ignored(self) -> str:
        """Return, for people, which devices are not a person's."""
        return ", ".join(device.name for device in self._devices.values() if device.simulated)

    def real(self) -> list[str]:
        """Return the names of the devices that are a person's."""
        return [device.name for device in self._devices.values() if not device.simulated]

    def _select_events(self) -> None:
        from Xlib.ext import xinput

        # python-xlib says that it speaks 2.0, in which raw events stay away while a game holds the pointer.
        answer = xinput.XIQueryVersion(
            display=self._display.display, opcode=self._opcode, major_version=_XI_MAJOR, minor_version=_XI_MINOR
        )
        if (answer.major_version, answer.minor_version) < (2, 1):
            raise DisplayMissingError("the X server's XInput is older than 2.1: a person's input cannot be told apart")
        mask = sum(1 << kind for kind in _RAW)
        self._display.screen().root.xinput_select_events([(xinput.AllMasterDevices, mask)])
        self._list_devices()
        self._display.sync()

    def _list_devices(self) -> None:
        from Xlib.ext import xinput

        self._devices = {}
        for found in self._display.xinput_query_device(xinput.AllDevices).devices:
            name = found.name if isinstance(found.name, str) else found.name.decode("utf-8", "replace")
            if found.use in _XINPUT_SLAVES:
                self._devices[found.deviceid] = self._device(name, found.classes)

    def _device(self, name: str, classes: Any) -> Device:
        from Xlib.ext import xinput

        simulated = name.endswith(_XTEST_NAMES)
        screen = self._display.screen()
        if name in _POSITIONS:
            pointer = screen.root.query_pointer()
            return Device(name, simulated, True, at={0: pointer.root_x, 1: pointer.root_y})
        axes = {kind.number: kind for kind in classes if kind.type == xinput.ValuatorClass and kind.number in (0, 1)}
        if not any(axis.mode for axis in axes.values()):
            return Device(name, simulated, False)
        scale = [1.0, 1.0]
        for number, pixels in ((0, screen.width_in_pixels), (1, screen.height_in_pixels)):
            if number in axes and axes[number].max > axes[number].min:
                scale[number] = pixels / (axes[number].max - axes[number].min + 1)
        return Device(name, simulated, True, (scale[0], scale[1]), {n: axis.value for n, axis in axes.items()})

    def _run(self) -> None:
        while True:
            while self._display.pending_events():
                self._take(self._display.next_event())
            ready, _, _ = select.select([self._display.fileno(), self._wake_r], [], [])
            if self._wake_r in ready:
                return

    def _take(self, event: Any) -> None:
        kind = getattr(event, "evtype", None)
        if event.type != _GENERIC_EVENT or kind not in _RAW or not isinstance(event.data, bytes):
            return
        raw = parse_raw(event.data)
        if raw.source not in self._devices:
            self._list_devices()  # it was plugged in meanwhile
        device = self._devices.get(raw.source)
        if device is None or device.simulated:
            return
        for found in self._meaning(kind, raw, device):
            self._on_event(found)

    def _meaning(self, kind: int, raw: RawEvent, device: Device) -> list[HumanEvent]:
        if kind in (_KEY_PRESS, _KEY_RELEASE):
            return [KeyEvent(self._code(raw.detail) or "", kind == _KEY_PRESS)]
        if kind == _MOTION:
            return self._motion(raw, device)
        if raw.detail in _SCROLL_BUTTONS:
            return [ScrollEvent(_SCROLL_BUTTONS[raw.detail])] if kind == _BUTTON_PRESS else []
        if raw.detail in _W3C_BUTTONS:
            return [ButtonEvent(_W3C_BUTTONS[raw.detail], kind == _BUTTON_PRESS)]
        return []

    def _motion(self, raw: RawEvent, device: Device) -> list[HumanEvent]:
        moved = [0.0, 0.0]
        for axis in (0, 1):
            value = raw.values.get(axis)
            if value is None:
                continue
            moved[axis] = (value - device.at.get(axis, value)) * device.scale[axis] if device.absolute else value
            device.at[axis] = value
        return [MotionEvent(*moved)] if any(moved) else []

    def _code(self, keycode: int) -> str | None:
        if self._evdev:
            return code_of_evdev(keycode - XKB_OFFSET)
        from Xlib import XK

        name = XK.keysym_to_string(self._display.keycode_to_keysym(keycode, 0))
        return code_of_keysym(name) if name else None
