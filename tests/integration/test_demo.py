"""The demo end to end, tiny: broken off while it trains, taken up again by the same command."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import time
from pathlib import Path

import pytest

from playserve_trainer.processes import playserve_argv

PATIENCE_S = 100.0


def start(out: Path) -> subprocess.Popen[bytes]:
    command = [*playserve_argv(), "demo", "--quick", "--game", "breakout", "--out", str(out)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def read_until(process: subprocess.Popen[bytes], words: str) -> str:
    assert process.stdout is not None
    text, deadline = "", time.monotonic() + PATIENCE_S
    while words not in text:
        assert time.monotonic() < deadline, text
        if select.select([process.stdout], [], [], 1.0)[0]:
            chunk = os.read(process.stdout.fileno(), 65536)
            assert chunk, f"ended without {words!r}:\n{text}"
            text += chunk.decode()
    return text


@pytest.mark.timeout(240)
def test_a_tiny_demo_survives_an_interrupt_and_ends_with_its_page(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    first = start(out)
    read_until(first, "$ playserve train atari")
    first.send_signal(signal.SIGTERM)
    text, _ = first.communicate(timeout=PATIENCE_S)
    assert first.returncode == 130, text.decode()
    assert "the same command goes on from here" in text.decode()
    assert not (out / "index.html").exists()

    second = start(out)
    output, _ = second.communicate(timeout=PATIENCE_S)
    text = output.decode()
    assert second.returncode == 0, text
    assert text.count("finished by an earlier demo in this folder: kept") == 1
    for command in ("train atari --game breakout", "serve --store", "rollout atari --game breakout"):
        assert f"$ playserve {command}" in text
    assert "nothing is judged in a quick demo" in text

    record = json.loads((out / "demo.json").read_text())
    statuses = {stage["name"]: [attempt["status"] for attempt in stage["attempts"]] for stage in record["stages"]}
    assert statuses == {
        "record-breakout": ["finished"],
        "train-breakout": ["interrupted", "finished"],
        "serve": ["finished"],
        "play-breakout": ["finished"],
    }
    assert record["goals_met"] is None
    assert record["total_seconds"] > 0
    results = json.loads((out / "rollout/breakout/results.json").read_text())
    players = {row["key"].partition("-")[0] for row in results["rows"]}
    assert players == {"sample", "argmax", "random", "constant", "expert"}
    page = (out / "index.html").read_text(encoding="utf-8")
    digest = json.loads((out / "store/breakout/1/manifest.json").read_text())["data_digest"]
    assert digest in page
    assert "data:image/gif;base64," in page
