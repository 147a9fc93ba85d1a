"""``playserve play doctor``: looks for whatever would keep a policy from playing here, and says what to do about it."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from playserve.errors import PlayserveError
from playserve.specs import PolicySpec
from playserve_client.actuate import open_backend
from playserve_client.capture import Platform, Region, detect_platform, open_capture, open_windows
from playserve_client.commands.playing import open_client, open_scene
from playserve_client.play.mouse import acceleration
from playserve_client.play.scene import Eye, desktop_action_of
from playserve_client.play.stats import percentiles
from playserve_client.play.watchers import open_watcher

__all__ = ["Finding", "examine"]

_RATE_HZ = 20.0
_RATE_S = 2.0
_PINGS = 20


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found.

    Attributes:
        check: What was looked at.
        ok: Whether it is as it should be; None: it may matter, or could not be told.
        found: What it is.
        advice: What to do about it; empty where there is nothing to do.
    """

    check: str
    ok: bool | None
    found: str
    advice: str = ""


def examine(args: argparse.Namespace) -> int:
    """Print findings; 1 where one of them keeps a policy from playing, else 0."""
    findings: list[Finding] = []
    numbers: dict[str, Any] = {}

    def check(name: str, look: Callable[[], Finding | list[Finding]]) -> bool:
        try:
            found = look()
        except PlayserveError as error:
            found = Finding(name, False, str(error))
        except Exception as error:  # noqa: BLE001 - a doctor must not fall ill
            found = Finding(name, False, f"{type(error).__name__}: {error}")
        new = found if isinstance(found, list) else [found]
        findings.extend(new)
        for finding in new:
            _print(finding)
        return all(finding.ok is not False for finding in new)

    platform: list[Platform] = []

    def display() -> Finding:
        platform.append(detect_platform())
        open_windows(platform[0]).close()
        return Finding("display", True, platform[0].value)

    if check("display", display):
        here = platform[0]
        check("screen", lambda: _screen(numbers))
        check("keys and mouse", lambda: _presses(here))
        check("takeover", lambda: _takeover(here))
        check("mouse acceleration", lambda: _mouse(here))
        check("window", lambda: _window(args, here))
    spec: list[PolicySpec] = []
    if args.policy:
        check("server", lambda: _server(args, spec, numbers))
    else:
        check("server", lambda: _servers(args))
    if platform:
        check("rate", lambda: _rate(args, platform[0], spec[0] if spec else None, numbers))
    report = {"findings": [asdict(finding) for finding in findings], "numbers": numbers}
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=2) + "\n")
    bad = sum(finding.ok is False for finding in findings)
    print(f"{bad} hindrance{'' if bad == 1 else 's'}" if bad else "nothing keeps a policy from playing here")
    return 1 if bad else 0


def _print(finding: Finding) -> None:
    mark = {True: "ok", False: "NO", None: "??"}[finding.ok]
    print(
        f"{mark}  {finding.check}: {finding.found}" + (f"\n    {finding.advice}" if finding.advice else ""), flush=True
    )


def _screen(numbers: dict[str, Any]) -> Finding:
    from playserve_client.capture.screen import ScreenCapture

    capture = ScreenCapture()
    try:
        times = []
        for _ in range(20):
            began = time.monotonic()
            picture = capture.grab(capture.screen)
            times.append((time.monotonic() - began) * 1e3)
    finally:
        capture.close()
    numbers["whole_screen_capture_ms"] = percentiles(times)
    found = f"{picture.width} x {picture.height} read in {sorted(times)[len(times) // 2]:.1f} ms"
    if not picture.rgb().any():
        return Finding(
            "screen", None, found + ", all of it black", "a locked or empty screen, or no permission to look"
        )
    return Finding("screen", True, found)


def _presses(platform: Platform) -> Finding:
    backend = open_backend(platform)
    try:
        lacking = [
            code for code in ("KeyW", "KeyA", "KeyS", "KeyD", "Space", "ShiftLeft") if not backend.can_press(code)
        ]
        backend.flush()
    finally:
        backend.close()
    if lacking:
        return Finding(
            "keys and mouse", None, f"this keyboard lacks {', '.join(lacking)}", "check the layout: setxkbmap"
        )
    return Finding("keys and mouse", True, type(backend).__name__)


def _takeover(platform: Platform) -> Finding:
    watcher = open_watcher(platform, lambda _event: None)
    ignored = watcher.ignored()
    real = getattr(watcher, "real", lambda: ["the system's own"])()
    watcher.start()
    watcher.close()
    if not real:
        return Finding(
            "takeover", None, f"no real device; ignored: {ignored}", "nobody can take over here: use --seconds, Ctrl-C"
        )
    return Finding("takeover", True, f"by {', '.join(real)}; ignored: {ignored}")


