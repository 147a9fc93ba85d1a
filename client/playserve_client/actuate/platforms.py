"""Which backend presses keys on this desktop."""

from __future__ import annotations

from playserve_client.actuate.base import Backend
from playserve_client.capture.platforms import Platform

__all__ = ["open_backend"]


def open_backend(platform: Platform) -> Backend:
    """Return what presses keys on this desktop."""
    if platform is Platform.X11:
        from playserve_client.actuate.x11 import X11Backend

        return X11Backend()
    if platform is Platform.WINDOWS:
        from playserve_client.actuate.windows import SendInputBackend

        return SendInputBackend()
    from playserve_client.actuate.macos import MacBackend

    return MacBackend()
