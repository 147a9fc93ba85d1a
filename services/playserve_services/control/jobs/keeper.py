"""Runs one command: ``python -m playserve_services.control.jobs.keeper FOLDER FD LOG_BYTES COMMAND ...``.

The control plane may be killed and started again while a job runs. What tells it then that the job lives is a lock,
whose open file FD is handed down here and to the command: it is held until both are gone, and no process id that was
given to somebody else can be taken for the job. What tells it the result is ``FOLDER/exit.json``.

The command writes ``FOLDER/log.txt`` itself, so that it does not depend on us. When that has LOG_BYTES, it becomes
``log.old.txt`` and is begun anew: a job that talks for weeks fills no disk.
"""

from __future__ import annotations

import datetime
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import FrameType

from playserve.files import replacing, write_json

__all__ = ["EXIT_NAME", "LOG_NAME", "OLD_LOG_NAME", "main", "trim"]

EXIT_NAME = "exit.json"
LOG_NAME = "log.txt"
OLD_LOG_NAME = "log.old.txt"
_LOOK_S = 1.0


def trim(folder: Path, most_bytes: int) -> bool:
    """Put a log that is too long aside, and begin it anew; return whether it was.

    It is copied and cut, not renamed: the command holds it open, and appends. What it writes in between is lost.
    """
    log = folder / LOG_NAME
    try:
        if log.stat().st_size <= most_bytes:
            return False
        with replacing(folder / OLD_LOG_NAME) as copy:
            shutil.copyfile(log, copy)
        os.truncate(log, 0)
    except OSError:  # a disk that is full: the next look tries again
        return False
    return True


def main(argv: list[str]) -> int:
    """Run the command; return 0 once its end is written down."""
    folder, descriptor, most_bytes, command = Path(argv[0]), int(argv[1]), int(argv[2]), argv[3:]
    stopped: list[int] = []
    child: subprocess.Popen[bytes] | None = None

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.append(number)
        if child is not None and child.poll() is None:
            child.send_signal(signal.SIGTERM)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    ended = threading.Event()

    def look_after_log() -> None:
        while not ended.wait(_LOOK_S):
            trim(folder, most_bytes)

    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=(descriptor,))
    except OSError as error:
        print(f"cannot start {command[0]}: {error}", flush=True)  # noqa: T201 - into the job's log
        status = 127
    else:
        if stopped:  # between the handlers and the child
            child.send_signal(signal.SIGTERM)
        threading.Thread(target=look_after_log, daemon=True).start()
        status = child.wait()
        ended.set()
    at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    write_json(folder / EXIT_NAME, {"status": status, "ended_at": at})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
