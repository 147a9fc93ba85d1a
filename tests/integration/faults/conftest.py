"""What the tests of faults share: reading metrics, a registry with one policy, a disk of its own for one process."""

from __future__ import annotations

import re
import shutil
import subprocess
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from contract_kit.control import ControlProcess

_LINE = re.compile(r"(\S+(?:\{.*\})?) (\S+)")
#: Of servers whose bystander is compared with an undisturbed game.
EXACT = ("--max-batch", "4", "--fixed-batch", "--slots", "8", "--metrics-port", "0")


def read_metrics(url: str) -> dict[str, float]:
    """Return every sample at a URL, by its name with labels."""
    with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310 - ours, by http
        text = answer.read().decode()
    found = (_LINE.fullmatch(line) for line in text.splitlines() if not line.startswith("#"))
    return {match[1]: float(match[2]) for match in found if match}


@pytest.fixture
def metrics() -> Callable[[Any], dict[str, float]]:
    """Return a function that reads the metrics of a server, or of a control plane."""

    def read(process: Any) -> dict[str, float]:
        if isinstance(process, ControlProcess):
            return read_metrics(f"{process.url}/metrics")
        return read_metrics(f"http://{process.address_of('metrics')}/metrics")

    return read


@pytest.fixture
def store(tmp_path: Path, publish: Callable[..., str]) -> Path:
    """Return a store that holds version 1 of the policy `bot`."""
    folder = tmp_path / "store"
    assert publish(folder, "bot", seed=1, hidden=8) == "1"
    return folder


@pytest.fixture
def replica_flags(store: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """Return a function that gives the flags of a replica that follows a control plane."""

    def flags(control: ControlProcess, name: str, *more: str, cache: Path | None = None) -> list[str]:
        kept = cache or tmp_path / "view.json"
        return [*EXACT, "--store", str(store), "--registry", control.url, "--registry-poll-s", "0.1", "--anonymous",
                "--registry-cache", str(kept), "--replica", name, *more]  # fmt: skip

    return flags


@pytest.fixture
def registered(store: Path) -> Callable[[ControlProcess], ControlProcess]:
    """Return a function that has a new control plane know `bot`, and its version 1 as stable."""

    def tell(control: ControlProcess) -> ControlProcess:
        assert control.status("/v1/store/sync", "POST") == 200
        assert control.status("/v1/policies/bot/aliases/stable", "PUT", b'{"version": "1"}') == 200
        return control

    return tell


@dataclass(frozen=True)
class Disk:
    """A small disk that one process alone sees.

    Attributes:
        folder: Where it is, for that process.
        wrapper: Runs a command line that has it.
    """

    folder: Path
    wrapper: tuple[str, ...]

    def seen_from_here(self, process: subprocess.Popen[str]) -> Path:
        """Return where it is for us."""
        return Path(f"/proc/{process.pid}/root{self.folder}")

    def fill(self, process: subprocess.Popen[str]) -> Path:
        """Leave no room on it; return the file to remove again."""
        ballast = self.seen_from_here(process) / "ballast"
        with pytest.raises(OSError, match="No space left"), ballast.open("wb", buffering=0) as file:  # noqa: PT012
            while True:
                file.write(b"x" * 512)
        return ballast


@pytest.fixture
def small_disk(tmp_path: Path) -> Disk:
    """Return a disk of 2 MiB; skip by name where nobody may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c",
             'mount -t tmpfs -o size=2m tmpfs "$0" && exec "$@"', str(folder))  # fmt: skip
    if not shutil.which("unshare") or subprocess.run([*mount, "true"], capture_output=True, check=False).returncode:
        pytest.skip("missing system feature: user namespaces that may mount a tmpfs")
    return Disk(folder, mount)
