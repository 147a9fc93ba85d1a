"""The viewer in a terminal: curses draws, `Player` knows what; the terminal is left as it was found, whatever comes."""

from __future__ import annotations

import curses
import locale
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from playserve.errors import BadSettingError
from playserve_client.nethack.tty import TTY_COLUMNS, TTY_ROWS
from playserve_client.terminal.player import Player, status_text
from playserve_client.terminal.recording import Recording
from playserve_client.terminal.screen import BOLD, REVERSE, Screen, look
from playserve_client.workers import signals_call

__all__ = ["HELP", "can_watch", "watch"]

HELP = "space play/pause  left/right step  up/down, 1-9 speed  g go to  Home/End  q quit"

# Frames are drawn at most so often; faster games skip some.
_MIN_DRAW_S = 1 / 40
_MAX_WAIT_S = 1.0
_MAX_LATE_S = 0.25
_BACKSPACE = (curses.KEY_BACKSPACE, 8, 127)
_ENTER = (curses.KEY_ENTER, 10, 13)
_ESCAPE = 27
_GREY = 7


def can_watch() -> bool:
    """Return whether stdin and stdout are a terminal."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def watch(recording: Recording, *, start: int | None = None, speed: float = 10.0) -> None:
    """Play a recording in this terminal until the user quits.

    Args:
        recording: What to play.
        start: Show this step and wait there; None to play from the first.
        speed: Steps a second.

    Raises:
        BadSettingError: The terminal cannot place text (TERM is missing, unknown or "dumb").
    """
    _check_terminal()
    player = Player(len(recording), speed=speed, playing=start is None)
    locale.setlocale(locale.LC_CTYPE, "")
    curses.set_escdelay(25)
    with _signals_end_it():
        curses.wrapper(lambda window: _Viewer(window, recording, player).run(start or 0))


def _check_terminal() -> None:
    try:
        curses.setupterm(fd=sys.stdout.fileno())
        able = curses.tigetstr("cup") is not None
    except curses.error:
        able = False
    if not able:
        raise BadSettingError("this terminal (see $TERM) cannot place text; --plain prints one frame")


@contextmanager
def _signals_end_it() -> Iterator[None]:
    """Turn signals that would kill the process on the spot into an exit that restores the terminal."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    with signals_call(leave, *numbers):
        yield


