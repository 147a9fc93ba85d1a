"""What a person may type while the policy plays: a new instruction, or a command after a slash."""

from __future__ import annotations

from dataclasses import dataclass, replace

from playserve.errors import BadSettingError
from playserve.settings import MouseDecode, Sampling, SamplingMode

__all__ = ["HELP", "Begin", "Instruct", "Line", "Pause", "Quit", "Resume", "Sample", "Show", "parse_line"]

HELP = """\
any text           the new instruction (an empty line: leave it)
/none              no instruction
/temperature T     draw actions at temperature T
/argmax            take the most probable action
/mouse NAME        mouse motion by NAME: default, mean, conservative, truncated_normal
/new               a new game begins: forget what was seen
/pause, /resume    give control to yourself, or to the policy
/quit              end"""


@dataclass(frozen=True, slots=True)
class Instruct:
    """A new instruction; empty: none."""

    text: str


@dataclass(frozen=True, slots=True)
class Sample:
    """New sampling settings."""

    sampling: Sampling


@dataclass(frozen=True, slots=True)
class Begin:
    """A new game begins: what was seen before means nothing any more."""


@dataclass(frozen=True, slots=True)
class Pause:
    """The person plays."""


@dataclass(frozen=True, slots=True)
class Resume:
    """The policy plays."""


@dataclass(frozen=True, slots=True)
class Quit:
    """Nobody plays."""


@dataclass(frozen=True, slots=True)
class Show:
    """Tell the person something."""

    text: str


Line = Instruct | Begin | Sample | Pause | Resume | Quit | Show


def parse_line(line: str, sampling: Sampling) -> Line | None:
    """Return what a typed line asks for; None: nothing.

    Args:
        line: As typed.
        sampling: Settings in force, of which a command changes one.
    """
    text = line.strip()
    if not text.startswith("/"):
        return Instruct(text) if text else None
    word, _, argument = text[1:].partition(" ")
    argument = argument.strip()
    plain: dict[str, Line] = {
        "none": Instruct(""), "new": Begin(), "pause": Pause(), "resume": Resume(), "quit": Quit(), "help": Show(HELP),
        "argmax": Sample(replace(sampling, mode=SamplingMode.ARGMAX)),
    }  # fmt: skip
    if word in plain:
        return plain[word]
    try:
        if word == "temperature":
            return Sample(replace(sampling, mode=SamplingMode.SAMPLE, temperature=_number(argument)))
        if word == "mouse":
            return Sample(replace(sampling, mouse_decode=mouse_decode_of(argument)))
    except BadSettingError as error:
        return Show(str(error))
    return Show(f"/{word} is no command; these are:\n{HELP}")


def mouse_decode_of(name: str) -> MouseDecode:
    """Return the mouse decoding of a name; BadSettingError lists them."""
    try:
        return MouseDecode[name.upper().replace("-", "_")]
    except KeyError:
        known = ", ".join(member.name.lower() for member in MouseDecode)
        raise BadSettingError(f"mouse decoding {name!r}, wanted one of {known}") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise BadSettingError(f"temperature {text!r}, wanted a number") from None
