"""The folder of a demo: one process at a time is at work in it, and a fresh start throws away what a demo wrote."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from playserve.errors import BadSettingError
from playserve_trainer.demo.log import LOG_NAME

__all__ = ["demo_folder"]

_LOCK_NAME = ".lock"


@contextmanager
def demo_folder(out: Path, folders: Sequence[str], files: Sequence[str], *, fresh: bool) -> Iterator[None]:
    """Make a demo's folder, unless it is there, and keep other demos out for the length of the block.

    Args:
        out: The folder.
        folders: What a demo writes.
        files: The same.
        fresh: Throw away first what an earlier demo wrote.

    Raises:
        BadSettingError: Another demo is at work in the folder, or it is to be emptied and holds something, but no demo.
    """
    out.mkdir(parents=True, exist_ok=True)
    with (out / _LOCK_NAME).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BadSettingError(f"another demo is at work in {out}; wait for it, or choose another --out") from None
        if fresh:
            _clear(out, folders, files)
        yield


def _clear(out: Path, folders: Sequence[str], files: Sequence[str]) -> None:
    """Throw away an earlier demo; BadSettingError where the folder holds something, but no demo."""
    if not (out / LOG_NAME).exists():
        strangers = sorted(path.name for path in out.iterdir() if path.name != _LOCK_NAME)
        if strangers:
            raise BadSettingError(
                f"--fresh would empty {out}, which holds {', '.join(strangers[:5])} but no {LOG_NAME}: it is no demo's "
                "folder. Choose another --out"
            )
    for name in folders:
        shutil.rmtree(out / name, ignore_errors=True)
    for name in (*files, LOG_NAME):
        (out / name).unlink(missing_ok=True)
