"""Files that are there whole or not at all: written beside their place, then moved into it."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playserve.errors import DataLossError

__all__ = ["read_json", "replacing", "stamp", "sync_directory", "write_json", "write_private", "write_text"]


@contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yield a path to write; what lies there at the end takes the place of `path`, after an error nothing does.

    Args:
        path: The file.
        durable: Whether it is whole or absent even after a power cut.
    """
    # The ending is kept: writers such as numpy's add one of their own where it is missing.
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex}.tmp{path.suffix}")
    try:
        yield temporary
        if durable:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    if durable:
        sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Have the names in a directory survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_private(path: Path, text: str) -> None:
    """Write a text file in UTF-8 that its owner alone can read, and that survives a power cut."""
    with replacing(path, durable=True) as temporary:
        # Created with its mode: at no moment can somebody else open it.
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)


def stamp(path: Path) -> tuple[int, int, int] | None:
    """Return what changes when a file does, or what a link to it points at; None: it cannot be looked at."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in a file, or None where there is no file.

    Raises:
        DataLossError: The file is damaged.
    """
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DataLossError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise DataLossError(f"{path} holds no JSON object")
    return value


def write_json(path: Path, value: Any, *, allow_nan: bool = False) -> None:
    """Write a JSON file, indented.

    Raises:
        ValueError: `value` holds a NaN or an infinity, which no JSON has, and `allow_nan` is false.
    """
    write_text(path, json.dumps(value, indent=2, allow_nan=allow_nan) + "\n")
