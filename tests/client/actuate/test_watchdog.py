"""The watchdog lifts what a player held when the player says no more, and nothing else."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from playserve_client.actuate.base import DryRunBackend
from playserve_client.actuate.watchdog import Watchdog, watch


def lifted(*lines: str) -> list[str]:
    said: list[str] = []
    watch([line + "\n" for line in lines], lambda: DryRunBackend(said.append))
    return said


def test_what_is_held_when_the_pipe_closes_is_lifted() -> None:
    held = ["+KeyW", "+KeyA", "+button 0", ".", "-KeyA"]
    assert lifted(*held) == ["release KeyW", "release button 0"]


def test_a_good_bye_means_that_nothing_is_to_be_done() -> None:
    assert lifted("+KeyW", "-KeyW", "bye") == []
    assert lifted("+KeyW", "bye") == []


def test_no_backend_is_opened_where_nothing_was_pressed() -> None:
    def never() -> DryRunBackend:
        raise AssertionError

    watch([".\n", ".\n"], never)


def test_one_that_cannot_be_lifted_does_not_keep_the_others_down() -> None:
    assert lifted("+KeyW", "+button 9") == ["release KeyW"]


def test_a_silent_player_is_taken_for_a_hanging_one() -> None:
    said: list[str] = []
    go_on = threading.Event()

    class Backend(DryRunBackend):
        def flush(self) -> None:
            go_on.set()  # everything is lifted

    def lines() -> Iterator[str]:
        yield "+KeyW\n"
        assert go_on.wait(60)
        yield "+KeyA\n"  # it was only slow

    watch(lines(), lambda: Backend(said.append), silence_s=0.05)
    assert said == ["release KeyW", "release KeyA"]


def test_the_players_side_survives_a_watchdog_that_cannot_start_on_this_desktop() -> None:
    watchdog = Watchdog()  # without a display, or with one: nothing is pressed here
    watchdog.note("KeyW", False)
    watchdog.alive()
    watchdog.close()
    watchdog.alive()  # after its end: no harm
