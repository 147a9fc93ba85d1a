"""The table of keys: one line a key, no number twice, and the numbers of a few keys as their standards have them."""

from __future__ import annotations

import pytest

from playserve.p2p.vocabulary import OPEN_P2P
from playserve_client.actuate.codes import BUTTONS, EXTENDED, KEYS, code_of_evdev, code_of_keysym


def test_no_number_names_two_keys() -> None:
    for field in ("evdev", "keysym", "scan", "mac"):
        numbers = [getattr(key, field) for key in KEYS.values() if getattr(key, field) is not None]
        assert len(numbers) == len(set(numbers)), field


def test_plain_scan_codes_are_linux_numbers() -> None:
    # Linux took its numbers from set 1, where it has one byte; a check of the table against itself.
    for key in KEYS.values():
        if key.scan < EXTENDED:
            assert key.scan == key.evdev, key


@pytest.mark.parametrize(
    ("code", "evdev", "keysym", "scan", "mac"),
    [
        ("KeyW", 17, "w", 0x11, 0x0D),
        ("Space", 57, "space", 0x39, 0x31),
        ("ShiftLeft", 42, "Shift_L", 0x2A, 0x38),
        ("ArrowUp", 103, "Up", EXTENDED + 0x48, 0x7E),
        ("ControlRight", 97, "Control_R", EXTENDED + 0x1D, 0x3E),
        ("NumpadEnter", 96, "KP_Enter", EXTENDED + 0x1C, 0x4C),
    ],
)
def test_keys_have_the_numbers_of_their_standards(code: str, evdev: int, keysym: str, scan: int, mac: int) -> None:
    key = KEYS[code]
    assert (key.evdev, key.keysym, key.scan, key.mac) == (evdev, keysym, scan, mac)
    assert code_of_evdev(evdev) == code_of_keysym(keysym) == code


def test_keysyms_are_x11s() -> None:
    XK = pytest.importorskip("Xlib.XK")
    unknown = [key.code for key in KEYS.values() if not XK.string_to_keysym(key.keysym)]
    assert unknown == []


def test_every_key_of_the_open_p2p_table_can_be_pressed() -> None:
    assert set(OPEN_P2P.keys) <= set(KEYS)
    assert set(BUTTONS) == {0, 1, 2, 3, 4}
