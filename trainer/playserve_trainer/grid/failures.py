"""Why a run failed: ``runs/<run>/failed.json``, with the end of the run's log. A failure is never a result."""

from __future__ import annotations

from pathlib import Path

from playserve.files import write_json
from playserve_trainer.grid.folder import GridFolder
from playserve_trainer.wording import utc_now

__all__ = ["log_tail", "write_failure"]

_TAIL_LINES = 20


def write_failure(folder: GridFolder, name: str, reason: str) -> None:
    """Write why a run failed; `--retry-failed` lets it go on."""
    directory = folder.run(name)
    directory.mkdir(parents=True, exist_ok=True)
    at = utc_now()
    write_json(folder.failure(name), {"run": name, "reason": reason, "at": at, "log": log_tail(directory / "log.txt")})


def log_tail(path: Path) -> list[str]:
    """Return the last lines of a log; none if there is no log."""
    try:
        return path.read_text(errors="replace").splitlines()[-_TAIL_LINES:]
    except OSError:
        return []