class _Viewer:
    """One run of the viewer.

    Args:
        window: The whole terminal.
        recording: What to play.
        player: Where it is.
    """

    def __init__(self, window: curses.window, recording: Recording, player: Player) -> None:
        self._window, self._recording, self._player = window, recording, player
        self._attributes = _Attributes()
        # NetHack's colours are made for a black background, whatever the terminal's own is.
        self._plain = self._attributes.of(_GREY)
        window.bkgdset(" ", self._plain)
        self._ascii_only = "utf" not in locale.getpreferredencoding(False).lower()
        self._typed: str | None = None  # the digits of "go to" while they are typed
        self._show_status = True
        self._quit = False

    def run(self, start: int) -> None:
        self._go(start)
        drawn: object = None
        clock = time.monotonic()
        while not self._quit:
            if self._player.step >= self._recording.ready:
                self._go(self._player.step)
            if drawn != self._state():
                drawn = self._state()
                self._draw()
            key = self._read_key()
            now = time.monotonic()
            # Not more than was waited for: time in which the viewer was stopped (Ctrl-Z) or read a file does not count.
            self._player.advance(min(now - clock, self._player.wait_s() + _MAX_LATE_S))
            clock = now
            if key == curses.KEY_RESIZE:
                drawn = None
            elif key >= 0:
                self._press(key)

    def _state(self) -> object:
        """Return what the picture depends on."""
        player = self._player
        return player.step, player.total, player.playing, player.speed, self._typed, self._show_status

    def _read_key(self) -> int:
        """Wait for a key until the next frame is due, reading ahead in the file meanwhile; -1 for none."""
        if self._player.playing:
            self._recording.read_ahead()
            self._window.timeout(int(1000 * min(max(self._player.wait_s(), _MIN_DRAW_S), _MAX_WAIT_S)))
        else:
            self._window.timeout(0 if self._recording.read_ahead() else -1)
        return self._window.getch()

    def _press(self, key: int) -> None:
        player = self._player
        if self._typed is not None:
            self._type(key)
        elif key in (ord("q"), ord("Q")):
            self._quit = True
        elif key == ord(" "):
            player.toggle()
        elif key == curses.KEY_RIGHT:
            player.move(1)
        elif key == curses.KEY_LEFT:
            player.move(-1)
        elif key in (curses.KEY_UP, ord("+"), ord("=")):
            player.faster()
        elif key in (curses.KEY_DOWN, ord("-")):
            player.slower()
        elif ord("1") <= key <= ord("9"):
            player.choose_speed(key - ord("0"))
        elif key == curses.KEY_HOME:
            player.move(-player.total)
        elif key == curses.KEY_END:
            player.move(player.total)
        elif key == ord("g"):
            player.playing, self._typed = False, ""
        elif key == ord("i"):
            self._show_status = not self._show_status

    def _type(self, key: int) -> None:
        typed = self._typed or ""
        if ord("0") <= key <= ord("9"):
            self._typed = (typed + chr(key))[:9]
        elif key in _BACKSPACE:
            self._typed = typed[:-1]
        elif key in _ENTER:
            self._typed = None
            if typed:
                self._player.go(int(typed))
        elif key in (_ESCAPE, ord("q")):
            self._typed = None

    def _go(self, step: int) -> None:
        """Show frame `step`; where it must be read first, say how far that is, and stop at a key."""
        while self._recording.ready <= min(step, len(self._recording) - 1):
            for _ in range(8):
                self._recording.read_ahead()
            self._player.total = len(self._recording)
            self._draw_line(f"reading {self._recording.ready:,} of {self._player.total:,} (any key stops it)")
            self._window.timeout(0)
            if self._window.getch() not in (-1, curses.KEY_RESIZE):
                step = self._recording.ready - 1
        self._player.total = len(self._recording)
        self._player.go(step)

    def _draw(self) -> None:
        window, player = self._window, self._player
        height, width = window.getmaxyx()
        window.erase()
        screen = self._recording.screen(player.step)
        for row in range(min(TTY_ROWS, height)):
            column = 0
            for text, color in screen.runs(row):
                if color >= REVERSE or not text.isspace():
                    self._put(row, column, text[: max(0, width - column)], self._attributes.of(color))
                column += len(text)
        if self._typed is not None:
            self._draw_line(f"go to step (0 to {player.last:,}), Enter: {self._typed}")
        elif self._show_status:
            self._draw_line(status_text(player, self._recording))
        self._draw_below(height, width)
        self._move_cursor(screen, height, width)
        window.noutrefresh()
        curses.doupdate()

    def _draw_below(self, height: int, width: int) -> None:
        """Use the rows under the status line."""
        notes = [HELP]
        if self._recording.problem:
            notes.insert(0, f"damaged: {self._recording.problem}; the first {self._player.total:,} frames are whole")
        facts = ", ".join(f"{name} {value}" for name, value in self._recording.facts.items())
        notes.append(f"{self._recording.name}: {facts}" if facts else self._recording.name)
        for row, note in enumerate(notes, TTY_ROWS + 1):
            if row < height:
                self._put(row, 0, note[:width], self._plain)

    def _draw_line(self, text: str) -> None:
        """Draw the status line: under the game, or over its last row where the terminal is too small."""
        height, width = self._window.getmaxyx()
        if height <= TTY_ROWS:
            text += " | i hides this"
        if width < TTY_COLUMNS or height < TTY_ROWS:
            text = f"{width}x{height} is too small for 80x24 | " + text
        self._put(min(TTY_ROWS, height - 1), 0, text[:width].ljust(width), self._plain | curses.A_REVERSE)

    def _move_cursor(self, screen: Screen, height: int, width: int) -> None:
        row, column = screen.cursor
        if row < height and min(column, TTY_COLUMNS - 1) < width:
            self._window.move(row, min(column, TTY_COLUMNS - 1))

    def _put(self, row: int, column: int, text: str, attribute: int) -> None:
        if self._ascii_only:
            text = text.encode("ascii", "replace").decode("ascii")
        # After the last cell of the terminal the cursor has nowhere to go, and curses complains; the text is there.
        with suppress(curses.error):
            self._window.addstr(row, column, text, attribute)


class _Attributes:
    """Colours of a game as attributes of this terminal: sixteen colours, or eight and bold, or bold alone."""

    def __init__(self) -> None:
        self._bright = self._colors = False
        if not curses.has_colors() or os.environ.get("NO_COLOR"):
            return
        self._colors = True
        self._bright = curses.COLORS >= 2 * BOLD and curses.COLOR_PAIRS > 2 * BOLD
        for color in range(2 * BOLD if self._bright else BOLD):
            curses.init_pair(color + 1, color, curses.COLOR_BLACK)

    def of(self, color: int) -> int:
        shown, reverse = look(color)
        attribute = curses.A_REVERSE if reverse else 0
        if self._colors:
            attribute |= curses.color_pair((shown if self._bright else shown % BOLD) + 1)
        if shown >= BOLD and not self._bright:
            attribute |= curses.A_BOLD
        return attribute
