"""Makes the toy game importable, here and in worker processes."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

TOYS = Path(__file__).parent / "toys"


@pytest.fixture(scope="session")
def toys() -> Iterator[ModuleType]:
    """Return the module `toy_rollout`; workers that are spawned get the same path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(TOYS))
        yield importlib.import_module("toy_rollout")
