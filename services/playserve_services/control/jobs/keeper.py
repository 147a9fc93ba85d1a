"""Runs one command and writes down how it ended: ``python -m playserve_services.control.jobs.keeper FOLDER FD ...``.

The control plane may be killed and started again while a job runs. What tells it then that the job lives is a lock,
whose open file FD is handed down here and to the command: it is held until both are gone, and no process id that was
given to somebody else can be taken for the job. What tells it the result is ``FOLDER/exit.json``.
"""

from __future__ import annotations

import datetime
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

from playserve.files import write_json

__all__ = ["EXIT_NAME", "main"]

EXIT_NAME = "exit.json"


def main(argv: list[str]) -> int:
    """Run the command; return 0 once its end is written down."""
    folder, descriptor, command = Path(argv[0]), int(argv[1]), argv[2:]
    stopped: list[int] = []
    child: subprocess.Popen[bytes] | None = None

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.append(number)
        if child is not None and child.poll() is None:
            child.send_signal(signal.SIGTERM)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=(descriptor,))
    except OSError as error:
        print(f"cannot start {command[0]}: {error}", flush=True)  # noqa: T201 - into the job's log
        status = 127
    else:
        if stopped:  # between the handlers and the child
            child.send_signal(signal.SIGTERM)
        status = child.wait()
    ended = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    write_json(folder / EXIT_NAME, {"status": status, "ended_at": ended})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
