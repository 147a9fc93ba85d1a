"""`playserve play` on desktops of its own: what reaches the game, what reaches the server, and who is in control."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from desktop.rfb import Hands
from desktop.rig import Program, Script, find_window, focus, playing, scripted, wait_until
from desktop.xserver import XServer, xserver

from playserve.actions import DesktopAction
from playserve.settings import ActionSource

pytest.importorskip("mss")
pytest.importorskip("Xlib")  # pynput itself refuses to be imported without a display

RED, BLUE = (0xC0, 0x20, 0x10), (0x10, 0x20, 0xC0)
FORWARD = DesktopAction(keys=frozenset({"KeyW"}))
RESUME, PANIC = ord("["), 0xFFC9
SHIFT = "0xffe1"  # which an X server does not repeat while it is held


@pytest.fixture
def screen(require_program: Callable[[str], None], tmp_path: Path) -> Iterator[XServer]:
    """A desktop without a person: Xvfb."""
    require_program("Xvfb")
    with xserver("Xvfb", tmp_path / "xvfb.log") as x:
        yield x


@pytest.fixture
def desk(require_program: Callable[[str], None], tmp_path: Path) -> Iterator[XServer]:
    """A desktop with a person: Xvnc, whose viewer's input has devices of its own."""
    require_program("Xvnc")
    with xserver("Xvnc", tmp_path / "xvnc.log") as x:
        yield x


@pytest.fixture
def start() -> Iterator[Callable[..., Program]]:
    """Return a function that starts a program, which ends with the test."""
    programs: list[Program] = []

    def begin(x: XServer, *arguments: str, cwd: Path | None = None) -> Program:
        programs.append(Program([sys.executable, "-m", *arguments], x.env, cwd))
        return programs[-1]

    yield begin
    for program in programs:
        program.close()


def _window(start: Callable[..., Program], x: XServer, title: str, place: str, colour: tuple[int, ...]) -> Program:
    program = start(x, "desktop.window", title, place, "".join(f"{part:02x}" for part in colour))
    program.wait_for(lambda line: "ready" in line, f"window {title}")
    return program


def _handle(program: Program) -> int:
    return int(next(line["ready"] for line in program.lines if isinstance(line, dict) and "ready" in line))


def _report(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text())
    return value


def _down(program: Program, key: str) -> bool:
    """Whether a key is down, by what the window was told."""
    events = [line for line in program.lines if isinstance(line, dict) and line.get("key") == key]
    return bool(events) and bool(events[-1]["down"])


