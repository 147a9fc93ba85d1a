"""Typed lines, and the numbers of a run."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from playserve.errors import BadSettingError
from playserve.settings import Consent, MouseDecode, Sampling, SamplingMode
from playserve_client.play.core import PlayCore, Rules
from playserve_client.play.stats import PlayStats, percentiles
from playserve_client.play.typed import HELP, Begin, Instruct, Line, Pause, Quit, Resume, Sample, Show, parse_line


@pytest.mark.parametrize(
    ("line", "meaning"),
    [
        ("", None),
        ("  \n", None),
        (" find the medkit \n", Instruct("find the medkit")),
        ("/none", Instruct("")),
        ("/new", Begin()),
        ("/pause", Pause()),
        ("/resume", Resume()),
        ("/quit\n", Quit()),
        ("/help", Show(HELP)),
        ("/argmax", Sample(Sampling(mode=SamplingMode.ARGMAX))),
        ("/temperature 0.5", Sample(Sampling(temperature=0.5))),
        ("/mouse conservative", Sample(Sampling(mouse_decode=MouseDecode.CONSERVATIVE))),
    ],
)
def test_lines_mean_something(line: str, meaning: Line | None) -> None:
    assert parse_line(line, Sampling()) == meaning


@pytest.mark.parametrize("line", ["/temperature 0", "/temperature hot", "/mouse rat", "/dance"])
def test_lines_that_mean_nothing_are_answered(line: str) -> None:
    assert isinstance(parse_line(line, Sampling()), Show)


def test_a_setting_keeps_the_others() -> None:
    cold = Sampling(temperature=0.5, mouse_decode=MouseDecode.MEAN)
    assert parse_line("/argmax", cold) == Sample(
        Sampling(mode=SamplingMode.ARGMAX, temperature=0.5, mouse_decode=MouseDecode.MEAN)
    )


def test_numbers_of_a_run_are_json() -> None:
    now = [0.0]
    stats, core = PlayStats(lambda: now[0]), PlayCore(Rules(), frozenset(), frozenset())
    for i in range(41):
        now[0] = i / 20
        stats.frame(now[0], 0.004)
    stats.applied(1.0, 1.012, 2.0)
    stats.error(BadSettingError("no"))
    assert stats.rate_hz() == pytest.approx(20)
    assert "20.0 Hz" in stats.line(core, "go")
    assert '"go"' in stats.line(core, "go")
    assert "waiting" in stats.line(core, "go")
    assert "may be" not in stats.line(core, "go")
    assert "may be watched" in PlayStats(lambda: 0.0, consent=Consent(watch=True)).line(core, "go")
    assert "may be watched and recorded" in PlayStats(lambda: 0.0, consent=Consent(True, True)).line(core, "go")
    report = json.loads(json.dumps(stats.report(core)))
    assert report["frame_interval_ms"]["p50"] == pytest.approx(50)
    assert report["capture_to_applied_ms"]["max"] == pytest.approx(12)
    assert report["capture_to_applied_without_model_ms"]["max"] == pytest.approx(10)
    assert percentiles([]) == {"count": 0}


def test_freed_memory_is_kept_where_the_c_library_can() -> None:
    # In a process of its own: it is for the whole process.
    program = (
        "import resource\n"
        "from playserve_client.play.memory import keep_freed_memory\n"
        "kept = keep_freed_memory()\n"
        "def faults():\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    for _ in range(20): bytearray(b'x' * 2_000_000)\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
        "faults()\n"
        "print(kept, faults())"
    )
    if not sys.platform.startswith("linux"):
        pytest.skip("for Linux")
    kept, faults = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.split()
    assert kept == "False" or int(faults) < 100  # 2 MB have some 500 pages; without it, each time
