"""A control plane behind a real port, for browsers, and a fleet to show."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from chromium import browser, browser_process  # noqa: F401 - fixtures
from dashboard_site import Site, fill_fleet, serving_site

from playserve_services.control.context import Context


@pytest.fixture
def open_site(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """Return a function that starts a control plane with the settings that it is given."""
    with contextlib.ExitStack() as stack:
        yield lambda **options: stack.enter_context(serving_site(**{"data": tmp_path / "control", **options}))


@pytest.fixture
def fleet() -> Callable[[Context], None]:
    """Return a function that gives a control plane two replicas, a policy with two versions and evaluations."""
    return fill_fleet
