"""Runs every test marked `gpu` (GPU benchmarks are tests marked `gpu` and `bench`) on a bare, offline machine.

It installs nothing into the machine's Python: our source roots go on PYTHONPATH, and the wheels in `.wheels/`, for
what the machine lacks, are unpacked into a folder of their own (`make gpu-wheels` fetches them where there is a
network). Only test files that hold a GPU mark are collected, so that the rest of the suite's needs do not matter.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
SOURCE_ROOTS = ("proto", "client", "trainer", "services")
NO_TESTS_COLLECTED = 5
#: What GPU tests import, by module, and the distribution that has it. A machine with torch has most of them.
NEEDED = {
    "numpy": "numpy",
    "pytest": "pytest",
    "grpc": "grpcio",
    "google.protobuf": "protobuf",
    "google.rpc.status_pb2": "googleapis-common-protos",
    "fsspec": "fsspec",
    "safetensors": "safetensors",
    "prometheus_client": "prometheus-client",
}


def device_name() -> str:
    """Return the CUDA device's name; empty when there is no torch or no device."""
    if importlib.util.find_spec("torch") is None:
        return ""
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else ""


def unpacked_wheels(folder: Path = REPOSITORY / ".wheels", target: Path = REPOSITORY / "build/gpu-site") -> list[str]:
    """Unpack the wheels of a folder, if there are any, and return `target` as a list of import roots.

    A wheel is a zip file of what is imported; a bare machine may have no pip.
    """
    wheels = sorted(folder.glob("*.whl"))
    if not wheels:
        return []
    shutil.rmtree(target, ignore_errors=True)
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(target)
    return [str(target)]


def missing(path: str) -> list[str]:
    """Return the distributions that GPU tests need and that cannot be imported with PYTHONPATH `path`."""
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    try:\n        importlib.import_module(name)\n"
        "    except ImportError:\n        print(name)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *NEEDED],
        env={**os.environ, "PYTHONPATH": path}, check=True, capture_output=True, text=True,
    )  # fmt: skip
    return [NEEDED[name] for name in done.stdout.split()]


def gpu_tests() -> list[str]:
    """Return the test files that hold a GPU mark."""
    paths = sorted((REPOSITORY / "tests").rglob("test_*.py"))
    return [str(path.relative_to(REPOSITORY)) for path in paths if "mark.gpu" in path.read_text(encoding="utf-8")]


def main(arguments: list[str]) -> int:
    """Run the tests; without a CUDA device say so and succeed."""
    device = device_name()
    tests = gpu_tests()
    if not device:
        print(f"make gpu: no CUDA device here; skipped {len(tests)} files with GPU tests: {', '.join(tests) or 'none'}")
        return 0
    print(f"make gpu: {device}, {len(tests)} files")
    if not tests:
        return 0
    roots = [str(REPOSITORY / root) for root in SOURCE_ROOTS] + unpacked_wheels()
    path = os.pathsep.join([*roots, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    if lacking := missing(path):
        print(
            f"make gpu: {sys.executable} lacks {', '.join(lacking)}; where there is a network, run "
            f"`make gpu-wheels GPU_WHEELS='{' '.join(lacking)}'`, and bring .wheels/ along with the working tree"
        )
        return 1
    command = [sys.executable, "-m", "pytest", "-c", "deploy/dev/pytest-gpu.ini", f"--rootdir={REPOSITORY}"]
    done = subprocess.run(
        [*command, *arguments, *tests], cwd=REPOSITORY, env={**os.environ, "PYTHONPATH": path}, check=False
    )
    return 0 if done.returncode == NO_TESTS_COLLECTED else done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
