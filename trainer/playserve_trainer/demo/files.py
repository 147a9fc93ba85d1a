"""Files that the demo's steps leave for one another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from playserve.errors import DataLossError, NotFoundError

__all__ = ["read_json"]


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        NotFoundError: There is none.
        DataLossError: It is damaged.
    """
    try:
        value: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise NotFoundError(f"{path} is not there; `playserve demo` with the same --out makes it") from error
    except ValueError as error:
        raise DataLossError(f"{path} is damaged: {error}") from error
    return value
