"""What pydantic found wrong, in words: one line that names the fields, and never what was in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["in_words"]


def in_words(errors: Sequence[Mapping[str, Any]], *, whole: str = "", most: int = 10) -> str:
    """Return the errors of a ``ValidationError`` as "field: what is wrong; ...".

    What came is not repeated: it may be a secret that was put into the wrong field.

    Args:
        errors: Of ``ValidationError.errors()``, or of FastAPI's own error.
        whole: Name of what is wrong as a whole, where no single field is; empty: none is said.
        most: So many are told; of the others only how many there are.
    """
    told = [_line(error, whole) for error in errors[:most]]
    if len(errors) > most:
        told.append(f"and {len(errors) - most} more")
    return "; ".join(told)


def _line(error: Mapping[str, Any], whole: str) -> str:
    where = ".".join(map(str, error["loc"])) or whole
    # pydantic puts the class before what a validator of ours says.
    what = str(error["msg"]).removeprefix("Value error, ")
    return f"{where}: {what}" if where else what