def _mouse(platform: Platform) -> Finding:
    off, found = acceleration(platform)
    if off:
        return Finding("mouse acceleration", True, found)
    return Finding(
        "mouse acceleration",
        None,
        found,
        "switch it off: your own motion is recorded before it, and games that read the pointer see it after",
    )


def _window(args: argparse.Namespace, platform: Platform) -> Finding:
    if not (args.window or args.region):
        windows = open_windows(platform)
        try:
            titles = ", ".join(repr(window.title) for window in windows.windows()[:20])
        finally:
            windows.close()
        return Finding("window", None, f"none asked for; there are: {titles or 'none'}", "give --window TITLE")
    scene = open_scene(args, platform)
    target = scene.look()
    scene.capture.close()
    scene.windows.close()
    found = f"{scene.window.title!r} at {target.region}"
    if target.in_front:
        return Finding("window", True, found + ", in front")
    return Finding("window", None, f"{found}: {target.reason}", "nothing is captured or pressed until it is in front")


def _servers(args: argparse.Namespace) -> Finding:
    with open_client(args) as client:
        policies = client.list_policies(timeout_s=5.0)
    names = ", ".join(sorted({info.spec.name for info in policies}))
    return Finding("server", True, f"{args.server} serves {names or 'nothing'}", "give --policy NAME to check one")


def _server(args: argparse.Namespace, spec: list[PolicySpec], numbers: dict[str, Any]) -> list[Finding]:
    with open_client(args) as client:
        info = client.get_policy(args.policy, args.version, timeout_s=5.0)
        spec.append(info.spec)
        action = desktop_action_of(info.spec)
        Eye(info.spec)
        with client.play(args.policy, version=args.version) as session:
            times = [session.ping() * 1e3 for _ in range(_PINGS)]
    numbers["ping_ms"] = percentiles(times)
    shape = list(info.spec.inputs[0].shape)
    found = [
        Finding(
            "server",
            True,
            f"{args.server}: {info.spec.name!r} version {info.spec.version}, frames {shape}, {len(action.keys)} keys, "
            f"{info.slots_free} of {info.slots_total} sessions free",
        )
    ]
    middle = sorted(times)[len(times) // 2]
    found.append(
        Finding(
            "round trip",
            True if middle < 20 else None,
            f"{middle:.1f} ms without a frame or a model",
            "" if middle < 20 else "more than 20 ms of each frame's 50 go to the network",
        )
    )
    return found


def _rate(args: argparse.Namespace, platform: Platform, spec: PolicySpec | None, numbers: dict[str, Any]) -> Finding:
    """Capture and resize for two seconds, whatever is in front: nothing of it leaves this process."""
    rate_hz = (spec.rate_hz if spec is not None else 0.0) or _RATE_HZ
    eye = Eye(spec) if spec is not None else None
    capture = open_capture()
    try:
        region = _rate_region(args, platform, capture)
        times, starts = [], []
        due = began = time.monotonic()
        while (now := time.monotonic()) - began < _RATE_S:
            starts.append(now)
            picture = capture.grab(region)
            if eye is not None:
                eye.see(picture)
            times.append((time.monotonic() - now) * 1e3)
            due = max(due + 1 / rate_hz, time.monotonic())
            time.sleep(max(0.0, due - time.monotonic()))
    finally:
        capture.close()
    achieved = (len(starts) - 1) / (starts[-1] - starts[0])
    numbers["rate_hz"], numbers["capture_and_resize_ms"] = achieved, percentiles(times)
    resized = " and the policy's resize" if eye is not None else ""
    found = (
        f"{achieved:.1f} of {rate_hz:g} Hz with {region.width} x {region.height} pixels{resized}, "
        f"{sorted(times)[len(times) // 2]:.1f} ms a frame"
    )
    ok = achieved > 0.97 * rate_hz
    return Finding("rate", ok, found, "" if ok else "make the game's window smaller, or close what else is busy")


def _rate_region(args: argparse.Namespace, platform: Platform, capture: Any) -> Region:
    screen: Region = capture.screen
    if args.window or args.region:
        scene = open_scene(args, platform)
        region = scene.look().region
        scene.capture.close()
        scene.windows.close()
        if screen.contains(region):
            return region
    return Region(screen.x, screen.y, min(screen.width, 800), min(screen.height, 600))
