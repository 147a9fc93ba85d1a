"""A saturating `Rollout` stream: environments that cost nothing, so that every answered row is sent again at once.

As a program it runs until SIGTERM (or for ``--rows`` rows) in a process of its own and prints one JSON line:
``python tests/bench/drivers/rollout.py --address 127.0.0.1:50051 --policy NAME --envs 64``
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import grpc

# Run as a program, this file's folder is what Python has on its path, not its parent.
if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from drivers.lanes import CHANNEL_OPTIONS, LaneError, fill_inputs
from playserve.v1 import policy_service_pb2 as pb
from playserve.v1 import policy_service_pb2_grpc

__all__ = ["RolloutDriver", "RolloutStats", "rollout_command"]


@dataclass(slots=True)
class RolloutStats:
    """What a rollout saw.

    Attributes:
        rows: Rows answered.
        messages: Messages that they came in.
        seconds: Time from the first step sent to the last answer.
        max_compute_us: Largest model time of one dispatch.
        max_batch: Largest batch.
    """

    rows: int = 0
    messages: int = 0
    seconds: float = 0.0
    max_compute_us: int = 0
    max_batch: int = 0


class RolloutDriver:
    """One Rollout stream over `envs` environments, one row of each in flight.

    Args:
        channel: Channel to open it on.
        policy: Policy name.
        envs: Environments.
        episode_steps: Rows of an environment before its episode id rises; 0: never.
    """

    def __init__(self, channel: grpc.aio.Channel, policy: str, envs: int = 64, episode_steps: int = 0) -> None:
        self._stub = policy_service_pb2_grpc.PolicyServiceStub(channel)
        self._policy = policy
        self._envs = envs
        self._episode_steps = episode_steps
        self._steps = [0] * envs
        self.stats = RolloutStats()
        self._rows_of: dict[int, list[Any]] = {}

    def _step(self, specs: Any, env_ids: list[int]) -> pb.RolloutRequest:
        inputs = self._rows_of.get(len(env_ids))
        if inputs is None:
            inputs = self._rows_of[len(env_ids)] = fill_inputs(specs, rows=len(env_ids))
        episodes = []
        for env in env_ids:
            episodes.append(1 + (self._steps[env] // self._episode_steps if self._episode_steps else 0))
            self._steps[env] += 1
        return pb.RolloutRequest(
            step=pb.RolloutStep(
                env_ids=env_ids, episode_ids=episodes, episode_seeds=[e * 100_000 for e in episodes], inputs=inputs
            )
        )

    async def run(self, rows: int | None, stop: Callable[[], bool] = lambda: False) -> RolloutStats:
        """Saturate the stream until `rows` rows are answered or `stop()` is true; then close it."""
        call = self._stub.Rollout()
        await call.write(pb.RolloutRequest(open=pb.RolloutOpen(policy=self._policy, num_envs=self._envs, seed=1)))
        response = await call.read()
        if response is grpc.aio.EOF or response.WhichOneof("message") != "opened":
            raise LaneError(f"RolloutOpen was answered with {response} {await call.details() if call.done() else ''}")
        specs = response.opened.policy.inputs
        start = time.perf_counter()
        await call.write(self._step(specs, list(range(self._envs))))
        outstanding, stats = self._envs, self.stats
        while outstanding:
            response = await call.read()
            if response is grpc.aio.EOF:
                raise LaneError(f"the stream ended: {await call.code()}: {await call.details()}")
            if not response.HasField("result"):
                raise LaneError(f"a row was answered with {response}")
            env_ids = list(response.result.env_ids)
            outstanding -= len(env_ids)
            stats.rows += len(env_ids)
            stats.messages += 1
            stats.max_compute_us = max(stats.max_compute_us, response.result.times.compute_us)
            stats.max_batch = max(stats.max_batch, response.result.times.batch_size)
            if not stop() and (rows is None or stats.rows + outstanding < rows):
                await call.write(self._step(specs, env_ids))
                outstanding += len(env_ids)
        stats.seconds = time.perf_counter() - start
        await call.write(pb.RolloutRequest(close=pb.Close(reason="bench")))
        await call.done_writing()
        while await call.read() is not grpc.aio.EOF:
            pass
        return stats


def rollout_command(address: str, policy: str, envs: int) -> list[str]:
    """Return the command that saturates a server from a process of its own."""
    return [sys.executable, os.path.abspath(__file__), "--address", address, "--policy", policy, "--envs", str(envs)]


async def _main(args: argparse.Namespace) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    async with grpc.aio.insecure_channel(args.address, options=CHANNEL_OPTIONS) as channel:
        stats = await RolloutDriver(channel, args.policy, args.envs).run(args.rows, stopping.is_set)
    print(json.dumps(asdict(stats)))  # noqa: T201


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Saturate one Rollout stream.")
    parser.add_argument("--address", required=True)
    parser.add_argument("--policy", required=True)
    parser.add_argument("--envs", type=int, default=64)
    parser.add_argument("--rows", type=int, help="stop after so many rows (default: at SIGTERM)")
    args = parser.parse_args()
    loop_factory = None
    with contextlib.suppress(ImportError):
        import uvloop

        loop_factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(_main(args))


if __name__ == "__main__":
    main()
