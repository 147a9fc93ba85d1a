"""A real Triton server on a model repository, as `deploy/dev/unpack_triton.py` unpacks it; skips by name without."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

import playserve
import playserve_client
import playserve_services
import playserve_trainer

HOME = Path(os.environ.get("PLAYSERVE_TRITON", Path(sys.prefix) / "triton"))


def needs_triton() -> Path:
    """Return the folder of the server, or skip."""
    if not (HOME / "bin" / "tritonserver").exists():
        pytest.skip(f"no Triton server in {HOME}: python deploy/dev/unpack_triton.py --out {HOME}")
    return HOME


@contextlib.contextmanager
def triton_server(repository: Path, models: Sequence[str], log: Path) -> Iterator[str]:
    """Serve models; yield the gRPC address. The log goes to a file."""
    home = needs_triton()
    sources = [Path(module.__path__[0]).parent for module in (playserve, playserve_client, playserve_trainer,
                                                              playserve_services)]  # fmt: skip
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": f"{home / 'lib'}:{sysconfig.get_config_var('LIBDIR')}",
        "PYTHONPATH": ":".join([*map(str, sources), sysconfig.get_paths()["purelib"]]),
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "passive",
    }
    port = _free_port()
    address = f"127.0.0.1:{port}"
    command = [
        str(home / "bin" / "tritonserver"), f"--model-repository={repository}",
        f"--backend-directory={home / 'backends'}", "--model-control-mode=explicit",
        *(f"--load-model={name}" for name in models), "--grpc-address=127.0.0.1", f"--grpc-port={port}",
        "--allow-http=false", "--allow-metrics=false",
        f"--backend-config=python,shm-region-prefix-name=ps{os.getpid()}",
        "--log-verbose=0",
    ]  # fmt: skip
    with log.open("w") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)
    try:
        _wait(process, address, models, log)
        yield address
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free_port() -> int:
    """Return a port that is free now; Triton does not say which one it took of its own choice."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port: int = held.getsockname()[1]
        return port


def _wait(process: subprocess.Popen[bytes], address: str, models: Sequence[str], log: Path) -> None:
    with triton.InferenceServerClient(address) as client:
        for _ in range(3600):
            with contextlib.suppress(InferenceServerException):
                if all(client.is_model_ready(name) for name in models):
                    return
            assert process.poll() is None, f"Triton did not start:\n{log.read_text()[-4000:]}"
            time.sleep(0.05)
    raise AssertionError(f"Triton is not ready:\n{log.read_text()[-4000:]}")
