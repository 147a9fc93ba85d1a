"""Servers to hold against the contract: the fake one in process, the real one as a process of its own."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from playserve.actions import DesktopAction
from playserve.settings import MouseDecode, SamplingMode
from playserve.specs import (
    ActionSpec,
    Codec,
    DesktopActionSpec,
    DiscreteActionSpec,
    GapMode,
    GapRule,
    ImageFormat,
    PolicyKind,
    PolicySpec,
    TensorSpec,
)
from playserve.testing import FakePolicy, FakePolicyServer, FakeReply, StepContext

__all__ = ["ServerProcess", "fake_server", "playserve", "serving"]

_LIB = Path(__file__).resolve().parent.parent
#: No server of the tests outlives its test by more than this.
STOP_S = 30.0


def playserve(*args: str) -> list[str]:
    """Return the command line of the installed `playserve`, whatever is on PATH."""
    return [sys.executable, "-c", "import sys; from playserve.cli import main; sys.exit(main())", *args]


def environment(**extra: str) -> dict[str, str]:
    """Return the environment of a server: no settings of the caller's, and the kit's policies importable."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PLAYSERVE_")}
    return {**kept, "PYTHONPATH": str(_LIB), "OMP_NUM_THREADS": "1", **extra}


@dataclass
class ServerProcess:
    """A running `playserve serve`.

    Attributes:
        process: The process.
        ports: By name: "port", "admin", "metrics", "health".
        stderr_path: Where its log goes.
    """

    process: subprocess.Popen[str]
    stderr_path: Path
    ports: dict[str, int] = field(default_factory=dict)

    @property
    def address(self) -> str:
        """Address of the main port."""
        return self.address_of("port")

    def address_of(self, name: str) -> str:
        """Return the address of a port by its name."""
        return f"127.0.0.1:{self.ports[name]}"

    def log(self) -> str:
        """Return everything that it has logged."""
        return self.stderr_path.read_text(errors="replace")

    def terminate(self) -> None:
        """Ask it to drain."""
        self.process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        """Return its exit code once it has ended."""
        return self.process.wait(STOP_S)


