"""Worlds by the command line against `playserve serve`: films, load, agents, the demo, and who watches it all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from contract_kit.servers import ServerProcess, serving
from tiny_dream import save_dream

from playserve.cli import main
from playserve_client.client import PolicyClient


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    flags = ("--admin-port", "0", "--slots", "16", "--max-batch", "8")
    with serving(["world", "world_agent"], *flags) as process:
        yield process


def printed(capsys: Any) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    return value


def test_a_film_is_its_seed_and_its_actions(server: ServerProcess, tmp_path: Path, capsys: Any) -> None:
    films, numbers = [], []
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        path = tmp_path / f"{name}.gif"
        command = ["play", "--world", "world", "--server", server.address, "--film", str(path)]
        assert main([*command, "--seed", str(seed), "--steps", "12"]) == 0
        films.append(path.read_bytes())
        numbers.append(printed(capsys))
    assert films[0] == films[1] != films[2]
    assert (numbers[0]["frames"], numbers[0]["seed"], numbers[0]["terminated"]) == (12, 5, False)


def test_a_load_plays_worlds(server: ServerProcess, capsys: Any) -> None:
    command = ["load", server.address, "--policy", "world", "--sessions", "3", "--seconds", "1", "--warmup", "0.2",
               "--rate-hz", "20", "--fail-on", "errors>0", "--fail-on", "refused>0"]  # fmt: skip
    assert main(command) == 0, capsys.readouterr().out


def test_an_agent_plays_in_a_world_of_the_same_server(server: ServerProcess, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = ["rollout", "world:world", "--policy", "world_agent", "--server", server.address, "--episodes", "3",
               "--argmax-episodes", "0", "--baseline-episodes", "1", "--envs", "3", "--workers", "1", "--max-steps",
               "10", "--out", str(out)]  # fmt: skip
    assert main(command) == 0
    report = json.loads((out / "results.json").read_text())
    assert [e["steps"] for e in report["episodes"]] == [10] * 4
    assert report["settings"]["env"]["options"]["eyes"]["height"] == 84
    with PolicyClient(server.address) as client:  # sessions and rollouts have left their slots
        assert all(info.slots_free == info.slots_total for info in client.list_policies())


def test_operators_see_worlds_as_they_see_agents(server: ServerProcess, capsys: Any) -> None:
    with PolicyClient(server.address) as client, client.play("world") as session:
        session.step_world(1)
        session.step_world(2)
        command = ["top", server.address_of("admin"), "--once", "--interval", "0.2"]
        assert main(command) == 0
    text = capsys.readouterr().out
    assert session.session_id in text
    assert "world" in text


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_demo_serves_films_and_plays_a_trained_world(tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "demo"
    command = ["demo", "world", "--quick", "--checkpoint", str(save_dream(tmp_path / "dream")), "--out", str(out)]
    assert main(command) == 0, capsys.readouterr().out
    results = json.loads((out / "results.json").read_text())
    (film,) = results["films"]
    assert (film["frames"], film["terminated"]) == (30, False)
    assert film["uncertainty_nats"] > 0
    assert Path(film["film"]).stat().st_size > 1000
    assert results["world"]["family"] == "wm-token"
    assert "playserve play --world world" in capsys.readouterr().out
    assert main(command) == 0  # what is there is kept
    assert "kept" in capsys.readouterr().out


def test_a_demo_of_a_world_has_no_games_and_no_long_form(capsys: Any) -> None:
    assert main(["demo", "world", "--full"]) != 0
    assert "--full" in capsys.readouterr().err
