"""Waits until nothing of a grid is running or waiting any more (`playserve grid status --json`)."""

import json
import subprocess
import sys
import time


def counts(folder: str) -> dict[str, int]:
    """Return how many runs are in each state."""
    told = subprocess.run(
        ["playserve", "grid", "status", folder, "--json"], check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    states: dict[str, int] = json.loads(told)["runs"]
    return states


def main(folder: str, poll_s: float = 30.0, retry_s: float = 900.0) -> None:
    """Return when every run is done, or the rest has failed and nobody has tried it again for `retry_s` seconds."""
    failed_since = None
    while True:
        states = counts(folder)
        if not (states["running"] or states["waiting"]):
            if not states["failed"]:
                return
            failed_since = time.monotonic() if failed_since is None else failed_since
            if time.monotonic() - failed_since >= retry_s:
                sys.stderr.write(f"{states['failed']} runs failed for good: going on without them\n")
                return
        else:
            failed_since = None
        time.sleep(poll_s)


if __name__ == "__main__":
    main(sys.argv[1], *map(float, sys.argv[2:]))