@contextlib.contextmanager
def serving(policies: Sequence[str], *flags: str, wrapper: Sequence[str] = (), **env: str) -> Iterator[ServerProcess]:
    """Start `playserve serve --port 0` and wait for its ready line; end it on the way out.

    Args:
        policies: Names of factories in contract_kit.served, each served under its own name.
        flags: More of the command line.
        wrapper: A program that runs the rest of its command line, in place of itself.
        env: More of the environment.
    """
    named = [part for name in policies for part in ("--policy", f"{name}=contract_kit.served:{name}")]
    with tempfile.TemporaryDirectory(prefix="playserve-test-") as folder:
        stderr_path = Path(folder) / "stderr"
        with stderr_path.open("w") as stderr:
            process = subprocess.Popen(
                [*wrapper, *playserve("serve", "--port", "0", *named, *flags)],
                stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment(**env),
            )  # fmt: skip
        server = ServerProcess(process, stderr_path)
        try:
            assert process.stdout is not None
            line = process.stdout.readline()  # an early death ends it with an empty line
            assert line.startswith("playserve ready"), f"{line!r}, then: {server.log()}"
            server.ports = {name: int(port) for name, port in re.findall(r"(\w+)=(\d+)(?= |$)", line.strip())}
            yield server
        finally:
            process.terminate()
            try:
                process.wait(2.0)
            except subprocess.TimeoutExpired:
                process.terminate()  # the second one ends what still plays
                try:
                    process.wait(STOP_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            if process.stdout is not None:
                process.stdout.close()


def _remember(inputs: dict[str, Any], context: StepContext) -> FakeReply:
    """Act by a digest of everything that the session has seen, so that a leak or a lost step changes the answer."""
    digest = hashlib.blake2b(context.state.get("seen", b""))
    for name in sorted(inputs):
        digest.update(inputs[name].tobytes())
    digest.update(_said(context.executed).encode() + context.instruction.encode())
    context.state["seen"] = digest.digest()
    if context.sampling.mode is SamplingMode.SAMPLE:
        digest.update(f"{context.seed} {context.step}".encode())
    drawn = digest.digest()
    if isinstance(context.policy.action, DiscreteActionSpec):
        action: Any = drawn[0] % context.policy.action.n
        return FakeReply(actions=(action,), log_prob=(-drawn[1] / 256,), value=drawn[2] / 256)
    spec, step = context.policy.action, drawn[3] % 5 - 2
    # Motion in steps of 10 pixels: the middle of one, or its end that is nearest to 0.
    calm = context.sampling.mouse_decode is MouseDecode.CONSERVATIVE
    action = DesktopAction(
        keys=frozenset(key for i, key in enumerate(spec.keys) if drawn[4] >> i & 1),
        buttons=frozenset(button for i, button in enumerate(spec.buttons) if drawn[5] >> i & 1),
        mouse_dx_px=10.0 * step - (0 if not calm or not step else 4 if step > 0 else -4),
    )
    return FakeReply(actions=(action,), log_prob=(-drawn[1] / 256, -drawn[6] / 256), value=drawn[2] / 256)


def _said(executed: Any) -> str:
    """Return what was executed as text that is equal where that is."""
    if not isinstance(executed, DesktopAction):
        return repr(executed)
    # As coarse as a policy's own steps of motion: how they were decoded does not matter.
    steps = (round(executed.mouse_dx_px / 10), round(executed.mouse_dy_px / 10))
    return f"{sorted(executed.keys)} {sorted(executed.buttons)} {steps} {executed.scroll}"


def _slowly(inputs: dict[str, Any], context: StepContext) -> FakeReply:
    time.sleep(0.03)
    return _remember(inputs, context)


_DESKTOP = DesktopActionSpec(
    keys=("KeyW", "KeyA", "Space"), buttons=(0, 2), max_mouse_px=60.0, mouse_decode=MouseDecode.MEAN
)


def _spec(
    name: str,
    *shape: int,
    codecs: tuple[Codec, ...] = (Codec.LZ4,),
    action: ActionSpec = DiscreteActionSpec(n=4),  # noqa: B008 - frozen
    **fields: Any,
) -> PolicySpec:
    image = ImageFormat.RGB8 if shape[-1] == 3 else ImageFormat.NONE
    tensor = TensorSpec(name="observation", dtype="uint8", shape=shape, codecs=codecs, image_format=image)
    return PolicySpec(
        name=name, family="fake", inputs=(tensor,), action=action, context_frames=0, uses_executed_actions=True,
        takes_instruction=isinstance(action, DesktopActionSpec), **fields,
    )  # fmt: skip


def _dream(inputs: dict[str, Any], context: StepContext) -> FakeReply:
    """Show a digest of everything that was done in the world, and of the seed."""
    digest = hashlib.blake2b(context.state.get("seen", f"{context.seed}".encode()), digest_size=48)
    digest.update(_said(context.action).encode())
    context.state["seen"] = digest.digest()
    frame = np.frombuffer(digest.digest(), np.uint8).reshape(4, 4, 3)
    outputs = {
        "frame": frame,
        "reward": np.float32(frame[0, 0, 0] / 256),
        "terminated": np.bool_(False),
        "uncertainty": np.float32(frame[0, 0, 1] / 256),
    }
    return FakeReply(actions=(), outputs={name: np.asarray(value) for name, value in outputs.items()}, log_prob=(-1.0,))


def _world(name: str, action: ActionSpec) -> FakePolicy:
    outputs = (
        TensorSpec(name="frame", dtype="uint8", shape=(4, 4, 3), image_format=ImageFormat.RGB8),
        *(TensorSpec(name=n, dtype=d, shape=()) for n, d in (("reward", "float32"), ("terminated", "bool"),
                                                            ("uncertainty", "float32"))),
    )  # fmt: skip
    spec = PolicySpec(
        name=name, family="fake", kind=PolicyKind.WORLD, inputs=(), outputs=outputs, action=action, rate_hz=20.0,
        context_frames=0, uses_executed_actions=True,
    )  # fmt: skip
    return FakePolicy(spec=spec, handler=_dream, slots=32)


def fake_server() -> FakePolicyServer:
    """Return a fake server with the same kinds of policies as the real one, not started."""
    both = (Codec.LZ4, Codec.JPEG)
    catch_up, catch_up_4 = (GapRule(mode=GapMode.CATCH_UP, catch_up_frames=count) for count in (8, 4))
    return FakePolicyServer(
        {
            "memory": FakePolicy(spec=_spec("memory", 8, 8), handler=_remember, slots=32),
            "frames": FakePolicy(spec=_spec("frames", 84, 84, 3, codecs=both), handler=_remember, slots=32),
            "open": FakePolicy(spec=_spec("open", -1, -1, 3, codecs=both), handler=_remember, slots=32),
            "live": FakePolicy(spec=_spec("live", 8, 8, rate_hz=20.0), handler=_slowly, slots=32),
            "catch_up": FakePolicy(
                spec=_spec("catch_up", 8, 8, rate_hz=20.0, gap_rule=catch_up), handler=_remember, slots=32
            ),
            "desktop": FakePolicy(spec=_spec("desktop", 8, 8, action=_DESKTOP), handler=_remember, slots=32),
            "desktop_live": FakePolicy(
                spec=_spec("desktop_live", 8, 8, action=_DESKTOP, rate_hz=20.0), handler=_slowly, slots=32
            ),
            "desktop_catch_up": FakePolicy(
                spec=_spec("desktop_catch_up", 8, 8, action=_DESKTOP, rate_hz=20.0, gap_rule=catch_up_4),
                handler=_slowly,
                slots=32,
            ),
            "world": _world("world", DiscreteActionSpec(n=6)),
            "world_desktop": _world("world_desktop", _DESKTOP),
        },
        max_message_bytes=4 * 1024 * 1024,
        max_steps_in_flight=8,
        detach_window_s=20.0,
        max_streams=64,
    )
