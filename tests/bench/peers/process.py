"""Server processes of a benchmark: start, wait for the port, watch memory and CPU time, stop.

Self-contained on purpose (standard library and grpc only): tests load it by path.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc

__all__ = ["ServerProcess", "free_port"]

_CLOCK_TICKS_HZ = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def free_port() -> int:
    """Return a loopback port that is free now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def _fill(text: str, values: Mapping[str, str]) -> str:
    for name, value in values.items():
        text = text.replace(name, value)
    return text


class ServerProcess:
    """A server in a process of its own, as a context manager.

    Args:
        command: Program and arguments; ``{port}`` and ``{workdir}`` are replaced in each.
        name: For messages.
        env: Variables added to this process's environment.
        cpus: Cores to pin it to, or None.
        ready_s: Seconds to wait until the port answers.
        port: Port to use; None: a free one.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        name: str,
        env: Mapping[str, str] | None = None,
        cpus: Sequence[int] | None = None,
        ready_s: float = 60.0,
        port: int | None = None,
    ) -> None:
        self.name = name
        self.port = free_port() if port is None else port
        self._command = list(command)
        self._env = {**os.environ, **(env or {})}
        self._cpus = cpus
        self._ready_s = ready_s
        self._process: subprocess.Popen[bytes] | None = None
        self._dir: Path | None = None

    @property
    def address(self) -> str:
        """``host:port`` of the gRPC endpoint."""
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Process id of the server; its children are counted with it by the meters below."""
        assert self._process is not None, f"{self.name} is not running"
        return self._process.pid

    def log(self, tail: int = 4000) -> str:
        """Return the last characters of what the server printed."""
        if self._dir is None:
            return ""
        return (self._dir / "log").read_text(errors="replace")[-tail:]

    def __enter__(self) -> Self:
        self._dir = Path(tempfile.mkdtemp(prefix=f"playserve-bench-{self.name}-"))
        command = [
            part.replace("{port}", str(self.port)).replace("{workdir}", str(self._dir)) for part in self._command
        ]
        if self._cpus is not None:
            command = ["taskset", "-c", ",".join(map(str, self._cpus)), *command]
        with (self._dir / "log").open("wb") as log:
            self._process = subprocess.Popen(  # a session of its own, so that children can be ended with it
                command, env=self._env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        ready = threading.Event()
        deadline = time.monotonic() + self._ready_s
        with grpc.insecure_channel(self.address, options=(("grpc.initial_reconnect_backoff_ms", 100),)) as channel:
            channel.subscribe(
                lambda state: ready.set() if state is grpc.ChannelConnectivity.READY else None, try_to_connect=True
            )
            while not ready.wait(0.1):
                if self._process.poll() is not None:
                    raise RuntimeError(f"{self.name} exited with {self._process.returncode}:\n{self.log()}")
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{self.name} did not answer within {self._ready_s:g} s:\n{self.log()}")

    def stop(self, grace_s: float = 10.0) -> None:
        """End the server: SIGTERM, and SIGKILL to its whole process group after `grace_s`."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(grace_s)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
        if self._dir is not None:
            shutil.rmtree(self._dir, ignore_errors=True)
            self._dir = None
        self._process = None

    def _pids(self) -> list[int]:
        """Return the server and all its descendants."""
        found, waiting = [], [self.pid]
        while waiting:
            pid = waiting.pop()
            found.append(pid)
            for task in Path(f"/proc/{pid}/task").glob("*/children"):
                waiting += [int(child) for child in task.read_text().split()]
        return found

    def rss_bytes(self) -> int:
        """Resident memory of the server and its children, in bytes."""
        return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES for pid in self._pids())

    def cpu_s(self) -> float:
        """CPU time used so far by the server and its children, in seconds."""
        total = 0
        for pid in self._pids():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
        return total / _CLOCK_TICKS_HZ
