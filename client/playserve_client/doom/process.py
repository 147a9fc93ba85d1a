"""What keeps ViZDoom's processes and files from outliving the process that started them.

The game does not notice that its controller is gone, and waits for ever; its shared memory stays, too. So on Linux it
is started by a few lines that ask the kernel to end it with its parent, and each start removes what dead ones left.
They also start it in a folder of its own: wherever it is, it makes `./_vizdoom`, and dies where another game just did.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from pathlib import Path

__all__ = ["make_folder", "mark", "mortal"]

_PREFIX = "playserve-doom-"
_INSTANCE = "instance"
_SHARED = Path("/dev/shm")  # noqa: S108 - where boost puts what it shares
# PR_SET_PDEATHSIG is 1, SIGKILL 9. The parent may have died before.
_LAUNCH = """\
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)
if os.getppid() != {parent}:
    os._exit(1)
os.chdir(os.path.dirname(os.path.abspath(__file__)))
os.execv(sys.argv[1], sys.argv[1:])
"""


def make_folder() -> Path:
    """Return a new folder for one game's files; folders of processes that are gone are removed."""
    root = Path(tempfile.gettempdir())
    for path in root.glob(f"{_PREFIX}*"):
        owner = path.name.removeprefix(_PREFIX).partition("-")[0]
        if owner.isdigit() and not _lives(int(owner)):
            _remove_shared(path)
            shutil.rmtree(path, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))


def mark(folder: Path, instance: str) -> None:
    """Note which game uses the folder: its shared memory is named after it."""
    (folder / _INSTANCE).write_text(instance)


def mortal(program: Path, folder: Path) -> str | None:
    """Return a program that is `program`, works in `folder` and dies with this process; None: no Linux, or no program.

    Args:
        program: Its path, absolute.
        folder: Of :func:`make_folder`.
    """
    if not sys.platform.startswith("linux") or not program.is_file():
        return None
    launch, script = folder / "launch.py", folder / "vizdoom"
    launch.write_text(_LAUNCH.format(parent=os.getpid()))
    script.write_text(f"#!/bin/sh\nexec '{sys.executable}' -I -S '{launch}' '{program}' \"$@\"\n")
    script.chmod(0o700)
    return str(script)


def _remove_shared(folder: Path) -> None:
    with contextlib.suppress(OSError):
        instance = (folder / _INSTANCE).read_text()
        if instance.isalnum():
            for path in _SHARED.glob(f"ViZDoom*{instance}"):
                path.unlink(missing_ok=True)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
