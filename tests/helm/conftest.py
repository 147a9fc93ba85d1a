"""The chart's tests render with Helm's own engine, by deploy/fleet.py; a scenario is rendered once."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "deploy"))

pytest.importorskip("helm_python", reason="needs helm-python-sdk: Helm's own engine")
pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate: the schemas of Kubernetes")

import fleet  # noqa: E402 - after the path

SCENARIOS = {path.stem: path for path in sorted((fleet.CHART / "ci").glob("*.yaml"))}

#: The least that renders.
LEAST = {"security": {"insecureListen": True}, "store": {"volume": {"existingClaim": "store"}}}


@functools.cache
def _rendered(scenario: str) -> fleet.Rendered:
    return fleet.render(yaml.safe_load(SCENARIOS[scenario].read_text()))


@pytest.fixture(scope="session")
def scenario() -> Callable[[str], fleet.Rendered]:
    """Return what a scenario of helm/playserve/ci becomes."""
    return _rendered


@pytest.fixture(params=sorted(SCENARIOS))
def every(request: pytest.FixtureRequest) -> fleet.Rendered:
    """Each scenario in its turn."""
    return _rendered(request.param)


@functools.cache
def _rendered_values(text: str) -> fleet.Rendered:
    return fleet.render(fleet.merged(LEAST, json.loads(text)))


@pytest.fixture(scope="session")
def render() -> Callable[[dict[str, Any]], fleet.Rendered]:
    """Return what the least values with some on top of them become."""
    return lambda values: _rendered_values(json.dumps(values, sort_keys=True))
