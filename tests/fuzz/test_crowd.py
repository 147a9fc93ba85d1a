"""Random messages over many sessions of a real server: it lives, the bystander plays, nothing is left behind."""

from __future__ import annotations

import os
from typing import Any

import pytest
from crowd_run import run_beside_bystander

_MESSAGES = int(os.environ.get("CROWD_MESSAGES", "1000000"))


def _is_as_before(report: dict[str, Any]) -> None:
    before, after = report["before"], report["after"]
    for name in ("fds", "tasks", "sessions", "slots_used"):
        assert after[name] <= before[name], f"{name}: {before[name]:g} before, {after[name]:g} after"


def test_a_crowd() -> None:
    report = run_beside_bystander(5_000, lanes=8, seed=1)
    assert report["messages"] >= 5_000
    assert len(report["in_band"]) >= 5, report["in_band"]
    _is_as_before(report)


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
def test_a_large_crowd() -> None:
    report = run_beside_bystander(_MESSAGES, lanes=16, seed=2)
    assert report["messages"] >= _MESSAGES
    _is_as_before(report)
