"""Generates the Python code of every .proto in this tree: messages, services, and the types of both.

Knows protoc's arguments; `make gen` and the test that compares committed with generated code both come here. The
pinned grpcio-tools is the floor of our users' protobuf runtime (docs/decisions.md), so it is checked before use.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

__all__ = ["PROTO_ROOT", "WIRE_ROOT", "describe", "generate", "proto_files"]

REPOSITORY = Path(__file__).resolve().parents[2]
PROTO_ROOT = REPOSITORY / "proto"
#: The wire is ours to name and to check; playserve/p2p holds another project's file format, which is not.
WIRE_ROOT = PROTO_ROOT / "playserve/v1"


def proto_files(root: Path = PROTO_ROOT) -> list[str]:
    """Return the .proto files under `root`, relative to PROTO_ROOT, sorted."""
    return sorted(path.relative_to(PROTO_ROOT).as_posix() for path in root.rglob("*.proto"))


def check_tools() -> None:
    """Refuse generators other than those that pyproject.toml pins: other versions give other bytes."""
    with (REPOSITORY / "pyproject.toml").open("rb") as file:
        wanted = tomllib.load(file)["dependency-groups"]["dev"]
    for name in ("grpcio-tools", "mypy-protobuf"):
        pin = f"{name}=={version(name)}"
        if pin not in wanted:
            expected = ", ".join(entry for entry in wanted if entry.startswith(name))
            raise SystemExit(f"protogen: installed is {pin}, pyproject.toml pins {expected}")


def _protoc(root: Path, *arguments: str) -> None:
    import google.rpc  # its folder is where googleapis-common-protos put the sources that ours import

    include = Path(next(iter(google.rpc.__path__))).parents[1]
    # protoc finds the mypy plugins on PATH; they live beside this interpreter.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    protoc = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTO_ROOT}", f"-I{include}"]
    command = [*protoc, *arguments, *proto_files(root)]
    done = subprocess.run(command, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"protogen: protoc failed\n{done.stdout}{done.stderr}")


def generate(out: Path) -> None:
    """Write the generated code of every .proto under `out`, in the folders of its package."""
    messages = (f"--python_out={out}", f"--mypy_out=quiet:{out}")
    _protoc(PROTO_ROOT, *messages)
    _protoc(WIRE_ROOT, f"--grpc_python_out={out}", f"--mypy_grpc_out=quiet:{out}")


def describe(out: Path) -> None:
    """Write a serialized FileDescriptorSet of the wire's .proto files, comments included, to the file `out`."""
    _protoc(WIRE_ROOT, f"--descriptor_set_out={out}", "--include_source_info")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Generate the protobuf code.")
    parser.add_argument("--out", type=Path, required=True, help="folder that gets playserve/*/*_pb2*.py")
    check_tools()
    generate(parser.parse_args().out)
