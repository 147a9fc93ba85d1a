"""What every test shares: hypothesis settings, and skips for missing system dependencies, counted by name.

A test that needs a program of the system carries a marker of `_PROGRAMS`, or calls ``require_program("ffmpeg")``;
without the program it is skipped by name, and the run ends with the number of such tests and their names.
Needs nothing but pytest: `make gpu` runs it on bare machines.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

# Test tensors are tiny: more threads than one only make the two cores of a small machine fight. Before torch comes.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# gRPC tells of every connection that a test tears down.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

# A shell's background job ignores SIGINT, and so would every command that a test starts and interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

try:
    import hypothesis
except ImportError:
    pass
else:
    # Never timed: a busy machine must not fail a test. In CI the examples are the same in each run.
    hypothesis.settings.register_profile(
        "playserve",
        deadline=None,
        derandomize="CI" in os.environ,
        print_blob=True,
        suppress_health_check=[hypothesis.HealthCheck.too_slow],
    )
    hypothesis.settings.load_profile("playserve")

_MISSING = "missing system dependency: "
#: Programs that the tests of a marker need.
_PROGRAMS: dict[str, tuple[str, ...]] = {"node": ("node", "npm"), "triton": ("tritonserver",)}


def _present(program: str) -> bool:
    if program == "tritonserver":
        # Unpacked by tests/bench/peers/triton.py, which `make install` runs; tests never download it.
        cache = Path(os.environ.get("PLAYSERVE_TRITON_DIR") or Path(sys.prefix) / "triton")
        if any(cache.glob("nvidia-pytriton-*/pytriton/tritonserver/bin/tritonserver")):
            return True
    return shutil.which(program) is not None


def _require(program: str) -> None:
    if not _present(program):
        pytest.skip(_MISSING + program)


@pytest.fixture
def require_program() -> Callable[[str], None]:
    """Return a function that skips the running test when a program is not on PATH."""
    return _require


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests whose marker names a program that is not here."""
    for marker, programs in _PROGRAMS.items():
        if item.get_closest_marker(marker) is not None:
            for program in programs:
                _require(program)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how many tests were skipped for missing system dependencies, and which."""
    missing: dict[str, str] = {}
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if _MISSING in reason:
            missing[report.nodeid] = reason.partition(_MISSING)[2]
    terminalreporter.section("system dependencies")
    terminalreporter.write_line(f"tests skipped for missing system dependencies: {len(missing)}")
    for nodeid, program in sorted(missing.items()):
        terminalreporter.write_line(f"  {nodeid}: {program}")
    if missing:
        terminalreporter.write_line(
            "`make system-deps`, as root, installs what Debian has of them; `make bench` fetches tritonserver."
        )
