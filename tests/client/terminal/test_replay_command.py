from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest

from playserve.cli import main

pytest.importorskip("nle")


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


class Replay(Protocol):
    def __call__(self, *arguments: str) -> Done: ...


@pytest.fixture
def replay(capfd: pytest.CaptureFixture[str]) -> Replay:
    """Return a function that runs ``playserve replay`` where stdin and stdout are no terminal."""

    def run(*arguments: str) -> Done:
        status = main(["replay", *arguments])
        return Done(status, *capfd.readouterr())

    return run


def test_without_a_terminal_the_frame_is_printed(recorded: Any, replay: Replay) -> None:
    done = replay(str(recorded.path), "--start", "123")
    assert done.returncode == 0, done.stderr
    *lines, status = done.stdout.split("\n")[:-1]
    assert lines == [line.rstrip() for line in recorded.lines(123)]
    assert status.startswith("[step 123 of 499 | next key ")
    assert "\x1b" not in done.stdout


def test_a_folder_of_games_is_listed_and_one_is_chosen(recorded: Any, replay: Replay, tmp_path: Path) -> None:
    for name in ("nle.1.0", "nle.1.1"):
        (tmp_path / f"{name}.ttyrec3.bz2").write_bytes(recorded.path.read_bytes())
    done = replay(str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout == "nle.1.0\nnle.1.1\n"
    assert f"playserve replay '{tmp_path}#nle.1.0'" in done.stderr
    assert replay(f"{tmp_path}#nle.1.1").stdout == replay(str(recorded.path)).stdout
    (tmp_path / "nle.1.1.ttyrec3.bz2").unlink()
    assert replay(str(tmp_path)).stdout == replay(str(recorded.path)).stdout


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["{missing}"], "no file"),
        (["{file}#game"], "has no game 'game'"),
        (["{file}", "--start", "500"], "--start is 0 to 499, not 500"),
        (["{file}", "--speed", "0"], "--speed is 0.01 to 100,000"),
        (["{file}", "--speed", "nan"], "--speed is"),
        (["{text}"], "no whole frame"),
    ],
)
def test_mistakes_are_one_line(recorded: Any, replay: Replay, tmp_path: Path, arguments: list[str], text: str) -> None:
    (tmp_path / "text").write_text("no recording")
    names = {"missing": tmp_path / "missing", "file": recorded.path, "text": tmp_path / "text"}
    done = replay(*(argument.format(**names) for argument in arguments))
    assert done.returncode == 2
    assert done.stdout == ""
    assert text in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_page_is_written(recorded: Any, replay: Replay, tmp_path: Path) -> None:
    page = tmp_path / "new" / "page.html"
    done = replay(str(recorded.path), "--html", str(page), "--frames", "100", "--start", "50")
    assert done.returncode == 0, done.stderr
    text = page.read_text(encoding="utf-8")
    assert "steps 50 to 149 of 499" in text
    assert "http" not in text.replace("http-equiv", "")
