"""What watches a person's hands on this desktop."""

from __future__ import annotations

from playserve_client.capture.platforms import Platform
from playserve_client.play.human import OnEvent, Watcher

__all__ = ["open_watcher"]


def open_watcher(platform: Platform, on_event: OnEvent) -> Watcher:
    """Return what watches real devices on this desktop, not started."""
    if platform is Platform.X11:
        from playserve_client.play.human_x11 import X11Watcher

        return X11Watcher(on_event)
    if platform is Platform.WINDOWS:
        from playserve_client.play.human_hooks import Win32Watcher

        return Win32Watcher(on_event)
    from playserve_client.play.human_hooks import MacWatcher

    return MacWatcher(on_event)
