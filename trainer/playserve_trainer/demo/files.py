"""Files that the demo's steps leave for one another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from playserve import files
from playserve.errors import NotFoundError

__all__ = ["read_json"]


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        NotFoundError: There is none.
        DataLossError: It is damaged.
    """
    value = files.read_json(path)
    if value is None:
        raise NotFoundError(f"{path} is not there; `playserve demo` with the same --out makes it")
    return value
