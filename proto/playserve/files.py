"""Files that are there whole or not at all: written beside their place, then moved into it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["replacing", "write_json", "write_text"]


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path to write; what lies there at the end takes the place of `path`, after an error nothing does."""
    # The ending is kept: writers such as numpy's add one of their own where it is missing.
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex}.tmp{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any, *, allow_nan: bool = False) -> None:
    """Write a JSON file, indented.

    Raises:
        ValueError: `value` holds a NaN or an infinity, which no JSON has, and `allow_nan` is false.
    """
    write_text(path, json.dumps(value, indent=2, allow_nan=allow_nan) + "\n")
