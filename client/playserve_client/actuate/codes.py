"""Keys by W3C KeyboardEvent.code, and what each platform calls them. A code is a key's place, not its letter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

__all__ = ["BUTTONS", "EXTENDED", "KEYS", "XKB_OFFSET", "Key", "code_of_evdev", "code_of_keysym"]

#: X keycodes of servers with evdev rules are Linux' own plus this.
XKB_OFFSET = 8
#: Added to a scan code that goes with an 0xE0 before it.
EXTENDED = 0xE000
#: W3C buttons: left, middle, right, back, forward; and their numbers on X11.
BUTTONS: Mapping[int, int] = MappingProxyType({0: 1, 1: 2, 2: 3, 3: 8, 4: 9})


@dataclass(frozen=True, slots=True)
class Key:
    """One key.

    Attributes:
        code: W3C code.
        evdev: Linux' number.
        keysym: Name of what it types on a US keyboard, as X11 has it.
        scan: Scan code of set 1, `EXTENDED` added where it has an 0xE0 before it; what Windows games read.
        mac: Virtual key code of macOS; None: it has no such key.
    """

    code: str
    evdev: int
    keysym: str
    scan: int
    mac: int | None


# code evdev keysym scan mac; x0 before a scan code: extended; -: macOS has none
_TABLE = """
Escape 1 Escape 01 53
Digit1 2 1 02 18
Digit2 3 2 03 19
Digit3 4 3 04 20
Digit4 5 4 05 21
Digit5 6 5 06 23
Digit6 7 6 07 22
Digit7 8 7 08 26
Digit8 9 8 09 28
Digit9 10 9 0a 25
Digit0 11 0 0b 29
Minus 12 minus 0c 27
Equal 13 equal 0d 24
Backspace 14 BackSpace 0e 51
Tab 15 Tab 0f 48
KeyQ 16 q 10 12
KeyW 17 w 11 13
KeyE 18 e 12 14
KeyR 19 r 13 15
KeyT 20 t 14 17
KeyY 21 y 15 16
KeyU 22 u 16 32
KeyI 23 i 17 34
KeyO 24 o 18 31
KeyP 25 p 19 35
BracketLeft 26 bracketleft 1a 33
BracketRight 27 bracketright 1b 30
Enter 28 Return 1c 36
ControlLeft 29 Control_L 1d 59
KeyA 30 a 1e 0
KeyS 31 s 1f 1
KeyD 32 d 20 2
KeyF 33 f 21 3
KeyG 34 g 22 5
KeyH 35 h 23 4
KeyJ 36 j 24 38
KeyK 37 k 25 40
KeyL 38 l 26 37
Semicolon 39 semicolon 27 41
Quote 40 apostrophe 28 39
Backquote 41 grave 29 50
ShiftLeft 42 Shift_L 2a 56
Backslash 43 backslash 2b 42
KeyZ 44 z 2c 6
KeyX 45 x 2d 7
KeyC 46 c 2e 8
KeyV 47 v 2f 9
KeyB 48 b 30 11
KeyN 49 n 31 45
KeyM 50 m 32 46
Comma 51 comma 33 43
Period 52 period 34 47
Slash 53 slash 35 44
ShiftRight 54 Shift_R 36 60
NumpadMultiply 55 KP_Multiply 37 67
AltLeft 56 Alt_L 38 58
Space 57 space 39 49
CapsLock 58 Caps_Lock 3a 57
F1 59 F1 3b 122
F2 60 F2 3c 120
F3 61 F3 3d 99
F4 62 F4 3e 118
F5 63 F5 3f 96
F6 64 F6 40 97
F7 65 F7 41 98
F8 66 F8 42 100
F9 67 F9 43 101
F10 68 F10 44 109
NumLock 69 Num_Lock x045 71
ScrollLock 70 Scroll_Lock 46 -
Numpad7 71 KP_Home 47 89
Numpad8 72 KP_Up 48 91
Numpad9 73 KP_Prior 49 92
NumpadSubtract 74 KP_Subtract 4a 78
Numpad4 75 KP_Left 4b 86
Numpad5 76 KP_Begin 4c 87
Numpad6 77 KP_Right 4d 88
NumpadAdd 78 KP_Add 4e 69
Numpad1 79 KP_End 4f 83
Numpad2 80 KP_Down 50 84
Numpad3 81 KP_Next 51 85
Numpad0 82 KP_Insert 52 82
NumpadDecimal 83 KP_Delete 53 65
IntlBackslash 86 less 56 10
F11 87 F11 57 103
F12 88 F12 58 111
NumpadEnter 96 KP_Enter x01c 76
ControlRight 97 Control_R x01d 62
NumpadDivide 98 KP_Divide x035 75
PrintScreen 99 Print x037 -
AltRight 100 Alt_R x038 61
Home 102 Home x047 115
ArrowUp 103 Up x048 126
PageUp 104 Prior x049 116
ArrowLeft 105 Left x04b 123
ArrowRight 106 Right x04d 124
End 107 End x04f 119
ArrowDown 108 Down x050 125
PageDown 109 Next x051 121
Insert 110 Insert x052 114
Delete 111 Delete x053 117
Pause 119 Pause x046 -
MetaLeft 125 Super_L x05b 55
MetaRight 126 Super_R x05c 54
ContextMenu 127 Menu x05d 110
"""


def _read() -> dict[str, Key]:
    keys = {}
    for line in _TABLE.split("\n"):
        if line:
            code, evdev, keysym, scan, mac = line.split()
            number = int(scan[1:], 16) + EXTENDED if scan.startswith("x") else int(scan, 16)
            keys[code] = Key(code, int(evdev), keysym, number, None if mac == "-" else int(mac))
    return keys


#: Every key that a policy's action may name, by W3C code.
KEYS: Mapping[str, Key] = MappingProxyType(_read())
_BY_EVDEV = MappingProxyType({key.evdev: key.code for key in KEYS.values()})
_BY_KEYSYM = MappingProxyType({key.keysym: key.code for key in KEYS.values()})


def code_of_evdev(number: int) -> str | None:
    """Return the W3C code of Linux' number of a key; None: no key of ours."""
    return _BY_EVDEV.get(number)


def code_of_keysym(name: str) -> str | None:
    """Return the W3C code of the key that types `name` on a US keyboard; None: no key of ours."""
    return _BY_KEYSYM.get(name)
