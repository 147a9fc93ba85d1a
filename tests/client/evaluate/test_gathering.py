"""Rows that wait for one another: how many, how long, and that none waits for ever."""

from __future__ import annotations

import time
from collections import deque
from types import SimpleNamespace

import numpy as np
import pytest

from playserve.errors import TimeoutExceededError
from playserve_client.evaluate.gathering import Gathering
from playserve_client.evaluate.stream import EvaluatorStream

SILENCE_S = 0.2


class _Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def _play(gathering: Gathering, clock: _Clock, seconds: float, rate_of) -> None:
    """Answer rows at the rate that the size of messages gives, in rows/s."""
    end = clock.now + seconds
    while clock.now < end:
        rows = gathering.rows
        clock.now += rows / rate_of(rows)
        gathering.answered(rows)


@pytest.mark.parametrize(("half", "whole", "chosen"), [(3000.0, 4000.0, 32), (4000.0, 3000.0, 16)])
def test_the_faster_size_is_found_and_kept(half, whole, chosen):
    clock = _Clock()
    gathering = Gathering(32, clock)
    rates = {16: half, 32: whole}
    assert gathering.rows == 16  # before anything is known, nobody waits for the last
    _play(gathering, clock, 3.0, rates.get)
    assert gathering.rows == chosen
    used = []
    _play(gathering, clock, 60.0, lambda rows: used.append(rows) or rates[rows])
    assert np.mean([rows == chosen for rows in used]) > 0.85


def test_it_notices_that_the_other_size_became_faster():
    clock = _Clock()
    gathering = Gathering(32, clock)
    _play(gathering, clock, 5.0, {16: 3000.0, 32: 4000.0}.get)
    assert gathering.rows == 32
    _play(gathering, clock, 30.0, {16: 3000.0, 32: 1000.0}.get)
    assert gathering.rows == 16


def test_a_lone_environment_never_waits():
    assert Gathering(1).rows == 1


class _Rollout:
    """A rollout of four rows whose answers the test gives."""

    num_envs = 4
    spec = None

    def __init__(self) -> None:
        self.sent: list[list[int]] = []
        self.answers: deque[list[int]] = deque()

    def listen(self, on_change) -> None:
        self._on_change = on_change

    def send(self, rows, tags, inputs, seeds, instructions=None) -> None:
        self.sent.append(list(rows))

    def answer(self, *rows: int) -> None:
        self.answers.append(list(rows))
        self._on_change()

    def take(self):
        if not self.answers:
            return None
        rows = np.array(self.answers.popleft())
        return SimpleNamespace(env_ids=rows, episode_ids=rows, actions=np.zeros(len(rows), np.int64))

    def close(self) -> None:
        pass


@pytest.fixture
def place():
    """Return a stream in the hands of the test: its rollout, whether environments step, delivered rows."""
    rollout, delivered, woken = _Rollout(), [], []
    state = SimpleNamespace(rollout=rollout, delivered=delivered, woken=woken, stepping=True)
    stream = EvaluatorStream(
        rollout,
        lambda rows: {},
        lambda rows, tags, actions: delivered.append(rows.tolist()),
        lambda: woken.append(1),
        lambda: state.stepping,
        silence_s=SILENCE_S,
    )
    state.stream = stream
    yield state
    stream.close()


def _ready(*rows: int) -> list[tuple[int, int, int]]:
    return [(row, 1, 0) for row in rows]


def _whole(place) -> None:
    place.stream._gathering._index = 1
    place.stream._gathering.answered = lambda rows: None


def test_in_halves_nobody_waits_where_nothing_is_on_its_way(place):
    place.stream.submit(_ready(0))
    place.stream.submit(_ready(1))
    assert place.rollout.sent == [[0]]  # the second one waits for the first answer, or for company
    place.stream.submit(_ready(2))
    assert place.rollout.sent == [[0], [1, 2]]


def test_all_wait_for_the_last_while_it_is_stepped(place):
    _whole(place)
    place.stream.submit(_ready(0, 1))
    assert place.rollout.sent == []
    assert place.stream.patience_s(0.5) < 0.1
    place.stream.submit(_ready(2, 3))
    assert place.rollout.sent == [[0, 1, 2, 3]]
    assert place.stream.patience_s(0.5) == 0.5


def test_nobody_waits_where_nothing_is_stepped(place):
    _whole(place)
    place.stepping = False
    place.stream.submit(_ready(0, 1, 2))
    assert place.rollout.sent == [[0, 1, 2]]


def test_who_has_waited_long_enough_goes_alone(place):
    _whole(place)
    place.stream.submit(_ready(0))
    assert place.rollout.sent == []
    time.sleep(place.stream.patience_s(0.1))
    place.stream.flush()
    assert place.rollout.sent == [[0]]


def test_a_row_that_is_held_at_an_answer_wakes_who_has_to_flush(place):
    _whole(place)
    place.stepping = False
    place.stream.submit(_ready(0, 1))
    place.stepping = True
    place.stream.submit(_ready(2))  # while a message is on its way
    assert place.rollout.sent == [[0, 1]]
    place.rollout.answer(0, 1)
    assert place.delivered == [[0, 1]]
    assert place.woken
    place.stream.submit(_ready(0, 1, 3))
    assert place.rollout.sent[1:] in ([[2, 0, 1, 3]], [[2], [0, 1, 3]])  # the second where this test was slow


def test_a_server_that_is_silent_while_rows_wait_is_trouble_once(place):
    place.stream.flush()
    time.sleep(SILENCE_S)
    place.stream.flush()
    assert place.stream.take_error() is None  # nobody waited
    place.stream.submit(_ready(0, 1))
    place.stream.flush()
    assert place.stream.take_error() is None
    time.sleep(2 * SILENCE_S)
    place.stream.flush()
    place.stream.flush()
    assert isinstance(place.stream.take_error(), TimeoutExceededError)
    assert place.stream.take_error() is None
