"""Runs every test marked `gpu` (GPU benchmarks are tests marked `gpu` and `bench`) on a bare, offline machine.

It installs nothing into the machine's Python: our source roots go on PYTHONPATH, and wheels that lie in `.wheels/`
(for what the machine lacks; googleapis-common-protos for one) are unpacked into a folder of their own. Only test files
that hold a GPU mark are collected, so that the rest of the suite's needs do not matter.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
SOURCE_ROOTS = ("proto", "client", "trainer", "services")
NO_TESTS_COLLECTED = 5


def device_name() -> str:
    """Return the CUDA device's name; empty when there is no torch or no device."""
    if importlib.util.find_spec("torch") is None:
        return ""
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else ""


def unpacked_wheels() -> list[str]:
    """Unpack .wheels/*.whl, if there are any, and return the folder as a list of import roots."""
    wheels = [str(path) for path in sorted((REPOSITORY / ".wheels").glob("*.whl"))]
    if not wheels:
        return []
    target = str(REPOSITORY / "build/gpu-site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--upgrade"]
    subprocess.run([*pip, "--target", target, *wheels], check=True)
    return [target]


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
    command = [sys.executable, "-m", "pytest", "-c", "deploy/dev/pytest-gpu.ini", f"--rootdir={REPOSITORY}"]
    done = subprocess.run(
        [*command, *arguments, *tests], cwd=REPOSITORY, env={**os.environ, "PYTHONPATH": path}, check=False
    )
    return 0 if done.returncode == NO_TESTS_COLLECTED else done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
