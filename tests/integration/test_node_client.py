"""The proto is enough outside Python: a Node.js program plays an Atari episode against the real server."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "client" / "examples" / "node"
_STEPS = 300
_OFFLINE = re.compile(r"ENOTFOUND|EAI_AGAIN|ETIMEDOUT|ECONNREFUSED|ECONNRESET|ENETUNREACH")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the example with its locked packages, in a folder of its own."""
    folder = tmp_path_factory.mktemp("node") / "example"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("node_modules"))
    done = subprocess.run(
        ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"],
        cwd=folder, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    if done.returncode and _OFFLINE.search(done.stderr):
        pytest.skip("missing system dependency: npm registry")
    assert done.returncode == 0, done.stderr
    return folder


def _play(program: Path, address: str, *args: str) -> subprocess.CompletedProcess[str]:
    command = ["node", "play.js", "--server", address, "--protos", str(ROOT / "proto"), "--python", sys.executable]
    return subprocess.run([*command, *args], cwd=program, capture_output=True, text=True, timeout=100, check=False)


@pytest.mark.node
@pytest.mark.timeout(300)
def test_node_plays_an_atari_episode(program: Path, serve: Callable[..., Any]) -> None:
    pytest.importorskip("ale_py")
    server = serve("atari")
    done = _play(program, server.address, "--policy", "atari", "--game", "freeway", "--max-steps", str(_STEPS))
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["steps"] == _STEPS
    assert sum(summary["actions"].values()) == _STEPS
    assert len(summary["actions"]) == 3  # an untrained policy samples all three
    assert (summary["policy"], summary["version"], summary["seed"]) == ("atari", "1", "1")
    # Errors are read by their documented reasons: of a step in-band, of a call in its trailers.
    assert summary["wrong_shape"] == "SHAPE_MISMATCH"
    assert summary["resume_after_close"] == "SESSION_NOT_FOUND"
    # Seeds mean the same to every client: the same episode again.
    again = _play(program, server.address, "--policy", "atari", "--max-steps", str(_STEPS))
    assert json.loads(again.stdout.splitlines()[-1]) == summary
    missing = _play(program, server.address, "--policy", "nobody")
    assert missing.returncode == 1
    assert "no policy 'nobody'" in missing.stderr
    assert "Traceback" not in server.log()
