"""An authority of the test's own with its certificates, and a real inference server with a small policy."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from small_authority import Authority

from playserve_services.inference.app import InferenceServer
from playserve_services.inference.settings import ServeSettings
from playserve_trainer.models.tiny_recurrent import TinyRecurrentConfig, TinyRecurrentPolicy


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


@pytest.fixture
def make_authority(tmp_path: Path) -> Callable[[str], Authority]:
    return lambda name: Authority(tmp_path / name)


def _turns() -> TinyRecurrentPolicy:
    return TinyRecurrentPolicy(TinyRecurrentConfig(hidden=8))


def _live() -> TinyRecurrentPolicy:
    return TinyRecurrentPolicy(TinyRecurrentConfig(hidden=12, rate_hz=20.0))


Serve = Callable[..., AbstractAsyncContextManager[InferenceServer]]


@pytest.fixture
def serve() -> Serve:
    """A real server on loopback: policy `turns` waits for the game, `live` does not."""

    @asynccontextmanager
    async def run(**settings: Any) -> AsyncIterator[InferenceServer]:
        settings = {"port": 0, "slots": 4, "max_batch": 2, **settings}
        async with InferenceServer(ServeSettings(**settings), {"turns": _turns, "live": _live}) as server:
            yield server

    return run
