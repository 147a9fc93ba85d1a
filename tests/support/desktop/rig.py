"""What desktop tests share: programs whose lines can be waited for, a scripted desktop policy, `playserve play`."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from desktop.xserver import XServer
from playserve.actions import DesktopAction
from playserve.settings import ActionSource
from playserve.specs import DesktopActionSpec, GapMode, GapRule, ImageFormat, PolicySpec, TensorSpec
from playserve.testing import FakePolicy, FakePolicyServer, StepContext

__all__ = [
    "IDLE",
    "KEYS",
    "Program",
    "Script",
    "Seen",
    "desktop_spec",
    "find_window",
    "focus",
    "playing",
    "scripted",
    "wait_until",
]

SUPPORT = Path(__file__).resolve().parents[1]
LIMIT_S = 120.0  # machines that do other things too have taken 80
IDLE = DesktopAction()
KEYS = ("KeyW", "KeyA", "KeyS", "KeyD", "Space", "ShiftLeft", "ArrowLeft", "ArrowRight")


def wait_until(probe: Callable[[], Any], what: str) -> Any:
    """Return what `probe` returns once that is true."""
    deadline = time.monotonic() + LIMIT_S
    while not (found := probe()):
        assert time.monotonic() < deadline, f"waited {LIMIT_S:g} s for {what}"
        time.sleep(0.01)
    return found


class Program:
    """A process whose lines are collected: JSON where they are, else text."""

    def __init__(self, command: list[str], env: dict[str, str], cwd: Path | None = None) -> None:
        path = os.pathsep.join(filter(None, [str(SUPPORT), env.get("PYTHONPATH", "")]))
        self.process = subprocess.Popen(
            command, env={**env, "PYTHONPATH": path}, cwd=cwd, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, bufsize=1, start_new_session=True,
        )  # fmt: skip
        self.lines: list[Any] = []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            try:
                self.lines.append(json.loads(line))
            except ValueError:
                self.lines.append(line.rstrip("\n"))

    def wait_for(self, wanted: Callable[[Any], bool], what: str, after: int = 0) -> Any:
        """Return the first line from number `after` on for which `wanted` is true."""

        def found() -> Any:
            lines = self.lines[after:]
            hits = [line for line in lines if isinstance(line, dict) and wanted(line)]
            assert hits or self.process.poll() is None, (
                f"ended ({self.process.poll()}) before {what}: {self.lines[-20:]}"
            )
            return hits[:1]

        return wait_until(found, what)[0]

    def type(self, line: str) -> None:
        """Type a line."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def text(self) -> str:
        """Return what was printed."""
        return "\n".join(str(line) for line in self.lines)

    def wait(self) -> int:
        """Wait for its end; return its exit status."""
        status = self.process.wait(LIMIT_S)
        self._thread.join(LIMIT_S)
        return status

    def close(self) -> None:
        """End it and whatever it started."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self.process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.process.pid, number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(15)
        self._thread.join(LIMIT_S)
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


@dataclass(frozen=True, slots=True)
class Seen:
    """What one step told the policy."""

    frame: Any
    executed: DesktopAction | None
    source: ActionSource
    observe_only: bool
    instruction: str
    ticks: int


class Script:
    """A desktop policy that answers with whatever it holds now, and remembers what it was told. Thread-safe."""

    def __init__(self, action: DesktopAction = IDLE) -> None:
        self.action = action
        self.think: Callable[[Any, StepContext], DesktopAction] | None = None
        self.delay_s = 0.0
        self.seen: list[Seen] = []

    def __call__(self, inputs: dict[str, Any], context: StepContext) -> DesktopAction:
        """Play one step."""
        frame = np.array(inputs["frame"])
        executed = context.executed if isinstance(context.executed, DesktopAction) else None
        self.seen.append(
            Seen(frame, executed, context.source, context.observe_only, context.instruction, context.ticks)
        )
        if self.delay_s:
            time.sleep(self.delay_s)
        return self.think(frame, context) if self.think is not None else self.action

    def wait_for(self, wanted: Callable[[Seen], bool], what: str, after: int = 0) -> Seen:
        """Return the first step from number `after` on for which `wanted` is true."""
        return wait_until(lambda: [seen for seen in self.seen[after:] if wanted(seen)][:1], what)[0]


def desktop_spec(name: str = "scripted", size: int = 96, resize_id: str = "area-v1") -> PolicySpec:
    """Return the spec of a policy that plays keyboard and mouse at 20 Hz."""
    frame = TensorSpec(
        name="frame", dtype="uint8", shape=(size, size, 3), image_format=ImageFormat.RGB8, resize_id=resize_id
    )
    return PolicySpec(
        name=name,
        version="1",
        family="scripted",
        inputs=(frame,),
        action=DesktopActionSpec(keys=KEYS, buttons=(0, 1, 2), max_mouse_px=500.0),
        rate_hz=20.0,
        gap_rule=GapRule(mode=GapMode.CATCH_UP, catch_up_frames=4),
        takes_instruction=True,
        uses_executed_actions=True,
    )


@contextlib.contextmanager
def scripted(script: Script, **spec: Any) -> Iterator[FakePolicyServer]:
    """Serve a scripted policy."""
    found = desktop_spec(**spec)
    with FakePolicyServer({found.name: FakePolicy(spec=found, handler=script)}) as server:
        yield server


@contextlib.contextmanager
def playing(x: XServer, address: str, *flags: str, cwd: Path, policy: str = "scripted") -> Iterator[Program]:
    """Run `playserve play`."""
    command = [str(Path(sys.executable).with_name("playserve")), "play", "--server", address, "--policy", policy]
    program = Program([*command, *flags], x.env, cwd)
    try:
        yield program
    finally:
        program.close()


def find_window(display: str, title: str) -> int:
    """Return the window with `title` in its title, where no window manager puts it into a frame."""
    from Xlib import display as xdisplay

    connection = xdisplay.Display(display)
    children = connection.screen().root.query_tree().children
    (found,) = [child.id for child in children if title in str(child.get_wm_name())]
    connection.close()
    return int(found)


def focus(display: str, window: int) -> None:
    """Give a window the focus, as a user's click does; and put it above the others."""
    from Xlib import X
    from Xlib import display as xdisplay

    connection = xdisplay.Display(display)
    handle = connection.create_resource_object("window", window)
    handle.configure(stack_mode=X.Above)
    handle.set_input_focus(X.RevertToNone, X.CurrentTime)
    connection.sync()
    connection.close()
