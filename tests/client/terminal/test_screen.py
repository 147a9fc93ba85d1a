from __future__ import annotations

import numpy as np
import pytest

from playserve_client.terminal.keys import key_name, key_text
from playserve_client.terminal.screen import REVERSE, Screen, glyph, look


def test_every_byte_is_one_printable_character() -> None:
    glyphs = [glyph(code) for code in range(256)]
    assert all(len(text) == 1 and text.isprintable() for text in glyphs)
    assert "".join(glyphs[33:127]) == bytes(range(33, 127)).decode()
    assert glyphs[0] == glyphs[27] == " "


def test_runs_of_a_row_are_its_text_and_its_colours() -> None:
    random = np.random.default_rng(0)
    chars = random.choice([32, 32, 64, 46], (24, 80)).astype(np.uint8)
    colors = random.choice([0, 7, 9, REVERSE + 7], (24, 80)).astype(np.int8)
    screen = Screen(chars, colors, (0, 0))
    for row in range(24):
        runs = screen.runs(row)
        assert "".join(text for text, _ in runs) == screen.lines()[row]
        shown = [color for text, color in runs for _ in text]
        for column in range(80):
            same = shown[column] == colors[row, column]
            plain_space = chars[row, column] == 32 and colors[row, column] < REVERSE and shown[column] < REVERSE
            assert same or plain_space


def test_nothing_is_written_in_black() -> None:
    assert look(0) == (8, False)
    assert look(9) == (9, False)
    assert look(REVERSE) == (7, True)
    assert look(REVERSE + 4) == (4, True)


@pytest.mark.parametrize(
    ("code", "text", "name"),
    [
        (ord("k"), "k", "k north"),
        (ord("B"), "B", "B far southwest"),
        (ord("s"), "s", "s search"),
        (ord("5"), "5", "5"),
        (32, "space", "space"),
        (27, "Esc", "Esc"),
        (13, "Enter", "Enter more"),
        (4, "^D", "^D kick"),
        (240, "M-p", "M-p pray"),
        (200, "M-H", "M-H"),
    ],
)
def test_keys_have_names(code: int, text: str, name: str) -> None:
    assert key_text(code) == text
    assert key_name(code) == name


def test_every_key_has_a_name() -> None:
    assert all(key_name(code).isprintable() and key_name(code) for code in range(256))
