"""Which recordings lie under a path, of any of our formats; a recording is one file or one folder."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from playserve.errors import BadSettingError, DataLossError
from playserve.files import read_json
from playserve_client.nethack.shard_format import FORMAT_NAME, JOURNAL, MANIFEST, SHARD_PREFIX
from playserve_client.p2p.recording import ANNOTATION
from playserve_client.recordings import read_meta

__all__ = ["Unit", "find_units"]

_TTYREC = (".ttyrec", ".ttyrec2", ".ttyrec3")
_PACKED = ("", ".bz2", ".gz")


@dataclass(frozen=True, slots=True)
class Unit:
    """One recording.

    Attributes:
        path: A file or a folder.
        format: "episode", "p2p", "nethack-shard" or "ttyrec".
        name: What it is called: its path below what was searched.
    """

    path: Path
    format: str
    name: str


def find_units(paths: Sequence[Path]) -> list[Unit]:
    """Return the recordings at and under some paths, each once, by path.

    Raises:
        BadSettingError: A path is not there, or holds no recording.
        DataLossError: An episode is damaged.
    """
    found: dict[Path, Unit] = {}
    for path in paths:
        if not path.exists():
            raise BadSettingError(f"there is nothing at {path}")
        units = list(_under(path, path.resolve().name))
        if not units:
            wanted = f"episodes (.npz), folders with {ANNOTATION}, {SHARD_PREFIX}*, or ttyrecs"
            raise BadSettingError(f"{path} holds no recording: wanted {wanted}")
        found.update({unit.path.resolve(): unit for unit in units})
    return [found[path] for path in sorted(found)]


def _under(path: Path, name: str) -> Iterator[Unit]:
    if path.is_file():
        if kind := _kind_of_file(path):
            yield Unit(path, kind, name)
        return
    if kind := _kind_of_folder(path):
        yield Unit(path, kind, name)
        return
    for entry in sorted(os.scandir(path), key=lambda entry: entry.name):
        # Links could lead out of what was named, or round in a circle.
        if not (entry.name.startswith(".") or entry.is_symlink()):
            yield from _under(Path(entry.path), f"{name}/{entry.name}")


def _kind_of_file(path: Path) -> str:
    name = path.name.lower()
    if any(name.endswith(f"{kind}{packed}") for kind in _TTYREC for packed in _PACKED):
        return "ttyrec"
    if path.suffix == ".npz":
        read_meta(path)
        return "episode"
    return ""


def _kind_of_folder(path: Path) -> str:
    if (path / ANNOTATION).is_file():
        return "p2p"
    if not path.name.startswith(SHARD_PREFIX) or (path / JOURNAL).exists():  # the latter is still being written
        return ""
    try:
        manifest = read_json(path / MANIFEST)
    except DataLossError:
        return ""
    return "nethack-shard" if manifest is not None and manifest.get("format") == FORMAT_NAME else ""
