"""The control plane as a process of its own."""

from __future__ import annotations

import contextlib
import re
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from contract_kit.servers import environment, playserve

__all__ = ["ControlProcess", "serving_control"]


@dataclass
class ControlProcess:
    """A running `playserve control serve`.

    Attributes:
        process: The process.
        port: Of its REST.
        log_path: Where its log goes.
    """

    process: subprocess.Popen[str]
    port: int
    log_path: Path

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.port}"

    def status(self, path: str, method: str = "GET", body: bytes | None = None) -> int:
        """Return the status with which it answers a request."""
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, data=body, method=method, headers=headers)  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 - ours, by http
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    def log(self) -> str:
        """Return everything that it has logged."""
        return self.log_path.read_text(errors="replace")

    def kill(self) -> None:
        """End it as a crash does."""
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def serving_control(*flags: str, port: int = 0, wrapper: Sequence[str] = (), **env: str) -> Iterator[ControlProcess]:
    """Start `playserve control serve` and wait for its ready line; kill it on the way out.

    Args:
        flags: More of the command line.
        port: Where to serve; 0: any free one.
        wrapper: A program that runs the rest of its command line, in place of itself.
        env: More of the environment.
    """
    with tempfile.TemporaryDirectory(prefix="playserve-test-") as folder:
        log_path = Path(folder) / "stderr"
        with log_path.open("w") as stderr:
            process = subprocess.Popen(
                [*wrapper, *playserve("control", "serve", "--port", str(port), *flags)],
                stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment(**env),
            )  # fmt: skip
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            match = re.search(r"playserve control ready host=\S+ port=(\d+)", line)
            assert match, f"{line!r}, then: {log_path.read_text()}"
            yield ControlProcess(process, int(match[1]), log_path)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
