"""The committed generated code is what the pinned tools make of the .proto files, byte for byte."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from google.protobuf import runtime_version

ROOT = Path(__file__).resolve().parents[2]
GENERATED = ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py", "*_pb2_grpc.pyi")


def _generated(root: Path) -> dict[str, str]:
    paths = (path for pattern in GENERATED for path in root.rglob(pattern))
    return {path.relative_to(root).as_posix(): path.read_text(encoding="utf-8") for path in paths}


def test_committed_code_equals_regenerated_code(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools")
    pytest.importorskip("mypy_protobuf")
    import protogen

    protogen.check_tools()
    protogen.generate(tmp_path)
    made, committed = _generated(tmp_path), _generated(ROOT / "proto")
    assert sorted(made) == sorted(committed)
    assert [name for name in made if made[name] != committed[name]] == [], "run `make gen` and commit"


def test_code_runs_on_the_oldest_declared_protobuf() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        dependencies = tomllib.load(file)["project"]["dependencies"]
    floor = next(re.search(r">=([\d.]+)", entry) for entry in dependencies if entry.startswith("protobuf"))
    assert floor is not None
    for name, text in _generated(ROOT / "proto").items():
        if made := re.search(r"^# Protobuf Python Version: ([\d.]+)$", text, re.M):
            assert tuple(map(int, made[1].split("."))) <= tuple(map(int, floor[1].split("."))), name
    assert runtime_version.MAJOR == 6, "tritonclient needs protobuf < 7"
