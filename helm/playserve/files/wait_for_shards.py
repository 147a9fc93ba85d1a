"""Waits until every folder named holds the results of a run that came to its end (`playserve rollout`)."""

import json
import sys
import time
from pathlib import Path


def finished(folder: Path) -> bool:
    """Whether the run in `folder` has ended by itself."""
    try:
        return not json.loads((folder / "results.json").read_text())["run"]["interrupted"]
    except (OSError, ValueError):
        return False


def main(folders: list[Path], poll_s: float = 10.0) -> None:
    """Return when all are finished; say what is waited for whenever that changes."""
    told = None
    while waiting := [str(folder) for folder in folders if not finished(folder)]:
        if waiting != told:
            sys.stderr.write(f"waiting for {len(waiting)} of {len(folders)} shards: {', '.join(waiting)}\n")
            told = waiting
        time.sleep(poll_s)


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
