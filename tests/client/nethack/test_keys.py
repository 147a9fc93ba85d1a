"""The key table equals nle's, and keys that two actions send have one action."""

from __future__ import annotations

import numpy as np
import pytest
from nle import nethack

from playserve_client.nethack.keys import ACTION_KEYS, ACTION_NAMES, KEY_TO_ACTION, NUM_ACTIONS


def test_equals_the_actions_of_nle() -> None:
    assert NUM_ACTIONS == 121
    assert tuple(int(action) for action in nethack.ACTIONS) == ACTION_KEYS
    assert tuple(f"{type(action).__name__}.{action.name}" for action in nethack.ACTIONS) == ACTION_NAMES
    assert len(set(ACTION_NAMES)) == NUM_ACTIONS


def test_every_key_of_an_action_has_an_action_and_no_other() -> None:
    known = np.flatnonzero(KEY_TO_ACTION >= 0)
    assert set(known) == set(ACTION_KEYS)
    assert len(known) == 118
    for key in known:
        assert ACTION_KEYS[KEY_TO_ACTION[key]] == key
    assert KEY_TO_ACTION.dtype == np.int16
    assert KEY_TO_ACTION.shape == (256,)


def test_of_two_actions_with_one_key_the_last_stands() -> None:
    names = {chr(key): ACTION_NAMES[KEY_TO_ACTION[key]] for key in (34, 36, 43)}
    assert names == {'"': "TextCharacters.QUOTE", "$": "TextCharacters.DOLLAR", "+": "TextCharacters.PLUS"}


def test_the_table_is_read_only() -> None:
    with pytest.raises(ValueError, match="read-only"):
        KEY_TO_ACTION[0] = 1
