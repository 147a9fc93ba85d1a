"""The device that holds a policy, by what a person calls it."""

from __future__ import annotations

import torch

from playserve.errors import BadSettingError

__all__ = ["resolve_device"]


def resolve_device(name: str) -> torch.device:
    """Return the torch device of a setting; "auto" is cuda where there is one, else cpu."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise BadSettingError(f"device {name!r} is none that torch knows") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BadSettingError(f"device is {name!r}, but torch sees no CUDA device")
    return device
