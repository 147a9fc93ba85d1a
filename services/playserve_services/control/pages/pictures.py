"""One event of a watched session as a browser draws it: what the policy saw, and what it did.

Of a world: what it showed, and what was done in it.

Shape legend: H height, W width, C channels.
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from playserve.codec import Decoder
from playserve.specs import ActionSpec, Codec, DesktopActionSpec, DiscreteActionSpec, PolicyKind, PolicySpec, TensorSpec
from playserve.v1 import admin_service_pb2 as ad
from playserve.v1 import types_pb2 as pb
from playserve_client.terminal.screen import Screen, look

__all__ = ["Picture", "png"]

#: A larger picture is thinned out: this is for looking, and goes to the browser many times a second.
_MOST_PIXELS = 640
_TTY = ("tty_chars", "tty_colors", "tty_cursor")


def png(image: NDArray[np.uint8]) -> bytes:
    """Return uint8 [H, W] (grey) or [H, W, 3] (RGB) as a PNG; it is packed quickly, not well."""
    height, width = image.shape[:2]
    kind = 0 if image.ndim == 2 else 2
    # Each row is preceded by its filter: none.
    rows = np.concatenate([np.zeros((height, 1), np.uint8), image.reshape(height, -1)], axis=1)
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows.tobytes(), 1)),
        (b"IEND", b""),
    )
    packed = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


class Picture:
    """Turns events of one policy into JSON values.

    Args:
        spec: The policy's.
    """

    def __init__(self, spec: PolicySpec) -> None:
        self._action = spec.action
        self._is_world = spec.kind is PolicyKind.WORLD
        self._specs = {tensor.name: tensor for tensor in (spec.outputs if self._is_world else spec.inputs)}
        # What a session could send was agreed on elsewhere, and the server has looked at it.
        self._allowed = frozenset(int(codec) for codec in Codec)

    def event(self, event: ad.WatchSessionResponse) -> dict[str, Any]:
        """Return what the page draws.

        Raises:
            PlayserveError: The tensors are not what the policy's specs say.
        """
        result = event.result if event.HasField("result") else None
        shown = event.step.inputs if result is None or not self._is_world else result.outputs
        done = [event.step.action] if self._is_world else [] if result is None else result.actions[:8]
        value: dict[str, Any] = {
            "seq": event.step.seq,
            "episode": event.step.episode_id,
            "actions": [self._said(action) for action in done],
            **self._seen(shown),
        }
        if result is not None:
            value["version"] = result.version
            value["ms"] = round(result.times.total_us / 1000, 2)
            value["batch"] = result.times.batch_size
            value["dropped"] = len(result.dropped)
            if result.HasField("value"):
                value["value"] = round(result.value, 4)
        return value

    def _seen(self, tensors: Any) -> dict[str, Any]:
        by_name = {tensor.name: tensor for tensor in tensors}
        if all(name in by_name for name in _TTY):
            return {"terminal": _terminal(self._decode({name: by_name[name] for name in _TTY}))}
        for tensor in tensors:
            spec = self._specs.get(tensor.name)
            if spec is not None and spec.dtype == "uint8" and len(spec.shape) in (2, 3):
                return self._image(spec, tensor)
        return {}

    def _image(self, spec: TensorSpec, tensor: pb.Tensor) -> dict[str, Any]:
        if tensor.codec == pb.CODEC_JPEG:
            height, width = tensor.shape[0], tensor.shape[1]
            return _data("image/jpeg", tensor.data, width, height)
        array = self._decode({spec.name: tensor})[spec.name]
        if array.ndim == 3 and array.shape[2] != 3:
            array = array[:, :, -1]  # of a stack, the newest
        thin = -(-max(array.shape[:2]) // _MOST_PIXELS)
        array = np.ascontiguousarray(array[::thin, ::thin])
        return _data("image/png", png(array), array.shape[1], array.shape[0])

    def _decode(self, tensors: Mapping[str, pb.Tensor]) -> dict[str, NDArray[Any]]:
        decoder = Decoder([self._specs[name] for name in tensors], self._allowed)
        return decoder.decode_step(tensors.values())

    def _said(self, action: pb.Action) -> dict[str, Any]:
        if action.WhichOneof("kind") == "desktop":
            done = action.desktop
            return {
                "keys": list(done.keys), "buttons": list(done.buttons), "dx": round(done.mouse_dx_px, 2),
                "dy": round(done.mouse_dy_px, 2), "scroll": done.scroll, "reach": _reach(self._action),
            }  # fmt: skip
        names = self._action.names if isinstance(self._action, DiscreteActionSpec) else ()
        return {"name": names[action.index] if action.index < len(names) else f"action {action.index}"}


def _reach(spec: ActionSpec | None) -> float:
    return spec.max_mouse_px if isinstance(spec, DesktopActionSpec) else 1.0


def _data(kind: str, data: bytes, width: int, height: int) -> dict[str, Any]:
    return {"image": f"data:{kind};base64,{base64.b64encode(data).decode()}", "width": width, "height": height}


def _terminal(arrays: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    chars, colors, cursor = (arrays[name] for name in _TTY)
    screen = Screen(chars, colors, (int(cursor[0]), int(cursor[1])))
    rows = [[[text, *look(color)] for text, color in screen.runs(row)] for row in range(chars.shape[0])]
    return {"rows": rows, "cursor": list(screen.cursor)}
