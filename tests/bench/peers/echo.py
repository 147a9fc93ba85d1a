"""A bare grpc.aio server: the probe of the machine that every figure is compared with.

Two services on one port:

* ``/playserve.v1.PolicyService/Play`` and ``/Rollout`` with our own messages: each request is parsed and answered with
  a newly built constant result. No session, no batch, no model. "The bare echo" of the budgets is this one.
* ``/bench.Raw/Echo``: bytes in, 64 bytes out, no protobuf at all: what gRPC itself costs.

``python tests/bench/peers/echo.py --port 50051``
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import os
import signal
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np

from playserve.specs import DiscreteActionSpec, PolicySpec, TensorSpec
from playserve.v1 import policy_service_pb2 as pb
from playserve.v1 import policy_service_pb2_grpc, types_pb2

__all__ = ["EchoServicer", "echo_command", "serve"]

_RAW_ANSWER = bytes(64)
_SPEC = PolicySpec(
    name="echo",
    version="1",
    family="bench",
    inputs=(TensorSpec(name="FRAME", dtype="uint8", shape=(84, 84, 3)),),
    action=DiscreteActionSpec(n=18),
).to_proto()


class EchoServicer(policy_service_pb2_grpc.PolicyServiceServicer):
    """Answers action 0 to everything."""

    async def Play(self, requests: AsyncIterator[pb.PlayRequest], context: Any) -> AsyncIterator[pb.PlayResponse]:
        """Echo one session."""
        async for request in requests:
            kind = request.WhichOneof("message")
            if kind == "step":
                step = request.step
                np.frombuffer(step.inputs[0].data, np.uint8)  # a server must at least touch the frame once
                yield pb.PlayResponse(
                    result=pb.StepResult(
                        seq=step.seq,
                        episode_id=step.episode_id,
                        actions=[types_pb2.Action(index=0)],
                        version="1",
                        capture_time_ns=step.capture_time_ns,
                        times=pb.StepTimes(total_us=1, batch_size=1),
                    )
                )
            elif kind == "open":
                yield pb.PlayResponse(opened=pb.Opened(session_id="echo", policy=_SPEC, max_steps_in_flight=64))
            elif kind == "ping":
                yield pb.PlayResponse(pong=pb.Pong(nonce=request.ping.nonce))
            elif kind == "close":
                return

    async def Rollout(
        self, requests: AsyncIterator[pb.RolloutRequest], context: Any
    ) -> AsyncIterator[pb.RolloutResponse]:
        """Echo many environments."""
        async for request in requests:
            kind = request.WhichOneof("message")
            if kind == "step":
                step = request.step
                np.frombuffer(step.inputs[0].data, np.uint8)
                yield pb.RolloutResponse(
                    result=pb.RolloutResult(
                        env_ids=step.env_ids,
                        episode_ids=step.episode_ids,
                        action_indices=[0] * len(step.env_ids),
                        version="1",
                        times=pb.StepTimes(total_us=1, batch_size=len(step.env_ids)),
                    )
                )
            elif kind == "open":
                yield pb.RolloutResponse(
                    opened=pb.RolloutOpened(
                        session_id="echo", policy=_SPEC, max_steps_in_flight=64, max_message_bytes=64 << 20
                    )
                )
            elif kind == "close":
                return


async def _raw_echo(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
    async for _ in requests:
        yield _RAW_ANSWER


def echo_command(*, uvloop: bool = True) -> list[str]:
    """Return the command that starts the echo, for ServerProcess."""
    return [sys.executable, os.path.abspath(__file__), "--port", "{port}", *([] if uvloop else ["--no-uvloop"])]


async def serve(port: int) -> None:
    """Serve on loopback until SIGTERM or SIGINT."""
    server = grpc.aio.server(options=(("grpc.max_receive_message_length", 64 << 20),))
    policy_service_pb2_grpc.add_PolicyServiceServicer_to_server(EchoServicer(), server)
    raw = {"Echo": grpc.stream_stream_rpc_method_handler(_raw_echo)}  # no (de)serializers: bytes as they are
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Raw", raw),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    gc.freeze()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await stop.wait()
    await server.stop(0.5)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--no-uvloop", dest="uvloop", action="store_false", help="use asyncio's own event loop")
    args = parser.parse_args()
    loop_factory = None
    if args.uvloop:
        with contextlib.suppress(ImportError):
            import uvloop

            loop_factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(serve(args.port))


if __name__ == "__main__":
    main()
