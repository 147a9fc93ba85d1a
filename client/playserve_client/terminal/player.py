"""The viewer's state: which step is shown, whether it plays, and how fast. Knows no terminal and no clock."""

from __future__ import annotations

from dataclasses import dataclass, field

from playserve_client.terminal.keys import key_name
from playserve_client.terminal.recording import Recording

__all__ = ["SPEEDS", "Player", "status_text"]

#: Steps a second that the keys 1 to 9 choose.
SPEEDS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 300.0, 1000.0)


@dataclass(slots=True)
class Player:
    """Where a replay is.

    Attributes:
        total: Frames in all, at least 1.
        step: The frame shown, from 0.
        speed: Steps a second.
        playing: Whether time moves it.
    """

    total: int
    step: int = 0
    speed: float = 10.0
    playing: bool = False
    _carry: float = field(default=0.0, repr=False)

    @property
    def last(self) -> int:
        """The last frame's number."""
        return self.total - 1

    def toggle(self) -> None:
        """Play or pause; at the end play from the start."""
        self.playing = not self.playing
        self._carry = 0.0
        if self.playing and self.step >= self.last:
            self.step = 0

    def go(self, step: int) -> None:
        """Show frame `step`, or the nearest that there is."""
        self.step = min(max(step, 0), self.last)
        self._carry = 0.0

    def move(self, steps: int) -> None:
        """Pause, and go `steps` frames on or back."""
        self.playing = False
        self.go(self.step + steps)

    def faster(self) -> None:
        """Take the next higher speed of `SPEEDS`."""
        self.speed = next((speed for speed in SPEEDS if speed > self.speed), self.speed)

    def slower(self) -> None:
        """Take the next lower speed of `SPEEDS`."""
        self.speed = next((speed for speed in reversed(SPEEDS) if speed < self.speed), self.speed)

    def choose_speed(self, number: int) -> None:
        """Take speed `number` of `SPEEDS`, from 1."""
        self.speed = SPEEDS[number - 1]

    def advance(self, seconds: float) -> None:
        """Let time pass; pauses at the last frame."""
        if not self.playing:
            return
        self._carry += seconds * self.speed
        whole = int(self._carry)
        self._carry -= whole
        self.step = min(self.step + whole, self.last)
        if self.step == self.last:
            self.playing = False

    def wait_s(self) -> float:
        """Return the seconds until the next frame is due."""
        return max(0.0, (1.0 - self._carry) / self.speed)


def status_text(player: Player, recording: Recording) -> str:
    """Return the line that says where the replay is; about 75 characters."""
    parts = ["playing" if player.playing else "paused ", f"step {player.step:,} of {player.last:,}"]
    key, score = recording.key(player.step), recording.score(player.step)
    if key is not None:
        parts.append(f"next key {key_name(key)}")
    if score is not None:
        parts.append(f"score {score:,}")
    parts.append(f"{player.speed:g}/s")
    if recording.problem:
        parts.append("damaged")
    return " | ".join(parts)
