"""The asyncio client: the same shape as `playserve_client`, with `async with` and `await`.

::

    async with PolicyClient(address) as client, client.play("pong") as session:
        action = await session.step(frame)
"""

from playserve_client.aio.client import PolicyClient
from playserve_client.aio.rollout import Rollout
from playserve_client.aio.session import Session

__all__ = ["PolicyClient", "Rollout", "Session"]
