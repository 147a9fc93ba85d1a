"""Films of worlds: a film is its seed and its actions."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_world import NAMES, fake_world, world_spec

from playserve.actions import DesktopAction
from playserve.errors import BadSettingError, DataLossError
from playserve.specs import DesktopActionSpec, DiscreteActionSpec
from playserve.testing import FakePolicyServer
from playserve_client.client import PolicyClient
from playserve_client.evaluate.actions import pack_actions
from playserve_client.worlds.film import FilmWriter, actions_of, film
from playserve_client.worlds.view import Shown

SPEC = DiscreteActionSpec(n=len(NAMES), names=NAMES)
DESKTOP = DesktopActionSpec(keys=("KeyW", "KeyA"), buttons=(0,), max_mouse_px=50)


def test_a_file_of_actions_is_read_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "actions.txt"
    path.write_text("RIGHT x3\n\n# nothing\n2\nFIRE\n")
    assert list(actions_of(str(path), SPEC, 0)) == [4, 4, 4, 2, 5]
    path.write_text('{"keys": ["KeyW"], "mouse_dx_px": 12} x2\n{}\n')
    held = DesktopAction(frozenset({"KeyW"}), mouse_dx_px=12)
    assert list(actions_of(str(path), DESKTOP, 0)) == [held, held, DesktopAction()]


@pytest.mark.parametrize("line", ["JUMP", "9", "-1", "RIGHT x", "{"])
def test_a_line_that_means_nothing_is_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "actions.txt"
    path.write_text(line)
    with pytest.raises(BadSettingError):
        list(actions_of(str(path), SPEC, 0))


def test_what_an_evaluation_kept_can_be_filmed(tmp_path: Path) -> None:
    path = tmp_path / "episode.npz"
    np.savez(path, **pack_actions([4, 0, 5], SPEC.n), reward=np.zeros(3))
    assert list(actions_of(str(path), SPEC, 0)) == [4, 0, 5]
    path.write_bytes(b"nothing")
    with pytest.raises(DataLossError):
        actions_of(str(path), SPEC, 0)


@pytest.mark.parametrize("spec", [SPEC, DESKTOP])
def test_random_actions_are_those_of_their_seed_and_last_a_while(spec: Any) -> None:
    first, same, other = (list(itertools.islice(actions_of("random", spec, seed), 300)) for seed in (1, 1, 2))
    assert first == same != other
    changes = sum(a != b for a, b in itertools.pairwise(first))
    assert 5 < changes < 150


@pytest.mark.parametrize("suffix", [".gif", ".mp4"])
def test_a_film_has_a_picture_for_every_step(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("av" if suffix == ".mp4" else "PIL")
    path, shown = tmp_path / f"film{suffix}", list[Shown]()
    with FakePolicyServer({"coins": fake_world(world_spec(side=17), episode_steps=12)}) as server:
        with PolicyClient(server.address) as client, client.play("coins", seed=3) as session:
            with FilmWriter(path, (17, 17), 20.0) as writer:

                def take(one: Shown) -> None:
                    writer.add(one.frame)
                    shown.append(one)

                numbers = film(session, iter([4, 5, 5, 1]), 100, take)
    assert (numbers["frames"], numbers["reward"], numbers["terminated"]) == (5, 2.0, False)
    assert numbers["uncertainty_nats"] == 2.0
    columns = [int(np.nonzero(one.frame[:, :, 2])[1][0]) for one in shown]
    assert columns == [3, 4, 4, 4, 4]
    assert path.stat().st_size > 100
    if suffix == ".gif":
        from PIL import Image

        with Image.open(path) as image:
            assert image.n_frames >= 2  # equal ones are put together


def test_a_film_ends_with_its_world(tmp_path: Path) -> None:
    with FakePolicyServer({"coins": fake_world(world_spec(), episode_steps=4)}) as server:
        with PolicyClient(server.address) as client, client.play("coins", seed=3) as session:
            numbers = film(session, actions_of("random", SPEC, 0), 100, lambda shown: None)
    assert (numbers["frames"], numbers["terminated"]) == (5, True)
    with pytest.raises(BadSettingError, match=r"\.mp4"):
        FilmWriter(tmp_path / "film.avi", (4, 4), 20.0)
