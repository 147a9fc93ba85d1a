"""Looks at a game on a desktop: windows, the focus, pixels. X11, Windows and macOS."""

from playserve_client.capture.base import (
    Capture,
    Image,
    Picture,
    Region,
    Target,
    Window,
    WindowSystem,
    choose_window,
    parse_region,
)
from playserve_client.capture.platforms import Platform, detect_platform, open_capture, open_windows

__all__ = [
    "Capture", "Image", "Picture", "Platform", "Region", "Target", "Window", "WindowSystem", "choose_window",
    "detect_platform", "open_capture", "open_windows", "parse_region",
]  # fmt: skip
