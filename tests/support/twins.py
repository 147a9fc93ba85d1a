"""What makes the sync client and the async one alike in a test.

The sync client's methods return values and the async one's awaitables; `settle` makes them alike. The fake server has
threads of its own, so a sync call that blocks the event loop of a test hurts nobody.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import playserve_client
from playserve_client import aio

#: The client of each kind, by the name that tests are parametrized with.
CLIENTS: dict[str, Any] = {"sync": playserve_client.PolicyClient, "aio": aio.PolicyClient}


async def settle(value: Any) -> Any:
    """Return a value, or what an awaitable gives."""
    return await value if inspect.isawaitable(value) else value


@asynccontextmanager
async def client(kind: str, address: str, **options: Any) -> AsyncIterator[Any]:
    """Make a client, and close it."""
    item = CLIENTS[kind](address, **options)
    try:
        yield item
    finally:
        await settle(item.close())


@asynccontextmanager
async def opened(opening: Any) -> AsyncIterator[Any]:
    """Open a session or a rollout of either client, and close it."""
    item = await settle(opening)
    try:
        yield item
    finally:
        await settle(item.close())
