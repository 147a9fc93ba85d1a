"""Copies a recording with other actions: its frames, texts and what its recorder knew stay, its own actions go."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from playserve.actions import DesktopAction
from playserve.errors import ShapeMismatchError
from playserve.p2p import video_annotation_pb2 as pb
from playserve_client.p2p.problems import MissingPartError, Problem
from playserve_client.p2p.recording import ANNOTATION
from playserve_client.p2p.sidecar import Sidecar, read_sidecar, write_sidecar
from playserve_client.p2p.writer import PART_SUFFIX, sync, write_action

__all__ = ["relabel"]


def relabel(
    source: Path,
    target: Path,
    actions: Sequence[DesktopAction | None],
    *,
    change: str,
    episode: Mapping[str, Any],
    columns: Mapping[str, NDArray[Any]],
) -> Path:
    """Write the recording in `source` to `target` with other actions, whole or not at all; return `target`.

    Videos are linked where the file system can, else copied. Events of keyboard and mouse are left out: they say what
    the old actions were.

    Args:
        source: Folder of a recording.
        target: Folder that does not exist.
        actions: What entry k of the annotations is to say of frame k, a person's; None: nobody knows.
        change: What was done, for the annotations' change log.
        episode: Added to the sidecar's episode object.
        columns: Added to the sidecar's columns, [frames] each.

    Raises:
        MissingPartError: `source` has no annotations.
        BrokenRecordingError: Its sidecar is damaged.
        ShapeMismatchError: There are not as many actions as frames.
    """
    try:
        message = pb.VideoAnnotation.FromString((source / ANNOTATION).read_bytes())
    except FileNotFoundError:
        raise MissingPartError(source / ANNOTATION, Problem.NO_ANNOTATION, "there is no such file") from None
    lengths = {len(actions), *(len(column) for column in columns.values())}
    if lengths != {len(message.frame_annotations)}:
        raise ShapeMismatchError(
            f"{source}: actions and columns of {sorted(lengths)} frames, wanted {len(message.frame_annotations)}"
        )
    _replace_actions(message, actions)
    message.changelog.add(
        change_id="labels", change_description=change, timestamp=int(datetime.now(UTC).timestamp() * 1000)
    )
    before = read_sidecar(source) or Sidecar()
    part = target.with_name(f".{target.name}{PART_SUFFIX}")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        for video in sorted(source.glob("*.mp4")):
            _link(video, part / video.name)
        write_sidecar(part, Sidecar({**before.episode, **episode}, {**before.arrays, **columns}))
        (part / ANNOTATION).write_bytes(message.SerializeToString(deterministic=True))
        for path in part.iterdir():
            sync(path)
        os.rename(part, target)
        sync(target.parent)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return target


def _replace_actions(message: pb.VideoAnnotation, actions: Sequence[DesktopAction | None]) -> None:
    for entry, action in zip(message.frame_annotations, actions, strict=True):
        for name in ("user_action", "system_action", "input_events"):
            entry.ClearField(name)
        if action is not None:
            write_action(action, entry.user_action)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
