"""The client is thin: it imports without torch, without any extra, and quickly says what is missing."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from playserve.testing import FakePolicy, FakePolicyServer, default_spec

PROGRAM = """
import sys
for name in ("torch", "lz4", "lz4.block", "simplejpeg", "gymnasium", "ale_py", "cv2", "rich", "PIL", "pydantic"):
    sys.modules[name] = None
import numpy as np
import playserve_client, playserve_client.aio, playserve.testing
from playserve.testing import FakePolicyServer
from playserve_client import PolicyClient
with FakePolicyServer([1, 2]) as server, PolicyClient(server.address) as client, client.play("fake") as session:
    frame = np.zeros((2, 2, 3), np.uint8)
    assert [session.step(frame), session.step(frame)] == [1, 2]
print("played")
"""


def test_the_core_install_plays():
    done = subprocess.run([sys.executable, "-W", "error", "-c", PROGRAM], capture_output=True, text=True, timeout=100)
    assert (done.stdout, done.stderr) == ("played\n", "")


def test_importing_the_client_loads_no_heavy_module():
    program = "import playserve_client.aio, sys; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=100)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert loaded.isdisjoint({"torch", "lz4", "simplejpeg", "gymnasium", "ale_py", "nle", "cv2", "fastapi", "rich"})


def test_the_policies_command_lists_and_writes_json(capsys, tmp_path):
    from playserve.cli import main

    policy = FakePolicy(spec=default_spec("pong"), handler=lambda i, c: 0, aliases=("stable",), slots=3)
    with FakePolicyServer(policy) as server:
        assert main(["policies", "--server", server.address, "--json", str(tmp_path / "p.json")]) == 0
        table = capsys.readouterr().out.splitlines()
        assert table[0].split() == [
            "POLICY",
            "VERSION",
            "FAMILY",
            "INPUTS",
            "ACTIONS",
            "RATE",
            "SLOTS",
            "FREE",
            "ALIASES",
        ]
        assert table[1].split() == ["pong", "1", "fake", "frame:uint8[?,?,3]", "18", "any", "3/3", "stable"]
        assert json.loads((tmp_path / "p.json").read_text())[0]["spec"]["name"] == "pong"
        assert main(["policies", "--server", server.address, "--prefix", "z"]) == 0
        assert "holds no policies whose name starts with 'z'" in capsys.readouterr().out
    assert main(["policies", "--server", "127.0.0.1:1", "--timeout", "2"]) == 2
    assert "playserve: " in capsys.readouterr().err


@pytest.mark.parametrize("module", ["client", "session", "rollout", "streams"])
def test_the_sync_half_does_not_import_the_async_one(module):
    program = f"import playserve_client.{module}, sys; print('playserve_client.aio' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=100)
    assert done.stdout == "False\n"
