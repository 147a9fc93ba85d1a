"""``python -m playserve_trainer.grid``: the command ``playserve grid`` where nothing is installed, only the source."""

from __future__ import annotations

import argparse
import sys

from playserve.errors import PlayserveError
from playserve_trainer.commands import grid

__all__ = ["main"]


def main(argv: list[str] | None = None) -> int:
    """Run ``playserve grid``; errors that a user can mend are one line on stderr and exit status 2."""
    parser = argparse.ArgumentParser(prog="playserve grid", description=grid.SUMMARY)
    grid.configure(parser)
    try:
        return grid.run(parser.parse_args(argv))
    except PlayserveError as error:
        sys.stderr.write(f"playserve: {error}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())
