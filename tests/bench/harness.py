"""What the three benchmarks share: contenders, the event loop, the machine's description, progress, output."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import os
import platform
import shlex
import sys
from collections.abc import Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import grpc
from drivers.lanes import CHANNEL_OPTIONS, PlayLane
from peers.echo import echo_command
from peers.process import ServerProcess
from rich.console import Console

from playserve.v1 import policy_service_pb2 as pb
from playserve.v1 import policy_service_pb2_grpc

__all__ = [
    "BENCH_DIR", "add_server_arguments", "channel", "cpus_of", "echo_server", "machine", "report_console", "run_async",
    "server", "wait_for_policy", "write_json",
]  # fmt: skip

BENCH_DIR = Path(__file__).resolve().parent
_T = TypeVar("_T")

#: The server under test, as it is started when nothing else is said. {policy} is a factory of bench_policies.
DEFAULT_SERVER = (
    f"{shlex.quote(str(Path(sys.executable).with_name('playserve')))} serve "
    "--policy {policy}=bench_policies:{policy} --port {port}"
)


def add_server_arguments(parser: Any, *, policy: str) -> None:
    """Add the arguments that say which server is measured."""
    parser.add_argument(
        "--server",
        default=DEFAULT_SERVER,
        help="command of the server under test; {port} and {policy} are replaced; 'echo' measures the echo itself, to "
        "try the harness (default: %(default)s)",
    )
    parser.add_argument("--policy", default=policy, help="policy to open (default: %(default)s)")
    parser.add_argument("--pin", action="store_true", help="servers on core 0, drivers on core 1 (default: unpinned)")


def cpus_of(pin: bool) -> list[int] | None:
    """Return the servers' cores; pins this process to the other one when asked."""
    if not pin:
        return None
    os.sched_setaffinity(0, {1})
    return [0]


def server(command: str, policy: str, cpus: Sequence[int] | None = None) -> ServerProcess:
    """Return the server under test, not yet started."""
    if command == "echo":
        return echo_server(cpus)
    path = os.pathsep.join(filter(None, [str(BENCH_DIR), os.environ.get("PYTHONPATH", "")]))
    parts = [part.replace("{policy}", policy) for part in shlex.split(command)]
    return ServerProcess(parts, name="playserve", env={"PYTHONPATH": path}, cpus=cpus, ready_s=120.0)


def echo_server(cpus: Sequence[int] | None = None) -> ServerProcess:
    """Return the bare echo, not yet started."""
    return ServerProcess(echo_command(), name="echo", cpus=cpus)


def channel(address: str) -> grpc.aio.Channel:
    """Return a connection of its own to the server."""
    return grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)


async def wait_for_policy(address: str, policy: str, timeout_s: float = 120.0) -> None:
    """Return when a session of the policy can be opened: the port answers before the policy is warm."""
    async with channel(address) as connection, asyncio.timeout(timeout_s):
        while True:
            lane = PlayLane(connection, policy)
            try:
                await lane.open()
                await lane.close()
                return
            except grpc.aio.AioRpcError as error:
                if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.NOT_FOUND):
                    raise
                await asyncio.sleep(0.2)


async def list_policies(address: str) -> list[str]:
    """Return the names that the server can open."""
    async with channel(address) as connection:
        answer = await policy_service_pb2_grpc.PolicyServiceStub(connection).ListPolicies(pb.ListPoliciesRequest())
        return [policy.name for policy in answer.policies]


def run_async(work: Coroutine[Any, Any, _T]) -> _T:
    """Run on uvloop where it is installed: the driver should cost as little as it can."""
    loop_factory = None
    with contextlib.suppress(ImportError):
        import uvloop

        loop_factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(work)


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _steal_ticks() -> tuple[int, int]:
    fields = [int(value) for value in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return fields[7], sum(fields)


@contextlib.contextmanager
def machine(report: dict[str, Any]) -> Iterator[None]:
    """Describe the machine in `report["machine"]`, with its load before and the stolen time during the run."""
    import google.protobuf

    described: dict[str, Any] = {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "grpcio": grpc.__version__,
        "protobuf": google.protobuf.__version__,
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "load_before": os.getloadavg()[0],
    }
    report["machine"] = described
    steal, total = _steal_ticks()
    yield
    steal_after, total_after = _steal_ticks()
    described["stolen_share"] = round((steal_after - steal) / max(1, total_after - total), 4)
    described["load_after"] = os.getloadavg()[0]


def report_console() -> Console:
    """Return a console that is wide enough for the tables when its output goes to a file."""
    console = Console()
    return console if console.is_terminal else Console(width=150)


def write_json(path: Path | None, report: dict[str, Any]) -> None:
    """Write the report, if a path was given."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