def test_doom_is_played_and_its_own_counters_say_so(
    screen: XServer, start: Callable[..., Program], tmp_path: Path
) -> None:
    pytest.importorskip("vizdoom")
    game = start(screen, "desktop.doom", "defend_the_center", "100", cwd=tmp_path)
    before = game.wait_for(lambda line: line.get("tic", 0) > 20, "the game's clock")

    # Turn to the right and shoot: the arc of a second, with the trigger pulled now and then.
    def think(_frame: Any, context: Any) -> DesktopAction:
        return DesktopAction(buttons=frozenset({0} if context.step // 4 % 2 else ()), mouse_dx_px=12.0)

    script = Script()
    script.think = think
    focus(screen.display, find_window(screen.display, "VIZDOOM"))
    out = tmp_path / "run.json"
    with (
        scripted(script) as server,
        playing(screen, server.address, "--window", "vizdoom", "--out", str(out), cwd=tmp_path) as client,
    ):
        shot = game.wait_for(lambda line: line.get("ammo", 99) <= before["ammo"] - 3, "three shots")
        turned = game.wait_for(lambda line: abs(line.get("angle", 0) - before["angle"]) > 20, "a turn")
        script.wait_for(lambda seen: len(script.seen) > 60, "60 frames")
        client.type("/quit")
        assert client.wait() == 0, client.text()
    assert shot["episodes"] == before["episodes"]
    assert turned["angle"] != before["angle"]
    frames = [seen for seen in script.seen if seen.source is ActionSource.POLICY and seen.executed is not None]
    # What the policy is told that it did is what it asked for.
    assert any(seen.executed.mouse_dx_px == 12.0 and seen.executed.buttons == {0} for seen in frames if seen.executed)
    assert frames[-1].frame.std() > 10  # it saw the game, and not a black screen
    report = _report(out)
    assert report["rate_hz"] == 20.0
    assert report["tally"]["applied"] > 30
    assert report["tally"]["takeovers"] == 0  # its own presses are not a person's
    assert report["capture_to_applied_ms"]["count"] == report["tally"]["applied"]


def test_a_person_takes_over_at_once_and_is_recorded(
    desk: XServer, start: Callable[..., Program], tmp_path: Path
) -> None:
    pytest.importorskip("av")
    from playserve_client.p2p.recording import Source, list_recordings, read_recording

    window = _window(start, desk, "Game", "100,80,640,480", RED)
    script, out = Script(FORWARD), tmp_path / "run.json"
    flags = ["--window", "Game", "--out", str(out), "--record", str(tmp_path / "recordings"), "--text", "go on"]
    with (
        scripted(script) as server,
        playing(desk, server.address, *flags, cwd=tmp_path) as client,
        Hands(desk.rfb_port) as hands,
    ):
        window.wait_for(lambda line: line.get("key") == "w" and line["down"], "the policy's key")
        script.wait_for(lambda seen: seen.executed == FORWARD, "what was executed")
        n = len(script.seen)
        script.wait_for(lambda _: len(script.seen) > n + 25, "a second of the policy's play")

        hands.key(ord("a"), True)
        window.wait_for(lambda line: line.get("key") == "w" and not line["down"], "the policy's key lifted")
        human = script.wait_for(lambda seen: seen.source is ActionSource.HUMAN and seen.executed is not None, "a human")
        left = DesktopAction(keys=frozenset({"KeyA"}))
        script.wait_for(lambda seen: seen.source is ActionSource.HUMAN and seen.executed == left, "the human's key")
        n = len(script.seen)
        script.wait_for(lambda seen: len(script.seen) > n + 10, "frames while the human plays")
        assert human.executed is not None
        assert all(seen.observe_only for seen in script.seen[n:])
        hands.key(ord("a"), False)

        after = len(window.lines)
        hands.key(RESUME, True)
        hands.key(RESUME, False)
        window.wait_for(lambda line: line.get("key") == "w" and line["down"], "the policy's key again", after)
        n = len(script.seen)
        script.wait_for(lambda seen: not seen.observe_only and seen.executed == FORWARD, "the policy again", n)

        hands.move(300, 300)  # the hand is still for the settling time, then moves: once, and far
        after = len(window.lines)
        wait_until(lambda: _moved(hands, window, after), "the mouse to take over")

        hands.key(PANIC, True)
        hands.key(PANIC, False)
        assert client.wait() == 0, client.text()
    report = _report(out)
    assert report["ended"] == "the panic hotkey was pressed"
    assert report["tally"]["takeovers"] == 2
    recordings = [read_recording(path) for path in list_recordings(tmp_path / "recordings")]
    assert len(recordings) == 1
    sources = {frame.source for frame in recordings[0].frames}
    assert {Source.USER, Source.SYSTEM} <= sources
    assert any(frame.source is Source.USER and frame.action.keys == {"KeyA"} for frame in recordings[0].frames)
    assert any(frame.source is Source.SYSTEM and frame.action.keys == {"KeyW"} for frame in recordings[0].frames)
    assert recordings[0].instructions[0].text == "go on"


def _moved(hands: Hands, window: Program, after: int) -> bool:
    hands.move(hands.x + 7, hands.y)
    return any(isinstance(x, dict) and x.get("key") == "w" and not x["down"] for x in window.lines[after:])


def test_nothing_is_captured_or_pressed_while_another_window_is_in_front(
    screen: XServer, start: Callable[..., Program], tmp_path: Path
) -> None:
    game = _window(start, screen, "Game", "100,80,640,480", RED)
    script, out = Script(DesktopAction(keys=frozenset({"ShiftLeft"}))), tmp_path / "run.json"
    with (
        scripted(script) as server,
        playing(screen, server.address, "--window", "Game", "--out", str(out), cwd=tmp_path) as client,
    ):
        game.wait_for(lambda line: line.get("key") == SHIFT and line["down"], "the policy's key")
        # It takes the focus, and lies over the middle of the game.
        other = _window(start, screen, "Other", "300,200,300,300", BLUE)
        # The release goes to whoever has the focus by then.
        wait_until(
            lambda: any(x.get("key") == SHIFT and not x["down"] for x in other.lines + game.lines), "the release"
        )
        n = len(script.seen)
        time.sleep(0.5)
        assert len(script.seen) == n
        after = len(game.lines)
        focus(screen.display, _handle(game))
        game.wait_for(lambda line: line.get("key") == SHIFT and line["down"], "the policy's key again", after)
        # It is told that it does not know what happened meanwhile, and how long it was.
        back = script.seen[n]
        assert back.source is ActionSource.UNKNOWN
        assert back.ticks > 5
        client.type("/quit")
        assert client.wait() == 0, client.text()
    assert not any(line.get("down") for line in other.lines if isinstance(line, dict) and "key" in line)
    assert all(np.abs(seen.frame.astype(int) - RED).max() <= 1 for seen in script.seen)
    assert _report(out)["tally"]["focus_lost"] >= 1


def test_a_window_over_the_game_is_not_sent_even_without_the_focus(
    screen: XServer, start: Callable[..., Program], tmp_path: Path
) -> None:
    game = _window(start, screen, "Game", "100,80,640,480", RED)
    script, out = Script(FORWARD), tmp_path / "run.json"
    with (
        scripted(script) as server,
        playing(screen, server.address, "--window", "Game", "--out", str(out), cwd=tmp_path) as client,
    ):
        game.wait_for(lambda line: line.get("key") == "w" and line["down"], "the policy's key")
        popup = start(screen, "desktop.window", "Popup", "300,200,120,90", "1020c0", "over")
        popup.wait_for(lambda line: "ready" in line, "the popup")
        game.wait_for(lambda line: line.get("key") == "w" and not line["down"], "keys lifted")
        popup.close()
        after = len(game.lines)
        game.wait_for(lambda line: line.get("key") == "w" and line["down"], "the policy's key again", after)
        client.type("/quit")
        assert client.wait() == 0, client.text()
    assert all(np.abs(seen.frame.astype(int) - RED).max() <= 1 for seen in script.seen)


def test_keys_are_lifted_when_answers_come_too_late_and_when_the_server_is_gone(
    screen: XServer, start: Callable[..., Program], tmp_path: Path
) -> None:
    game = _window(start, screen, "Game", "100,80,640,480", RED)
    script, out = Script(FORWARD), tmp_path / "run.json"
    with scripted(script) as server:
        with playing(screen, server.address, "--window", "Game", "--out", str(out), cwd=tmp_path) as client:
            game.wait_for(lambda line: line.get("key") == "w" and line["down"], "the policy's key")
            after = len(game.lines)
            script.delay_s = 0.3  # beyond the deadline
            game.wait_for(lambda line: line.get("key") == "w" and not line["down"], "keys lifted", after)
            after = len(game.lines)
            script.delay_s = 0.0
            game.wait_for(lambda line: line.get("key") == "w" and line["down"], "the policy's key again", after)
            after = len(game.lines)
            server.stop()
            game.wait_for(lambda line: line.get("key") == "w" and not line["down"], "keys lifted", after)
            client.type("/quit")
            client.wait()
    assert _report(out)["tally"]["starved"] >= 2
    assert not _down(game, "w")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_keys_are_lifted_when_the_player_is_killed(
    screen: XServer, start: Callable[..., Program], tmp_path: Path, number: signal.Signals
) -> None:
    game = _window(start, screen, "Game", "100,80,640,480", RED)
    script = Script(DesktopAction(keys=frozenset({"KeyW", "ShiftLeft"}), buttons=frozenset({0})))
    out = str(tmp_path / "run.json")
    with (
        scripted(script) as server,
        playing(screen, server.address, "--window", "Game", "--out", out, cwd=tmp_path) as client,
    ):
        game.wait_for(lambda line: line.get("key") == "w" and line["down"], "the policy's key")
        game.wait_for(lambda line: line.get("button") == 1 and line["down"], "its button")
        os.kill(client.process.pid, number)  # the watchdog is no child that dies with it
        game.wait_for(lambda line: line.get("key") == "w" and not line["down"] and not _down(game, "w"), "w lifted")
        game.wait_for(lambda line: line.get("key") == SHIFT and not line["down"], "shift lifted")
        game.wait_for(lambda line: line.get("button") == 1 and not line["down"], "the button lifted")
        status = client.wait()
    assert status == (130 if number is signal.SIGTERM else -signal.SIGKILL)


def test_the_p2p_policy_of_a_real_server_plays_a_window(
    screen: XServer, start: Callable[..., Program], tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    from contract_kit.servers import serving

    game = _window(start, screen, "Game", "100,80,640,480", RED)
    out = tmp_path / "run.json"
    flags = ["--window", "Game", "--out", str(out), "--text", "go", "--seed", "5", "--deadline-ms", "5000"]
    with (
        serving([], "--policy", "p2p=desktop.served:p2p") as server,
        playing(screen, server.address, *flags, cwd=tmp_path, policy="p2p") as client,
    ):
        # Untrained, it presses and moves at random: all of it must arrive.
        game.wait_for(lambda line: "key" in line and line["down"], "a key")
        game.wait_for(lambda line: "x" in line, "mouse motion")
        client.type("/mouse conservative")
        client.type("turn around")
        wait_until(lambda: '"turn around" | policy' in client.text(), "the status line")
        client.type("/quit")
        assert client.wait() == 0, client.text()
        assert "Traceback" not in server.log(), server.log()
    report = _report(out)
    assert report["tally"]["applied"] > 5
    assert report["step_errors"] == 0, report["last_step_error"]


def test_typed_lines_change_the_instruction(screen: XServer, start: Callable[..., Program], tmp_path: Path) -> None:
    _window(start, screen, "Game", "100,80,640,480", RED)
    script, out = Script(), tmp_path / "run.json"
    with (
        scripted(script) as server,
        playing(screen, server.address, "--window", "Game", "--text", "one", "--out", str(out), cwd=tmp_path) as client,
    ):
        script.wait_for(lambda seen: seen.instruction == "one", "the first instruction")
        client.type("another thing")
        script.wait_for(lambda seen: seen.instruction == "another thing", "the second instruction")
        client.type("/temperature 0")
        wait_until(lambda: "wanted more than 0" in client.text(), "the complaint")
        client.type("/quit")
        assert client.wait() == 0, client.text()


def test_a_dry_run_says_what_it_would_do_and_does_nothing(
    screen: XServer, start: Callable[..., Program], tmp_path: Path
) -> None:
    game = _window(start, screen, "Game", "100,80,640,480", RED)
    script, out = Script(DesktopAction(keys=frozenset({"KeyW"}), mouse_dx_px=3.0)), str(tmp_path / "run.json")
    flags = ["--region", "120,100,600,400", "--dry-run", "--out", out]
    with scripted(script) as server, playing(screen, server.address, *flags, cwd=tmp_path) as client:
        script.wait_for(lambda _: len(script.seen) > 5, "frames")
        client.type("/quit")
        assert client.wait() == 0, client.text()
    assert "press KeyW" in client.lines
    assert "move +3 +0" in client.lines
    assert not any("key" in line for line in game.lines if isinstance(line, dict))


def test_the_doctor_says_what_is_there(screen: XServer, start: Callable[..., Program], tmp_path: Path) -> None:
    import subprocess

    _window(start, screen, "Game", "100,80,640,480", RED)
    command = [str(Path(sys.executable).with_name("playserve")), "play", "doctor", "--out", str(tmp_path / "d.json")]
    with scripted(Script()) as server:
        flags = ["--server", server.address, "--policy", "scripted", "--window", "Game"]
        done = subprocess.run([*command, *flags], env=screen.env, capture_output=True, text=True, check=False)
    found = {finding["check"]: finding for finding in _report(tmp_path / "d.json")["findings"]}
    checks = {"display", "screen", "keys and mouse", "takeover", "mouse acceleration", "window", "server", "round trip"}
    assert checks <= found.keys(), done.stdout + done.stderr
    assert all(found[check]["ok"] is not False for check in checks), done.stdout
    assert "XTEST" in found["takeover"]["found"]
