"""Desktop actions as one number: those that occur come back, others become the nearest."""

from __future__ import annotations

import json

import numpy as np
import pytest

from playserve.actions import DesktopAction
from playserve.errors import BadActionError, BadSettingError
from playserve.p2p.vocabulary import OPEN_P2P, MouseDecode
from playserve.specs import DesktopActionSpec, DiscreteActionSpec
from playserve_trainer.models.tokenizer.actions import ComboActions, action_spec_from_json, action_spec_to_json

_LEFT = DesktopAction(keys=frozenset({"KeyA"}))
_SHOOT = DesktopAction(buttons=frozenset({0}))
_TURN = DesktopAction(mouse_dx_px=20.0)


def _combos() -> ComboActions:
    done = [_LEFT] * 3 + [_SHOOT] * 5 + [_TURN]
    return ComboActions.of(OPEN_P2P, OPEN_P2P.encode_arrays(done))


def test_the_commonest_comes_first_and_each_comes_back() -> None:
    combos = _combos()
    assert [combos.encode(action) for action in (_SHOOT, _LEFT, _TURN)] == [0, 1, 2]
    assert combos.decode(1) == _LEFT
    assert combos.decode(2) == OPEN_P2P.decode(OPEN_P2P.encode(_TURN), MouseDecode.MEAN)
    tokens = OPEN_P2P.encode_arrays([_TURN, _LEFT, _TURN])
    assert combos.indices_of(tokens).tolist() == [2, 1, 2]
    assert combos.indices_of(tokens[:0]).tolist() == []


def test_what_never_occurred_becomes_the_nearest() -> None:
    combos = _combos()
    assert combos.encode(DesktopAction(mouse_dx_px=40.0)) == 2
    assert combos.encode(DesktopAction(keys=frozenset({"KeyA", "KeyW"}))) == 1
    assert combos.encode(DesktopAction(buttons=frozenset({0, 2}), mouse_dx_px=1.0)) == 0


def test_the_action_set_is_what_occurs() -> None:
    spec = _combos().spec()
    assert (spec.keys, spec.buttons) == (("KeyA",), (0,))
    assert spec.max_mouse_px == combos_reach(_combos())


def combos_reach(combos: ComboActions) -> float:
    return max(abs(combos.decode(index).mouse_dx_px) for index in range(combos.n))


def test_they_survive_json() -> None:
    combos = _combos()
    assert ComboActions.from_json(json.loads(json.dumps(combos.to_json()))) == combos
    for spec in (DiscreteActionSpec(n=3, names=("A", "B", "C")), DesktopActionSpec(keys=("KeyA",), buttons=(0,))):
        assert action_spec_from_json(json.loads(json.dumps(action_spec_to_json(spec)))) == spec


def test_nonsense_is_named() -> None:
    combos = _combos()
    with pytest.raises(BadActionError, match="0 to 2"):
        combos.decode(3)
    with pytest.raises(BadActionError, match="wanted a DesktopAction"):
        combos.encode(4)  # type: ignore[arg-type]
    with pytest.raises(BadSettingError, match="one number below each"):
        ComboActions(OPEN_P2P, ((99,) * 8,))
    with pytest.raises(BadSettingError, match="all different"):
        ComboActions.of(OPEN_P2P, np.zeros((0, 8), np.int64))
    with pytest.raises(BadSettingError, match="combinations of actions"):
        ComboActions.from_json({"combos": []})
