"""Names of keys and buttons: Open P2P's in its recordings, the W3C's everywhere in playserve.

Their names are read in any case and with the usual second names ("LeftShift", "ShiftLeft", "lshift", "shift");
:data:`CODE_TO_P2P` has the one that is written. A name that is in no table is reported by whoever reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

__all__ = ["BUTTON_FROM_P2P", "BUTTON_TO_P2P", "CODE_TO_P2P", "P2P_TO_CODE", "code_of", "name_of"]

# Code of each named key: the name that is written, then the others that are understood.
_NAMES: dict[str, tuple[str, ...]] = {
    "Space": ("Space", "spacebar"),
    "ArrowDown": ("DownArrow", "down"),
    "ArrowUp": ("UpArrow", "up"),
    "ArrowLeft": ("LeftArrow", "left"),
    "ArrowRight": ("RightArrow", "right"),
    "ShiftLeft": ("LeftShift", "lshift", "shift"),
    "ShiftRight": ("RightShift", "rshift"),
    "ControlLeft": ("ctrl", "leftctrl", "lctrl", "leftcontrol", "control", "lcontrol"),
    "ControlRight": ("RightCtrl", "rctrl", "rightcontrol", "rcontrol"),
    "AltLeft": ("alt", "leftalt", "lalt"),
    "AltRight": ("RightAlt", "ralt", "altgr"),
    "MetaLeft": ("LeftMeta", "meta", "win", "lwin", "leftwin", "windows", "super", "leftsuper", "leftwindows"),
    "MetaRight": ("RightMeta", "rwin", "rightwin", "rightsuper", "rightwindows"),
    "Escape": ("esc",),
    "Enter": ("enter", "return"),
    "Tab": ("tab",),
    "Backspace": ("backspace", "back"),
    "Delete": ("delete", "del"),
    "Insert": ("insert", "ins"),
    "Home": ("home",),
    "End": ("end",),
    "PageUp": ("pageup", "pgup", "prior"),
    "PageDown": ("pagedown", "pgdn", "pgdown"),
    "CapsLock": ("capslock", "caps"),
    "NumLock": ("numlock",),
    "ScrollLock": ("scrolllock",),
    "PrintScreen": ("printscreen", "prtsc"),
    "Pause": ("pause", "break"),
    "ContextMenu": ("menu", "apps"),
    "Backquote": ("`", "grave", "backtick", "tilde"),
    "Minus": ("-", "hyphen"),
    "Equal": ("=", "equals"),
    "BracketLeft": ("[", "leftbracket", "lbracket"),
    "BracketRight": ("]", "rightbracket", "rbracket"),
    "Backslash": ("\\",),
    "Semicolon": (";",),
    "Quote": ("'", "apostrophe"),
    "Comma": (",",),
    "Period": (".", "dot"),
    "Slash": ("/",),
    "IntlBackslash": ("intlbackslash", "oem102"),
    "NumpadAdd": ("numpadadd", "kpplus", "numpadplus"),
    "NumpadSubtract": ("numpadsubtract", "kpminus", "numpadminus"),
    "NumpadMultiply": ("numpadmultiply", "kpmultiply"),
    "NumpadDivide": ("numpaddivide", "kpdivide"),
    "NumpadDecimal": ("numpaddecimal", "kpdelete", "numpaddelete"),
    "NumpadEnter": ("numpadenter", "kpreturn", "kpenter"),
}


def _tables() -> tuple[dict[str, str], dict[str, str]]:
    names = dict(_NAMES)
    for letter in "abcdefghijklmnopqrstuvwxyz":
        names[f"Key{letter.upper()}"] = (letter,)
    for digit in "0123456789":
        names[f"Digit{digit}"] = (digit, f"num{digit}")
        names[f"Numpad{digit}"] = (f"numpad{digit}", f"kp{digit}")
    for number in range(1, 25):
        names[f"F{number}"] = (f"f{number}",)
    to_code: dict[str, str] = {}
    for code, known in names.items():
        for name in (*known, code):
            to_code[name.lower()] = code
            to_code[name] = code
    return to_code, {code: known[0] for code, known in names.items()}


_to_code, _to_name = _tables()

#: W3C KeyboardEvent.code of each key name, as written and in lower case.
P2P_TO_CODE: Mapping[str, str] = MappingProxyType(_to_code)
#: The name that is written for each W3C code.
CODE_TO_P2P: Mapping[str, str] = MappingProxyType(_to_name)
#: W3C button of each button name: their "1" is right, where W3C's 1 is the wheel.
BUTTON_FROM_P2P: Mapping[str, int] = MappingProxyType({"0": 0, "1": 2, "2": 1, "3": 3, "4": 4})
#: The name that is written for each W3C button.
BUTTON_TO_P2P: Mapping[int, str] = MappingProxyType({button: name for name, button in BUTTON_FROM_P2P.items()})


def code_of(name: str) -> str | None:
    """Return the W3C code of a key name in any case; None: nobody knows it.

    "Left Shift", "left_shift" and "LeftShift" are one name.
    """
    if (code := P2P_TO_CODE.get(name)) is not None:
        return code
    folded = name.lower()
    if (code := P2P_TO_CODE.get(folded)) is not None:
        return code
    return P2P_TO_CODE.get(folded.replace(" ", "").replace("_", ""))


def name_of(code: str) -> str:
    """Return the name that a recording has for a W3C code; a code without one is its own name."""
    return CODE_TO_P2P.get(code, code)
