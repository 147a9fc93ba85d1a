"""What pydantic models share: fields that go together, and what was found wrong in words, never what was in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["check_together", "in_words"]


def check_together(settings: object, *names: str) -> None:
    """Check that fields are all given or all left out.

    Args:
        settings: Whose fields they are.
        names: Of the fields; one that is empty or None is left out.

    Raises:
        ValueError: Some are given; it names those that are missing.
    """
    missing = [name for name in names if not getattr(settings, name)]
    if 0 < len(missing) < len(names):
        raise ValueError(f"{', '.join(names)} go together; there is no {', no '.join(missing)}")


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
