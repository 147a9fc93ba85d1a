"""Presses keys and moves the mouse on a desktop: X11, Windows, macOS, or in words only."""

from playserve_client.actuate.actuator import Actuator, Witness
from playserve_client.actuate.base import ActuationError, Backend, DryRunBackend
from playserve_client.actuate.codes import BUTTONS, KEYS, Key
from playserve_client.actuate.platforms import open_backend

__all__ = [
    "BUTTONS", "KEYS", "ActuationError", "Actuator", "Backend", "DryRunBackend", "Key", "Witness", "open_backend",
]  # fmt: skip
