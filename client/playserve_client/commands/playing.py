"""Puts `playserve play` together: window, server, keys, the person, the recording; and takes it apart in any event."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from playserve.errors import BadSettingError, PlayserveError
from playserve.settings import Consent, Pace, Sampling, SamplingMode
from playserve.specs import Codec, PolicySpec
from playserve_client.actuate import BUTTONS, KEYS, Actuator, Backend, DryRunBackend, open_backend
from playserve_client.actuate.watchdog import Watchdog
from playserve_client.capture import Platform, choose_window, detect_platform, open_capture, open_windows, parse_region
from playserve_client.client import PolicyClient
from playserve_client.commands.dialing import dial_options, trace_ratio
from playserve_client.play.core import PlayCore, Rules
from playserve_client.play.memory import keep_freed_memory
from playserve_client.play.player import Player
from playserve_client.play.scene import Eye, Scene, desktop_action_of
from playserve_client.play.stats import PlayStats
from playserve_client.play.typed import (
    Begin,
    Instruct,
    Pause,
    Quit,
    Resume,
    Sample,
    Show,
    mouse_decode_of,
    parse_line,
)
from playserve_client.play.watchers import open_watcher
from playserve_client.session import Session
from playserve_client.tracing import ClientTracing
from playserve_client.workers import signals_call

__all__ = ["open_client", "open_scene", "play"]

_STATUS_S = 0.25
_STATUS_PLAIN_S = 5.0  # where stderr is a file


def open_scene(args: argparse.Namespace, platform: Platform) -> Scene:
    """Return the window that --window or --region means."""
    windows = open_windows(platform)
    if args.region:
        region = parse_region(args.region)
        return Scene(windows, open_capture(), windows.window_at(region), region)
    return Scene(windows, open_capture(), choose_window(windows.windows(), args.window))


def open_client(args: argparse.Namespace, tracing: ClientTracing | None = None) -> PolicyClient:
    """Return a client of --server."""
    codecs = {"raw": (), "lz4": (Codec.LZ4,), "jpeg": (Codec.JPEG,)}[args.codec]
    return PolicyClient(args.server, codecs=codecs, tracing=tracing, **dial_options(args))


def play(args: argparse.Namespace) -> int:
    """Play until somebody ends it."""
    sampling = Sampling(
        mode=SamplingMode.ARGMAX if args.argmax else SamplingMode.SAMPLE,
        temperature=args.temperature,
        mouse_decode=mouse_decode_of(args.mouse_decode),
    )
    for key in (args.resume_key, args.panic_key):
        if key not in KEYS:
            raise BadSettingError(f"hotkey {key!r} is no W3C code of a key, such as F9 or KeyP")
    consent = Consent(watch=args.allow_watching, record=args.allow_recording)
    keep_freed_memory()
    platform = detect_platform()
    scene = open_scene(args, platform)
    with contextlib.ExitStack() as stack:
        tracing = ClientTracing.open(trace_ratio(args))
        if tracing is not None:
            stack.callback(tracing.close)
        client = stack.enter_context(open_client(args, tracing))
        spec = client.get_policy(args.policy, args.version).spec
        Eye(spec)
        rate_hz = spec.rate_hz or args.rate
        rules = _rules(args, rate_hz)
        backend, watchdog = _hands(args, platform, stack)
        core = _core(spec, rules, backend)
        session = client.play(
            args.policy, version=args.version, pace=Pace.LIVE, sampling=sampling, instruction=args.text,
            seed=args.seed, rate_hz=rate_hz, consent=consent,
        )  # fmt: skip
        stack.callback(session.close)
        stats = PlayStats(time.monotonic, consent=consent)
        recorder = _recorder(args, scene, session, rate_hz)
        actuator = Actuator(backend, mouse_scale=args.mouse_scale, witness=watchdog)
        stack.callback(actuator.close)
        player = Player(session, scene, actuator, core, stats, keeper=recorder, heart=watchdog)
        watcher = open_watcher(platform, player.on_human)
        stack.callback(watcher.close)
        console = _Console(player, session, sampling, args.text, recorder)
        watcher.start()
        try:
            ended = _run(player, console, args.seconds)
        finally:
            if recorder is not None:
                recorder.close()
            _write_report(args, spec, core, stats, recorder, rate_hz)
    return 130 if ended.startswith("SIG") else 0


def _rules(args: argparse.Namespace, rate_hz: float) -> Rules:
    return Rules(
        period_s=1 / rate_hz,
        deadline_s=args.deadline_ms / 1e3,
        max_missed=args.max_missed,
        takeover_mouse_px=args.takeover_px,
        mouse_scale=args.mouse_scale,
        takeover=not args.dry_run,
        resume_key=args.resume_key,
        panic_key=args.panic_key,
    )


def _hands(
    args: argparse.Namespace, platform: Platform, stack: contextlib.ExitStack
) -> tuple[Backend, Watchdog | None]:
    if args.dry_run:
        return DryRunBackend(lambda line: print(line, flush=True)), None
    watchdog = Watchdog()
    stack.callback(watchdog.close)
    return open_backend(platform), watchdog


def _core(spec: PolicySpec, rules: Rules, backend: Backend) -> PlayCore:
    action = desktop_action_of(spec)
    keys = frozenset(code for code in action.keys if backend.can_press(code))
    if missing := sorted(set(action.keys) - keys):
        print(f"this keyboard lacks, and the policy does without: {', '.join(missing)}", file=sys.stderr)
    return PlayCore(rules, keys, frozenset(action.buttons) & BUTTONS.keys())


def _recorder(args: argparse.Namespace, scene: Scene, session: Session, rate_hz: float) -> Any:
    if args.record is None:
        return None
    from playserve_client.play.recorder import Recorder

    facts = {
        "recorded_by": "playserve play", "policy": session.spec.name, "policy_version": session.spec.version,
        "mouse_scale": args.mouse_scale, "resize_id": next((t.resize_id for t in session.spec.inputs), ""),
    }  # fmt: skip
    recorder = Recorder(args.record, game=args.game or scene.window.title, rate_hz=rate_hz, episode=facts)
    recorder.instruct(args.text)
    return recorder


def _run(player: Player, console: _Console, seconds: float | None) -> str:
    """Play; SIGINT and SIGTERM end it in order, a second one at once."""

    def stop(number: int, _frame: Any) -> None:
        if player.core.ended is not None:
            raise KeyboardInterrupt
        player.stop(signal.Signals(number).name)

    with signals_call(stop, signal.SIGINT, signal.SIGTERM), console:
        return player.run(seconds)


class _Console:
    """The status line, and the lines that a person types."""

    def __init__(self, player: Player, session: Session, sampling: Sampling, text: str, recorder: Any) -> None:
        self._player, self._session, self._recorder = player, session, recorder
        self._sampling, self._text = sampling, text
        self._over = threading.Event()
        self._live = sys.stderr.isatty()
        self._status = threading.Thread(target=self._show, name="playserve-status", daemon=True)

    def __enter__(self) -> _Console:
        rules = self._player.core.rules
        self._say(
            f"playing {self._session.spec.name!r} when its window is in front; a real key, button or mouse motion "
            f"takes over, {rules.resume_key} resumes, {rules.panic_key} ends; type /help for more"
        )
        self._status.start()
        # A daemon: nobody can wake a thread that reads a terminal.
        threading.Thread(target=self._listen, name="playserve-typed", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._status.join()
        self._say(self._player.stats.line(self._player.core, self._text))

    def _say(self, text: str) -> None:
        print(("\r\x1b[K" if self._live else "") + text, file=sys.stderr, flush=True)

    def _show(self) -> None:
        while not self._over.wait(_STATUS_S if self._live else _STATUS_PLAIN_S):
            line = self._player.stats.line(self._player.core, self._text)
            if self._live:
                width = _width() - 1
                print(f"\r\x1b[K{line[:width]}", end="", file=sys.stderr, flush=True)
            else:
                self._say(line)

    def _listen(self) -> None:
        # Not through sys.stdin, whose lock this thread would hold when the process ends.
        rest = b""
        while (more := _read_stdin()) and not self._over.is_set():
            *lines, rest = (rest + more).split(b"\n")
            for line in lines:
                try:
                    self._obey(line.decode("utf-8", "replace"))
                except PlayserveError as error:
                    self._say(str(error))

    def _obey(self, line: str) -> None:
        asked = parse_line(line, self._sampling)
        if isinstance(asked, Instruct):
            self._session.configure(instruction=asked.text)  # the old one stays in force until this returns
            self._text = asked.text
            if self._recorder is not None:
                self._recorder.instruct(asked.text)
        elif isinstance(asked, Begin):
            self._session.reset()
        elif isinstance(asked, Sample):
            self._session.configure(sampling=asked.sampling)
            self._sampling = asked.sampling
        elif isinstance(asked, Pause):
            self._player.pause()
        elif isinstance(asked, Resume):
            self._player.resume()
        elif isinstance(asked, Quit):
            self._player.stop("/quit")
        elif isinstance(asked, Show):
            self._say(asked.text)


def _read_stdin() -> bytes:
    """Return what was typed; empty where nothing ever will be."""
    try:
        return os.read(sys.stdin.fileno(), 4096)
    except (OSError, ValueError, AttributeError):
        return b""


def _width() -> int:
    with contextlib.suppress(OSError):
        return os.get_terminal_size(sys.stderr.fileno()).columns
    return 80


def _write_report(
    args: argparse.Namespace, spec: PolicySpec, core: PlayCore, stats: PlayStats, recorder: Any, rate_hz: float
) -> None:
    report = {
        "policy": spec.name,
        "version": spec.version,
        "server": args.server,
        "rate_hz": rate_hz,
        "deadline_ms": args.deadline_ms,
        "dry_run": args.dry_run,
        **stats.report(core),
    }
    if recorder is not None:
        report["recorded"] = recorder.report()
        for path in recorder.paths:
            print(f"recording: {path}")
    out = args.out or _default_out(spec.name)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=2) + "\n")
    print(f"the run's numbers are in {out}")


def _default_out(policy: str) -> Path:
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S")
    return Path("runs") / "play" / f"{policy}-{stamp}-{os.getpid()}.json"
