"""What a policy sees of a desktop: one window, captured while it is in front and only then."""

from __future__ import annotations

from dataclasses import dataclass

from playserve.errors import BadSettingError
from playserve.resize import AREA_V1
from playserve.specs import DesktopActionSpec, ImageFormat, PolicySpec, TensorSpec
from playserve_client.capture import Capture, Image, Picture, Region, Target, Window, WindowSystem

__all__ = ["Eye", "Scene", "desktop_action_of"]


@dataclass(frozen=True, slots=True)
class Scene:
    """A window and what looks at it.

    Attributes:
        windows: Says where the window is and whether it is in front.
        capture: Reads pixels.
        window: The game's.
        region: Part of the screen to capture; None: the inside of the window, wherever it is moved.
    """

    windows: WindowSystem
    capture: Capture
    window: Window
    region: Region | None = None

    def look(self) -> Target:
        """Return where the game is now."""
        return self.windows.look(self.window, self.region)

    def glance(self) -> Target:
        """Return where the game is, by what the system has told so far."""
        return self.windows.glance(self.window, self.region)

    def grab(self, target: Target) -> tuple[Picture | None, Target]:
        """Return the picture and where the game was after it was taken; None where it was no longer in front.

        What came between is another window's, and nobody's business.
        """
        picture = self.capture.grab(target.region)
        after = self.look()
        return (picture if after.in_front and after.region == target.region else None), after


class Eye:
    """Makes a policy's input of a picture of the screen.

    Args:
        spec: The policy.

    Raises:
        BadSettingError: The policy takes something else than one picture.
    """

    def __init__(self, spec: PolicySpec) -> None:
        required = [tensor for tensor in spec.inputs if not tensor.optional]
        if len(required) != 1 or not _is_picture(required[0]):
            inputs = ", ".join(f"{tensor.name} {tensor.dtype}{list(tensor.shape)}" for tensor in required)
            raise BadSettingError(f"policy {spec.name!r} takes {inputs or 'nothing'}, wanted one RGB picture")
        self.name = required[0].name
        self._height, self._width = required[0].shape[:2]
        self._resize_id = required[0].resize_id or AREA_V1

    def see(self, picture: Picture) -> Image:
        """Return uint8 [h, w, 3], as the policy was trained on."""
        height = picture.height if self._height < 0 else self._height
        width = picture.width if self._width < 0 else self._width
        return picture.resized(height, width, self._resize_id)


def _is_picture(tensor: TensorSpec) -> bool:
    return (
        tensor.dtype == "uint8"
        and len(tensor.shape) == 3
        and tensor.shape[2] == 3
        and tensor.image_format in (ImageFormat.RGB8, ImageFormat.NONE)
    )


def desktop_action_of(spec: PolicySpec) -> DesktopActionSpec:
    """Return the action spec; BadSettingError where the policy presses no keys."""
    if not isinstance(spec.action, DesktopActionSpec):
        raise BadSettingError(
            f"policy {spec.name!r} chooses one of {spec.action.n} actions, wanted one that plays keyboard and mouse"
        )
    return spec.action
