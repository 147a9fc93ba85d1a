"""Flags of the form KEY=JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from playserve.errors import BadSettingError

__all__ = ["json_pairs"]


def json_pairs(texts: Iterable[str], flag: str) -> dict[str, Any]:
    """Return the values of a repeatable flag by their keys; what is no JSON is a word.

    Raises:
        BadSettingError: A text has no "=", or no key that Python would take for a name.
    """
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not (equals and key.isidentifier()):
            raise BadSettingError(f"{flag} {text!r} is not KEY=JSON, such as width=16")
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found
