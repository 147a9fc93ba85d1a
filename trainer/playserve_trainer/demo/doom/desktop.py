"""Episodes through the whole desktop loop: a visible game on a display of its own, captured and played over gRPC.

Each run has an X server (Xvfb), the game's window (:mod:`.window`) and ``playserve play``, which sees nothing but the
window's pixels and does nothing but press keys and move the mouse.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from playserve.errors import NotReadyError, ServerFault
from playserve.files import write_json
from playserve_trainer.demo.doom.plan import POLICY, DoomPlan, first_goal
from playserve_trainer.demo.files import read_json
from playserve_trainer.processes import before_exec, playserve_argv, stop_process
from playserve_trainer.wording import utc_now

__all__ = ["RESULTS_NAME", "desktop_folder", "missing_for_desktop", "play_command", "play_desktop"]

RESULTS_NAME = "results.json"
_TITLE = "vizdoom"
_START_S = 90.0
# Longest that an episode may take before the game counts as hung: the longest scenario is 52 s.
_EPISODE_S = 180.0

Progress = Callable[[str, int, float], None]


def desktop_folder(scenario: str, out: Path) -> Path:
    """Return where a scenario's desktop results lie."""
    return out / "desktop" / scenario


def missing_for_desktop() -> str:
    """Return what a desktop loop lacks on this machine; empty: nothing."""
    if sys.platform != "linux" or shutil.which("Xvfb") is None:
        return "Xvfb is not installed (`make system-deps`)"
    absent = [name for name in ("mss", "pynput", "Xlib") if importlib.util.find_spec(name) is None]
    return f"packages are missing: {', '.join(absent)} (pip install 'playserve[play]')" if absent else ""


def play_command(server: str, out: Path) -> tuple[str, ...]:
    """Return the arguments of ``playserve`` that play the window."""
    return ("play", "--server", server, "--policy", POLICY, "--window", _TITLE, "--seed", "0", "--out", f"{out}")


class _Program:
    """A child whose stdout lines wait in a queue, None after the last; its stderr goes to a file."""

    def __init__(self, argv: list[str], env: dict[str, str], log: Path) -> None:
        self.log = log
        with log.open("wb") as errors:
            self.process = subprocess.Popen(
                argv, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, bufsize=1,
                process_group=0, preexec_fn=before_exec(),
            )  # fmt: skip
        self._lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None  # noqa: S101 - it was opened with a pipe
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def event(self, timeout_s: float, what: str) -> dict[str, Any]:
        """Return the next line of JSON; ServerFault where the program ended or says nothing."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise ServerFault(f"waited {timeout_s:g} s for {what}; see {self.log}") from None
            if line is None:
                raise ServerFault(f"the game ended (status {self.process.wait()}) before {what}:\n{self.tail()}")
            with contextlib.suppress(ValueError):
                value = json.loads(line)
                if isinstance(value, dict):
                    return value

    def type(self, line: str) -> None:
        """Write a line to its stdin; one that has ended is noticed elsewhere."""
        assert self.process.stdin is not None  # noqa: S101 - it was opened with a pipe
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()

    def tail(self) -> str:
        """Return the last lines of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-5:])

    def close(self) -> None:
        """End it."""
        stop_process(self.process, signal.SIGTERM)
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


