"""Fixtures of the service's tests."""

from __future__ import annotations

import pytest
from rig import Rig


@pytest.fixture(scope="session")
def make_rig() -> type[Rig]:
    return Rig


@pytest.fixture
def rig() -> Rig:
    return Rig()
