"""Key names, tokens and mouse bins are Open P2P's."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from playserve.actions import DesktopAction, action_from_proto, action_to_proto
from playserve.errors import BadActionError
from playserve.p2p.keys import BUTTON_FROM_P2P, BUTTON_TO_P2P, CODE_TO_P2P, P2P_TO_CODE, code_of, name_of
from playserve.p2p.vocabulary import OPEN_P2P, MouseDecode, Vocabulary

DX_EDGES = "-500.1 -144.1 -76.1 -46.1 -29.1 -18.1 -11.1 -6.1 -3.1 -1.1 -0.1 0 1 3 6 11 18 29 46 76 144 500"
DX_CENTRES = "-501 -322 -110 -61 -38 -24 -15 -9 -5 -2 -1 0 1 2 5 9 15 24 38 61 110 322 501"
DY_EDGES = "-150.1 -24.1 -12.1 -7.1 -4.1 -3.1 -1.1 -0.1 0 1 3 4 7 12 24 150"
DY_CENTRES = "-151 -87 -18 -10 -6 -4 -2 -1 0 1 2 4 6 10 18 87 151"
# Ids of the reference, by the names of their recordings.
KEY_IDS = {
    "Space": 1, "1": 2, "2": 3, "3": 4, "4": 5, "a": 6, "d": 7, "e": 8, "f": 9, "q": 10, "w": 11, "s": 12, "z": 13,
    "DownArrow": 14, "UpArrow": 15, "LeftArrow": 16, "RightArrow": 17, "LeftShift": 18, "RightShift": 19,
}  # fmt: skip


def numbers(line: str) -> list[float]:
    return [float(word) for word in line.split()]


def test_names_of_recordings_become_codes_and_back() -> None:
    for name, code in {"w": "KeyW", "Space": "Space", "LeftShift": "ShiftLeft", "DownArrow": "ArrowDown"}.items():
        assert P2P_TO_CODE[name] == code
        assert CODE_TO_P2P[code] == name
    for name in ("LEFTSHIFT", "leftshift", "left_shift", "Left Shift", "ShiftLeft", "lshift", "shift"):
        assert code_of(name) == "ShiftLeft"
    assert code_of("ctrl") == "ControlLeft"
    assert code_of("F5") == "F5"
    assert code_of("esc") == "Escape"
    assert code_of("no such key") is None
    assert name_of("LaunchMail") == "LaunchMail"
    for code, name in CODE_TO_P2P.items():
        assert code_of(name) == code
        assert code_of(code) == code
    assert (BUTTON_FROM_P2P["0"], BUTTON_FROM_P2P["1"], BUTTON_FROM_P2P["2"]) == (0, 2, 1)
    assert {BUTTON_TO_P2P[button] for button in BUTTON_FROM_P2P.values()} == set(BUTTON_FROM_P2P)


def test_no_second_name_means_two_keys() -> None:
    folded: dict[str, set[str]] = {}
    for name, code in P2P_TO_CODE.items():
        folded.setdefault(name.lower(), set()).add(code)
    assert {name: codes for name, codes in folded.items() if len(codes) > 1} == {}


def test_tokens_of_the_reference() -> None:
    assert OPEN_P2P.heads == (20, 20, 20, 20, 4, 4, 23, 17)
    for name, token in KEY_IDS.items():
        code = code_of(name)
        assert code is not None
        assert OPEN_P2P.encode(DesktopAction(keys=frozenset([code])))[:4] == (token, 0, 0, 0)
    for name, token in {"0": 1, "1": 2, "2": 3}.items():
        assert OPEN_P2P.encode(DesktopAction(buttons=frozenset([BUTTON_FROM_P2P[name]])))[4:6] == (token, 0)
    assert OPEN_P2P.idle() == (0, 0, 0, 0, 0, 0, 11, 8)
    assert OPEN_P2P.action_spec().max_mouse_px == 501


def test_too_many_keys_keep_the_lowest_ids_and_are_reported() -> None:
    held = frozenset({"ShiftLeft", "KeyW", "KeyD", "Space", "Digit1", "KeyR"})
    action = DesktopAction(keys=held, buttons=frozenset({0, 1, 2, 3}), scroll=1.0)
    assert OPEN_P2P.encode(action)[:6] == (1, 2, 7, 11, 1, 2)
    assert OPEN_P2P.dropped(action) == {"KeyR", "ShiftLeft", "Button1", "Button3", "Scroll"}
    assert OPEN_P2P.dropped(DesktopAction(keys=frozenset({"KeyW"}))) == frozenset()


def test_bins_of_the_reference() -> None:
    assert list(OPEN_P2P.dx_edges) == numbers(DX_EDGES)
    assert list(OPEN_P2P.dy_edges) == numbers(DY_EDGES)
    dx, dy = OPEN_P2P.centres()
    assert list(dx) == numbers(DX_CENTRES)
    assert list(dy) == numbers(DY_CENTRES)


@pytest.mark.parametrize(
    ("dx", "bin_"),
    [(-501, 0), (-500, 1), (-145, 1), (-144, 2), (-1, 10), (0, 11), (1, 12), (2, 13), (3, 13), (4, 14), (144, 20),
     (145, 21), (500, 21), (501, 22), (5000, 22), (-9999, 0), (0.5, 12), (-0.05, 11)],
)  # fmt: skip
def test_a_motion_falls_into_the_bin_below_its_edge(dx: float, bin_: int) -> None:
    assert OPEN_P2P.encode(DesktopAction(mouse_dx_px=dx))[6] == bin_


def decoded(dx: int, dy: int, mode: MouseDecode, uniforms: tuple[float, float] | None = None) -> tuple[float, float]:
    action = OPEN_P2P.decode((0, 0, 0, 0, 0, 0, dx, dy), mode, uniforms)
    return action.mouse_dx_px, action.mouse_dy_px


def test_mean_is_the_centre() -> None:
    assert [decoded(i, 8, MouseDecode.MEAN)[0] for i in range(23)] == numbers(DX_CENTRES)
    assert [decoded(11, i, MouseDecode.MEAN)[1] for i in range(17)] == numbers(DY_CENTRES)


def test_conservative_is_the_edge_nearest_zero() -> None:
    want = "-500 -144 -76 -46 -29 -18 -11 -6 -3 -1 0 0 0 1 3 6 11 18 29 46 76 144 500"
    assert [decoded(i, 8, MouseDecode.CONSERVATIVE)[0] for i in range(23)] == numbers(want)
    assert decoded(11, 16, MouseDecode.CONSERVATIVE)[1] == 150


def phi(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2))


@given(st.integers(1, 21), st.floats(0, 1, exclude_max=True))
def test_truncated_normal_is_the_inverse_cdf(bin_: int, u: float) -> None:
    edges = OPEN_P2P.dx_edges
    low, high = math.floor(edges[bin_ - 1]) + 1, math.floor(edges[bin_])
    value = decoded(bin_, 8, MouseDecode.TRUNCATED_NORMAL, (u, 0.0))[0]
    assert low <= value <= high
    if low < high:
        # The rounded value lies within half a pixel of the quantile: the CDF of its surroundings holds u.
        def cdf(x: float) -> float:
            x = min(max(x, low), high)
            return (phi(x / 96) - phi(low / 96)) / (phi(high / 96) - phi(low / 96))

        assert cdf(value - 0.5) - 1e-6 <= u <= cdf(value + 0.5) + 1e-6


def test_truncated_normal_at_the_ends() -> None:
    assert decoded(0, 0, MouseDecode.TRUNCATED_NORMAL, (0.3, 0.9)) == (-501, -151)
    assert decoded(22, 16, MouseDecode.TRUNCATED_NORMAL, (0.3, 0.9)) == (501, 151)
    assert decoded(11, 8, MouseDecode.TRUNCATED_NORMAL, (0.9, 0.1)) == (0, 0)
    # Symmetric bins, mirrored uniforms.
    for u in (0.01, 0.25, 0.5, 0.999):
        left, right = (decoded(i, 8, MouseDecode.TRUNCATED_NORMAL, (v, 0))[0] for i, v in ((1, 1 - u), (21, u)))
        assert left == -right
    uniforms = np.random.default_rng(0).random(4000)
    drawn = np.array([decoded(21, 8, MouseDecode.TRUNCATED_NORMAL, (float(u), 0))[0] for u in uniforms])
    assert 150 < np.median(drawn) < 200  # a uniform draw would be about 322
    # 7 standard deviations out (dy 150 of std 22): still within the bin.
    assert 25 <= decoded(11, 15, MouseDecode.TRUNCATED_NORMAL, (0.0, 1 - 2**-53))[1] <= 150


def test_what_cannot_be_decoded_is_an_error() -> None:
    idle = OPEN_P2P.idle()
    for tokens in (idle[:-1], (*idle, 0), (20, *idle[1:]), (-1, *idle[1:])):
        with pytest.raises(BadActionError, match="tokens"):
            OPEN_P2P.decode(tokens, MouseDecode.MEAN)
    for uniforms in (None, (0.5,), (0.5, 1.0), (-0.1, 0.5), (math.nan, 0.5)):
        with pytest.raises(BadActionError, match="uniforms"):
            OPEN_P2P.decode(idle, MouseDecode.TRUNCATED_NORMAL, uniforms)
    with pytest.raises(BadActionError):
        OPEN_P2P.encode(DesktopAction(mouse_dx_px=math.nan))
    with pytest.raises(BadActionError):
        OPEN_P2P.encode_arrays([DesktopAction(mouse_dy_px=math.inf)])


actions = st.builds(
    DesktopAction,
    keys=st.frozensets(st.sampled_from([*OPEN_P2P.keys, "KeyR", "Escape"]), max_size=7),
    buttons=st.frozensets(st.integers(0, 4)),
    mouse_dx_px=st.integers(-700, 700).map(float),
    mouse_dy_px=st.integers(-300, 300).map(float),
)


@given(actions)
def test_round_trip(action: DesktopAction) -> None:
    tokens = OPEN_P2P.encode(action)
    assert list(tokens[:4]) == sorted(tokens[:4], key=lambda token: (token == 0, token))
    for mode in (MouseDecode.MEAN, MouseDecode.TRUNCATED_NORMAL):
        back = OPEN_P2P.decode(tokens, mode, (0.4, 0.7))
        assert OPEN_P2P.encode(back) == tokens
        assert back.keys | (OPEN_P2P.dropped(action) - {"Button1", "Button2", "Button3", "Button4"}) == action.keys
        # What is decoded fits the action set that is declared, and goes over the wire.
        spec = OPEN_P2P.action_spec()
        assert action_from_proto(action_to_proto(back, spec), spec) == back


@given(st.lists(actions, max_size=8))
def test_arrays_equal_one_by_one(several: list[DesktopAction]) -> None:
    assert OPEN_P2P.encode_arrays(several).tolist() == [list(OPEN_P2P.encode(action)) for action in several]


def test_it_travels_as_json() -> None:
    assert Vocabulary.from_json(json.loads(json.dumps(OPEN_P2P.to_json()))) == OPEN_P2P
    with pytest.raises(ValueError, match="unknown"):
        Vocabulary.from_json({**OPEN_P2P.to_json(), "wheel": 3})
    small = Vocabulary(
        keys=("KeyW",), buttons=(), dx_edges=(-0.1, 0.0), dy_edges=(-0.1, 0.0), max_buttons=0, max_keys=1
    )
    assert small.heads == (2, 3, 3)
    assert small.idle() == (0, 1, 1)


@pytest.mark.parametrize(
    "change",
    [{"keys": ("KeyW", "KeyW")}, {"dx_edges": ()}, {"dx_edges": (1.0, 0.0)}, {"dy_edges": (0.2, 0.4)}, {"max_keys": 0},
     {"dx_edges": (0.0, math.inf)}],
)  # fmt: skip
def test_a_vocabulary_that_makes_no_sense_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="vocabulary"):
        Vocabulary(**{"keys": ("KeyW",), "buttons": (0,), "dx_edges": (0.0,), "dy_edges": (0.0,), **change})  # type: ignore[arg-type]
