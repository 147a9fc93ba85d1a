"""Processes of this machine that share a run, without torchrun."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from playserve.errors import BadSettingError, ServerFault
from playserve_trainer.train.local import local_processes
from playserve_trainer.train.parallel import processes

_RUN = [sys.executable, "-c", "import sys; from playserve.cli import main; sys.exit(main())", "train", "atari"]


@pytest.fixture
def command(record_toy: Callable[..., Path], tmp_path: Path) -> list[str]:
    """A small run of two processes."""
    return [
        *_RUN, "--game", "toy", "--data", str(record_toy()), "--out", str(tmp_path / "run"), "--width", "1",
        "--batch-size", "16", "--eval-samples", "32", "--processes", "2",
    ]  # fmt: skip


def test_a_run_of_two_processes_ends_with_one_checkpoint(command: list[str], tmp_path: Path) -> None:
    done = subprocess.run([*command, "--max-steps", "20"], capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    out = tmp_path / "run"
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["finished"], summary["processes"], summary["samples_seen"]) == (True, 2, 320)
    assert (out / "checkpoint" / "manifest.json").exists()
    assert (out / "process-1.log").read_text() == ""  # the first process alone reports
    assert "Warning" not in done.stderr


def test_an_interrupt_of_the_first_stops_all_and_the_run_goes_on(command: list[str], tmp_path: Path) -> None:
    run = subprocess.Popen([*command, "--minutes", "2"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.1)
    run.send_signal(signal.SIGINT)  # as `playserve demo` does: to the process that it started alone
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 128 + signal.SIGINT, errors[-2000:]
    assert (tmp_path / "run" / "state.safetensors").exists()
    step = json.loads(metrics.read_text().splitlines()[-1])["step"]
    again = [*_RUN, "--out", str(tmp_path / "run"), "--game", "toy", "--resume", "--max-steps", f"{step + 5}"]
    done = subprocess.run(again, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["processes"] == 1


def test_a_process_that_dies_is_named_with_what_it_said(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('no memory left')"]
    with (
        pytest.raises(ServerFault, match=r"(?s)process 1 ended with status 1.*no memory left"),
        local_processes(2, tmp_path, command),
    ):
        raise RuntimeError("connection closed by peer")


def test_a_process_that_dies_before_it_joins_leaves_nobody_waiting(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('no such device')"]
    with (
        pytest.raises(ServerFault, match=r"(?s)process 1 ended with status 1.*no such device"),
        local_processes(2, tmp_path, command),
        processes(),
    ):
        pytest.fail("it joined nobody")


def test_others_learn_their_ranks_and_this_process_forgets_its_own(tmp_path: Path) -> None:
    show = "import os; print(os.environ['RANK'], os.environ['LOCAL_RANK'], os.environ['WORLD_SIZE'])"
    before = dict(os.environ)
    with local_processes(3, tmp_path, [sys.executable, "-c", show]):
        assert (os.environ["RANK"], os.environ["WORLD_SIZE"]) == ("0", "3")
    assert dict(os.environ) == before
    assert [(tmp_path / f"process-{rank}.log").read_text().split() for rank in (1, 2)] == [
        ["1", "1", "3"],
        ["2", "2", "3"],
    ]


def test_what_contradicts_torchrun_or_is_no_number_of_processes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BadSettingError, match="at least 1, not 0"), local_processes(0, tmp_path):
        pass
    monkeypatch.setenv("WORLD_SIZE", "4")
    with local_processes(4, tmp_path), local_processes(1, tmp_path):
        pass
    with pytest.raises(BadSettingError, match="torchrun started 4"), local_processes(2, tmp_path):
        pass
