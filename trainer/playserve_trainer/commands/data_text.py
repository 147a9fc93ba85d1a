"""``playserve data text``: a text for models of characters, Debian's King James Bible or a file of one's own."""

from __future__ import annotations

import argparse
import shutil
import subprocess
from pathlib import Path

from playserve.errors import DataLossError, NotFoundError
from playserve.files import write_text

__all__ = ["SUMMARY", "configure", "run"]

SUMMARY = "Write a text for models of characters: the King James Bible of Debian, or a file."

_BIBLE = "bible"
_EVERYTHING = "gen1:1-rev22:21"
_LEAST_CHARACTERS = 4_000_000  # of the whole Bible: 4.3 million


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where <name>.txt goes")
    parser.add_argument("--name", default="kjv", help="of the text (default %(default)s)")
    parser.add_argument(
        "--file", type=Path,
        help="a UTF-8 text; without it, what Debian's program `bible` prints (apt-get install bible-kjv)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Write the text; return 0."""
    text = _file(args.file) if args.file else _kjv()
    path = args.out / f"{args.name}.txt"
    args.out.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    print(f"{path}: {len(text):,} characters, {len(set(text))} different ones")
    return 0


def _file(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise NotFoundError(f"{path} is not there") from error
    except UnicodeDecodeError as error:
        raise DataLossError(f"{path} is no UTF-8 text: {error}") from error


def _kjv() -> str:
    """Return the whole King James Bible, a line a verse."""
    program = shutil.which(_BIBLE)
    if program is None:
        raise NotFoundError(
            "the King James Bible is Debian's: `apt-get install bible-kjv` (it brings bible-kjv-text), or give --file"
        )
    done = subprocess.run([program, "-l0", _EVERYTHING], capture_output=True, text=True, timeout=120, check=False)
    if done.returncode or len(done.stdout) < _LEAST_CHARACTERS:
        raise DataLossError(
            f"`{_BIBLE} -l0 {_EVERYTHING}` ended with {done.returncode} after {len(done.stdout):,} characters, wanted "
            f"{_LEAST_CHARACTERS:,} or more: {done.stderr.strip()[-200:]}"
        )
    return done.stdout