def play_desktop(
    plan: DoomPlan, scenario: str, server: str, out: Path, progress: Progress = lambda _scenario, _number, _score: None
) -> dict[str, Any]:
    """Play one scenario at a display of its own; write and return what came out.

    Args:
        plan: How many episodes, in a window of which size.
        scenario: Its first goal is played, with unseen phrasings.
        server: Where the policy is served.
        out: Folder of the whole recipe.
        progress: Told of each episode: scenario, number, score.

    Raises:
        ServerFault: A program ended early or hangs.
        NotReadyError: The display or the window did not come up.
    """
    folder = desktop_folder(scenario, out)
    folder.mkdir(parents=True, exist_ok=True)
    report = folder / "play.json"
    command = play_command(server, report)
    episodes: list[dict[str, Any]] = []
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        display = stack.enter_context(_display(folder / "xvfb.log"))
        env = _environment(display)
        window = [sys.executable, "-m", "playserve_trainer.demo.doom.window", scenario, f"{plan.desktop_episodes}",
                  "--screen", plan.desktop_screen]  # fmt: skip
        game = _Program(window, env, folder / "window.log")
        stack.callback(game.close)
        game.event(_START_S, "its window")
        _focus(display)
        player = _Program([*playserve_argv(), *command], env, folder / "play.log")
        stack.callback(player.close)
        _until(lambda: "resumes" in player.log.read_text(errors="replace"), player, "playserve play")
        game.type("go")
        while "over" not in (event := game.event(_EPISODE_S, "the end of an episode")):
            if player.process.poll() is not None:
                raise ServerFault(f"playserve play ended with status {player.process.returncode}:\n{player.tail()}")
            if "begins" in event:
                player.type("/new")
                player.type(str(event["instruction"]))
            elif "episode" in event:
                episodes.append(event)
                progress(scenario, int(event["episode"]), float(event["score"]))
        player.type("/quit")
        _until(lambda: player.process.poll() is not None, None, "the end of playserve play")
    value = {
        "scenario": scenario,
        "goal": first_goal(scenario),
        "screen": plan.desktop_screen,
        "command": ["playserve", *command],
        "seconds": round(time.monotonic() - started, 1),
        "finished_at": utc_now(),
        "episodes": episodes,
        "play": read_json(report),
    }
    write_json(folder / RESULTS_NAME, value)
    return value


def _until(done: Callable[[], bool], program: _Program | None, what: str) -> None:
    deadline = time.monotonic() + _START_S
    while not done():
        if program is not None and program.process.poll() is not None:
            raise ServerFault(f"{what} ended with status {program.process.returncode}:\n{program.tail()}")
        if time.monotonic() > deadline:
            raise NotReadyError(f"waited {_START_S:g} s for {what}")
        time.sleep(0.05)


def _environment(display: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key not in ("WAYLAND_DISPLAY", "XAUTHORITY")}
    return {**kept, "DISPLAY": display, "SDL_VIDEODRIVER": "x11", "SDL_AUDIODRIVER": "dummy"}


@contextlib.contextmanager
def _display(log: Path) -> Iterator[str]:
    """Run an X server; yield its display."""
    read, write = os.pipe()
    with log.open("wb") as errors:
        process = subprocess.Popen(
            ["Xvfb", "-displayfd", str(write), "-screen", "0", "1024x768x24", "-nolisten", "tcp", "-ac"],
            pass_fds=(write,), stdin=subprocess.DEVNULL, stdout=errors, stderr=errors, process_group=0,
            preexec_fn=before_exec(),
        )  # fmt: skip
    os.close(write)
    try:
        with os.fdopen(read) as numbers:
            number = numbers.readline().strip()  # comes when the server takes clients; empty where it has died
        if not number:
            raise NotReadyError(f"Xvfb did not start; see {log}")
        yield f":{number}"
    finally:
        stop_process(process, signal.SIGTERM)


def _focus(display: str) -> None:
    """Give the game's window the focus, as a click does: there is no window manager."""
    from Xlib import X
    from Xlib import display as xdisplay

    connection = xdisplay.Display(display)
    try:
        deadline = time.monotonic() + _START_S
        while True:
            children = connection.screen().root.query_tree().children
            found = [child for child in children if _TITLE in str(child.get_wm_name()).lower()]
            if found:
                break
            if time.monotonic() > deadline:
                raise NotReadyError(f"no window of {_TITLE} on {display}")
            time.sleep(0.05)
        found[0].configure(stack_mode=X.Above)
        found[0].set_input_focus(X.RevertToNone, X.CurrentTime)
        connection.sync()
    finally:
        connection.close()
