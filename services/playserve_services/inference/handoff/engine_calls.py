"""Waiting for what the engine's thread does between two batches."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from playserve_services.inference.engine import Engine

__all__ = ["between_batches"]


async def between_batches(engine: Engine, function: Callable[[], Any]) -> Any:
    """Run `function` on the engine's thread between two batches; return what it gives, or raise what it raises."""
    result: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def done(value: Any, error: Exception | None) -> None:
        if result.done():  # nobody waits any more
            return
        if error is None:
            result.set_result(value)
        else:
            result.set_exception(error)

    engine.call(function, done)
    return await result
