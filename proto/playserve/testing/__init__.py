"""A fake server for users' own tests: the whole session protocol, in process, with no torch and no weights.

::

    with FakePolicyServer({"pong": lambda inputs, context: 2}) as server:
        with PolicyClient(server.address) as client, client.play("pong") as session:
            assert session.step(frame) == 2

It is held to the contract by the same suite as the real server.
"""

from playserve.testing.policies import (
    FakePolicy,
    FakeReply,
    Handler,
    StepContext,
    default_spec,
    desktop_spec,
    script,
)
from playserve.testing.server import FakePolicyServer

__all__ = [
    "FakePolicy", "FakePolicyServer", "FakeReply", "Handler", "StepContext", "default_spec", "desktop_spec", "script",
]  # fmt: skip
