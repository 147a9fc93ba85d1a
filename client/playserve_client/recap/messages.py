"""Between Open P2P's messages and ours: their Frame becomes a policy's picture, an action becomes their Action."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError as ProtobufError

from playserve.actions import DesktopAction, clip_action, merge_executed
from playserve.errors import BadSettingError, MalformedMessageError, ShapeMismatchError, SizeMismatchError
from playserve.p2p import inference_pb2 as theirs
from playserve.p2p import shared_pb2 as shared
from playserve.p2p.keys import BUTTON_TO_P2P, name_of
from playserve.resize import HAMMING_V1, resize
from playserve.specs import DesktopActionSpec, ImageFormat, PolicySpec, TensorSpec

__all__ = ["Eye", "Hands", "parse_frame"]

Image = npt.NDArray[np.uint8]

#: Largest side of a picture, pixels; :mod:`playserve.resize` takes no larger one.
_MAX_SIDE = 16384


def parse_frame(message: bytes) -> theirs.Frame:
    """Return a Frame whose size is that of its pixels.

    Raises:
        MalformedMessageError: The bytes are no Frame.
        ShapeMismatchError: It has no pixels, or too many.
        SizeMismatchError: It has more or fewer bytes than pixels.
    """
    try:
        frame = theirs.Frame.FromString(message)
    except ProtobufError as error:
        raise MalformedMessageError(f"{len(message)} bytes are no Frame: {error}") from None
    width, height = frame.width, frame.height
    if not (0 < width <= _MAX_SIDE and 0 < height <= _MAX_SIDE):
        raise ShapeMismatchError(f"a frame of {width} x {height} pixels, wanted 1 to {_MAX_SIDE} either way")
    if len(frame.data) != width * height * 3:
        raise SizeMismatchError(
            f"a frame of {width} x {height} pixels with {len(frame.data)} bytes, wanted {width * height * 3} (RGB)"
        )
    return frame


class Eye:
    """Makes a policy's input of their Frame.

    Args:
        spec: The policy.

    Raises:
        BadSettingError: It takes something else than one RGB picture of a fixed size.
    """

    def __init__(self, spec: PolicySpec) -> None:
        required = [tensor for tensor in spec.inputs if not tensor.optional]
        if len(required) != 1 or not _is_picture(required[0]):
            inputs = ", ".join(f"{tensor.name} {tensor.dtype}{list(tensor.shape)}" for tensor in required)
            raise BadSettingError(f"policy {spec.name!r} takes {inputs or 'nothing'}, wanted one RGB picture")
        self.name = required[0].name
        self._height, self._width = required[0].shape[:2]
        # Their client resizes so by itself.
        self._resize_id = required[0].resize_id or HAMMING_V1

    def fits(self, frame: theirs.Frame) -> bool:
        """Return whether a frame has the policy's size already."""
        return (frame.height, frame.width) == (self._height, self._width)

    def see(self, frame: theirs.Frame) -> Image:
        """Return uint8 [h, w, 3], as the policy was trained on; resizing takes milliseconds."""
        picture = np.frombuffer(frame.data, np.uint8).reshape(frame.height, frame.width, 3)
        return picture if self.fits(frame) else resize(picture, self._height, self._width, self._resize_id)


def _is_picture(tensor: TensorSpec) -> bool:
    return (
        tensor.dtype == "uint8"
        and len(tensor.shape) == 3
        and tensor.shape[2] == 3
        and min(tensor.shape) > 0
        and tensor.image_format in (ImageFormat.RGB8, ImageFormat.NONE)
    )


class Hands:
    """What the client was told to do: as their Action, and as what has been executed by the next frame.

    Their client cannot say what it did, and their server takes for granted that it did what it was told; so does this.

    Args:
        spec: The policy's actions.
    """

    def __init__(self, spec: DesktopActionSpec) -> None:
        self._spec = spec
        self._since: DesktopAction | None = None
        self._rest_x = self._rest_y = 0.0

    def answer(self, frame_id: int, action: DesktopAction) -> theirs.Action:
        """Return the answer to a frame. Motion is in whole pixels there; what is left over is added to the next."""
        x, y = action.mouse_dx_px + self._rest_x, action.mouse_dy_px + self._rest_y
        dx, dy = round(x), round(y)
        self._rest_x, self._rest_y = x - dx, y - dy
        told = DesktopAction(action.keys, action.buttons, float(dx), float(dy))
        self._since = told if self._since is None else merge_executed(self._since, told)
        return theirs.Action(
            keys=sorted(name_of(code) for code in action.keys),
            id=frame_id,
            mouse_action=theirs.MouseAction(
                mouse_delta_px=shared.Vec2Int(x=dx, y=dy),
                buttons_down=sorted(BUTTON_TO_P2P[button] for button in action.buttons if button in BUTTON_TO_P2P),
            ),
        )

    def executed(self) -> DesktopAction | None:
        """Return what is held, and all motion since the last call; None: nothing was answered yet."""
        done = self._since
        if done is None:
            return None
        self._since = DesktopAction(done.keys, done.buttons)
        clipped = clip_action(done, self._spec)  # several answers between two frames can add up to too much
        assert isinstance(clipped, DesktopAction)  # noqa: S101 - the spec is a desktop's
        return clipped
