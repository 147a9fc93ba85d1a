"""The observations that a load is made of: random ones by the policy's spec, or recorded ones from a file.

Of a world, a load is made of random actions.
"""

from __future__ import annotations

import itertools
import random
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from playserve.codec import Action, Array
from playserve.errors import BadSettingError, DataLossError
from playserve.resize import HAMMING_V1, resize
from playserve.specs import PolicyKind, PolicySpec, TensorSpec
from playserve_client.recordings import read_episode, stack_frames

__all__ = ["FramePool", "random_frames", "recorded_frames"]

#: Frames of a random pool: enough that neighbours differ, few enough to be made at once.
_POOL = 16
#: Actions of a random pool: a player's changes of mind take a while.
_ACTIONS = 256
#: What an open dimension becomes.
_OPEN_DIMENSION = 84
#: Frames of a video that are read: 13 s at 20 Hz.
_VIDEO_FRAMES = 256


class FramePool:
    """Frames that sessions send in turn, each from a place of its own.

    Args:
        arrays: [N, ...] for each input.
        actions: N actions that go with them, where they are for a world.
    """

    def __init__(self, arrays: Mapping[str, Array], actions: Sequence[Action] = ()) -> None:
        self._arrays, self._actions = dict(arrays), list(actions)
        self._count = min([len(array) for array in self._arrays.values()] + [len(self._actions)] * bool(actions))

    def __len__(self) -> int:
        return self._count

    def frame(self, index: int) -> dict[str, Array]:
        """Return the inputs of a step; after the last one comes the first."""
        return {name: array[index % self._count] for name, array in self._arrays.items()}

    def action(self, index: int) -> Action | None:
        """Return what is done in a world's step; None: it is none."""
        return self._actions[index % len(self._actions)] if self._actions else None


def _required(spec: PolicySpec) -> list[TensorSpec]:
    return [tensor for tensor in spec.inputs if not tensor.optional]


def random_frames(spec: PolicySpec, seed: int = 0) -> FramePool:
    """Return frames of noise within the bounds of each required input. Noise does not compress: codecs are no help."""
    draw = np.random.default_rng(random.Random(f"{seed}/frames").getrandbits(64))
    arrays = {tensor.name: _noise(tensor, draw) for tensor in _required(spec)}
    return FramePool(arrays, _actions(spec, seed) if spec.kind is PolicyKind.WORLD else ())


def _actions(spec: PolicySpec, seed: int) -> list[Action]:
    from playserve_client.worlds.film import actions_of

    return list(itertools.islice(actions_of("random", spec.action, seed), _ACTIONS))


def _noise(tensor: TensorSpec, draw: np.random.Generator) -> Array:
    shape = (_POOL, *(_OPEN_DIMENSION if side < 0 else side for side in tensor.shape))
    dtype = np.dtype(tensor.dtype)
    if dtype.kind == "b":
        return draw.integers(0, 2, shape).astype(bool)
    if dtype.kind == "f":
        low = 0.0 if tensor.minimum is None else tensor.minimum
        high = low + 1.0 if tensor.maximum is None else tensor.maximum
        return draw.uniform(low, high, shape).astype(dtype)
    limits = np.iinfo(dtype)
    # A wide integer is an index or a count more often than noise: without bounds it stays small.
    low = max(limits.min, 0) if tensor.minimum is None else int(tensor.minimum)
    high = min(limits.max, 255) if tensor.maximum is None else int(tensor.maximum)
    return draw.integers(low, high, shape, dtype=dtype, endpoint=True)


def recorded_frames(path: Path, spec: PolicySpec) -> FramePool:
    """Return the frames of a file.

    It is an ``.npy`` [N, ...] for a policy of one input, an ``.npz`` with an array [N, ...] for each input by name, an
    episode that `playserve data record` wrote, whose single frames are stacked as the policy takes them, or a video
    (``.mp4``), such as that of an Open P2P recording, whose first frames are resized as the policy takes them.

    Raises:
        BadSettingError: The file is of no such kind, its arrays are not what the policy takes, or it is a world.
        DataLossError: It is damaged.
        FileNotFoundError: There is none.
    """
    if spec.kind is PolicyKind.WORLD:
        raise BadSettingError(f"{spec.name!r} is a world, whose load is made of random actions; leave out --frames")
    tensors = _required(spec)
    arrays = _read(path, tensors)
    for tensor in tensors:
        array = arrays.get(tensor.name)
        if array is None:
            raise BadSettingError(
                f"{path} has {sorted(arrays) or 'nothing'}, wanted input {tensor.name!r} of {spec.name!r}"
            )
        shape = array.shape[1:]
        fits = len(shape) == len(tensor.shape) and all(b in (-1, a) for a, b in zip(shape, tensor.shape, strict=True))
        if array.dtype != tensor.dtype or not fits or not len(array):
            raise BadSettingError(
                f"{path}: {tensor.name!r} is {array.dtype} {list(array.shape)}, wanted {tensor.dtype} [N, "
                f"{', '.join(map(str, tensor.shape))}]"
            )
    return FramePool({tensor.name: arrays[tensor.name] for tensor in tensors})


def _read(path: Path, tensors: Sequence[TensorSpec]) -> dict[str, Array]:
    if path.suffix == ".mp4":
        return {tensor.name: _video(path, tensor) for tensor in tensors[:1]}
    try:
        if path.suffix == ".npy":
            array = np.load(path, allow_pickle=False)
            return {tensor.name: array for tensor in tensors[:1]}
        with np.load(path, allow_pickle=False) as file:
            if "meta" not in file.files:
                return {name: file[name] for name in file.files}
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataLossError(f"{path} is no whole .npy or .npz: {error}") from error
    frames = read_episode(path, arrays={"frames"}).frames
    depth = tensors[0].shape[-1] if tensors and len(tensors[0].shape) == 3 else 1
    return {tensor.name: stack_frames(frames, np.arange(len(frames)), depth) for tensor in tensors[:1]}


def _video(path: Path, tensor: TensorSpec) -> Array:
    """Return uint8 [N, h, w, 3]."""
    from playserve_client.p2p.video import VideoReader  # needs PyAV

    if len(tensor.shape) != 3 or tensor.shape[2] != 3 or min(tensor.shape) < 1:
        raise BadSettingError(f"{path} is a video, wanted frames for input {tensor.name!r} of {list(tensor.shape)}")
    height, width, _ = tensor.shape
    with VideoReader(path) as video:
        if not len(video):
            raise BadSettingError(f"{path} has no frames")
        frames = video.frames(0, min(len(video), _VIDEO_FRAMES))
        return np.stack([resize(frame, height, width, tensor.resize_id or HAMMING_V1) for frame in frames])
