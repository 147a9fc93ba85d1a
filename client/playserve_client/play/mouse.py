"""Whether the desktop accelerates the mouse: a person's motion then means something else than a policy's."""

from __future__ import annotations

import ctypes
import subprocess
from typing import Any

from playserve_client.capture import Platform

__all__ = ["acceleration"]

_SPI_GETMOUSE = 3
_ANY_TYPE = 0


def acceleration(platform: Platform) -> tuple[bool, str]:
    """Return whether the mouse moves the pointer as far as it was moved, and what says so."""
    if platform is Platform.X11:
        return _x11()
    if platform is Platform.WINDOWS:
        return _windows()
    return _macos()


def _windows(user32: Any = None) -> tuple[bool, str]:
    if user32 is None:
        user32 = ctypes.WinDLL("user32")  # type: ignore[attr-defined,unused-ignore]
    settings = (ctypes.c_int * 3)()
    user32.SystemParametersInfoW(_SPI_GETMOUSE, 0, settings, 0)
    on = settings[2] != 0
    return not on, f"'Enhance pointer precision' is {'on' if on else 'off'}"


def _macos() -> tuple[bool, str]:
    done = subprocess.run(
        ["defaults", "read", "-g", "com.apple.mouse.linear"], capture_output=True, text=True, check=False
    )
    off = done.returncode == 0 and done.stdout.strip() == "1"
    return off, f"pointer acceleration is {'off' if off else 'on'} (System Settings, Mouse, Advanced)"


def _x11() -> tuple[bool, str]:
    """Ask each real pointer's driver, and the server for pointers without one of the known properties."""
    from Xlib.ext import xinput

    from playserve_client.capture.x11 import open_display

    display = open_display()
    try:
        control = display.get_pointer_control()
        core_off = control.accel_num == control.accel_denom
        accelerated = []
        for device in display.xinput_query_device(xinput.AllDevices).devices:
            name = device.name if isinstance(device.name, str) else device.name.decode("utf-8", "replace")
            if device.use == xinput.SlavePointer and not name.endswith(" XTEST pointer"):
                off = _flat(display, device.deviceid)
                if off is False or (off is None and not core_off):
                    accelerated.append(name)
    finally:
        display.close()
    ratio = f"{control.accel_num}/{control.accel_denom} above {control.threshold}"
    if accelerated:
        return False, f"on for {', '.join(accelerated)} (server: {ratio})"
    return True, f"off (server: {ratio})"


def _flat(display: Any, device: int) -> bool | None:
    """Return whether a device's profile is flat: libinput's, or the server's own; None: it has neither."""
    libinput = display.xinput_get_device_property(
        device, display.intern_atom("libinput Accel Profile Enabled"), _ANY_TYPE, 0, 4
    )
    values = list(getattr(libinput, "value", None) or [])
    if len(values) >= 2:
        return bool(values[1])
    own = display.xinput_get_device_property(device, display.intern_atom("Device Accel Profile"), _ANY_TYPE, 0, 4)
    values = list(getattr(own, "value", None) or [])
    return (values[0] & 0xFFFFFFFF) == 0xFFFFFFFF if values else None
