"""Versions come and go while games run: published, followed, asked for, damaged."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from contract_kit.servers import serving
from contract_kit.streams import comparable

from playserve.v1 import policy_service_pb2 as ps
from playserve_trainer.checkpoint import WEIGHTS_NAME
from playserve_trainer.store import CheckpointStore


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Yield a server that looks at its store often and keeps two versions of a policy."""
    folder = tmp_path_factory.mktemp("store")
    with serving([], "--store", str(folder), "--poll-s", "0.05", "--keep-versions", "2") as process:
        process.store = folder
        yield process


@pytest.fixture
def store(server: Any) -> Path:
    """Return the server's store."""
    return server.store


@pytest.fixture
def wire(server: Any, connect: Callable[[str], Any]) -> Any:
    """Return a connection to the server."""
    connected = connect(server.address)
    connected.log = server.log
    return connected


@pytest.fixture
def bot(
    request: pytest.FixtureRequest,
    wire: Any,
    store: Path,
    publish: Callable[..., str],
    eventually: Callable[..., Any],
) -> str:
    """Return the name of a policy of this test's own, of which version 1 is ready."""
    name = re.sub("[^a-z0-9]+", "-", request.node.name.removeprefix("test_")).strip("-")
    assert publish(store, name, seed=1) == "1"
    eventually(lambda: wire.versions(name) == ["1"])
    return name


def _newest(wire: Any, bot: str) -> str:
    return wire.stub.GetPolicy(ps.GetPolicyRequest(policy=bot), timeout=30).policy.version


def test_a_published_version_is_served_and_running_games_keep_theirs(
    wire: Any, bot: str, store: Path, publish: Callable[..., str], eventually: Callable[..., Any]
) -> None:
    old = wire.play(bot)
    old_answers = [comparable(old.step(seq)) for seq in range(1, 5)]
    assert publish(store, bot, seed=2) == "2"
    eventually(lambda: _newest(wire, bot) == "2")
    new = wire.play(bot)
    assert new.spec.version == "2"
    new_answers = [comparable(new.step(seq)) for seq in range(1, 9)]
    old_results = [old.step(seq) for seq in range(5, 9)]
    assert {result.version for result in old_results} == {"1"}
    old_answers += [comparable(result) for result in old_results]
    assert new_answers != old_answers
    # A game that is lost and resumed keeps its version too.
    old.cancel()
    old = wire.begin(resume_token=old.opened.resume_token).open()
    assert old.spec.version == "1"
    assert old.step(9).version == "1"
    # Nothing of the newer version got into the older game.
    again = wire.play(bot, version="1")
    assert [comparable(again.step(seq)) for seq in range(1, 9)] == old_answers


def test_followers_move_between_two_steps(
    wire: Any, bot: str, store: Path, publish: Callable[..., str], eventually: Callable[..., Any]
) -> None:
    follower = wire.play(bot, version_policy=ps.VERSION_POLICY_FOLLOW)
    pinned = wire.play(bot, version_policy=ps.VERSION_POLICY_PINNED)
    assert follower.step(1).version == "1"
    assert pinned.step(1).version == "1"
    publish(store, bot, seed=2)
    eventually(lambda: "2" in wire.versions(bot))
    seq = 1

    def next_version() -> str:
        nonlocal seq
        seq += 1
        return follower.step(seq).version

    eventually(lambda: next_version() == "2", "the follower to move")
    assert next_version() == "2"
    assert pinned.step(2).version == "1"


def test_followers_do_not_move_to_another_memory(
    wire: Any, bot: str, store: Path, publish: Callable[..., str], eventually: Callable[..., Any]
) -> None:
    follower = wire.play(bot, version_policy=ps.VERSION_POLICY_FOLLOW)
    follower.step(1)
    publish(store, bot, seed=2, hidden=12)
    eventually(lambda: _newest(wire, bot) == "2")
    assert {follower.step(seq).version for seq in range(2, 6)} == {"1"}
    assert wire.play(bot).spec.version == "2"


def test_older_versions_are_loaded_when_somebody_asks(
    wire: Any, bot: str, store: Path, publish: Callable[..., str], eventually: Callable[..., Any]
) -> None:
    first = wire.play(bot)
    wanted = [comparable(first.step(seq)) for seq in range(1, 5)]
    assert first.close() == "OK"
    for seed in (2, 3, 4):
        publish(store, bot, seed=seed)
    CheckpointStore(store).set_alias(bot, "stable", "1")
    eventually(lambda: _newest(wire, bot) == "4")
    assert wire.versions(bot) == ["4", "3", "2", "1"]
    for version in ("2", "1", "stable"):
        session = wire.play(bot, version=version)
        assert session.spec.version == {"stable": "1"}.get(version, version)
    assert [comparable(session.step(seq)) for seq in range(1, 5)] == wanted
    assert wire.begin(policy=bot, version="5").ends() == "VERSION_NOT_FOUND"
    assert wire.begin(policy=bot, version="canary").ends() == "VERSION_NOT_FOUND"
    assert wire.begin(policy=f"../{bot}").ends() == "POLICY_NOT_FOUND"


def test_a_new_policy_appears(
    wire: Any, bot: str, store: Path, publish: Callable[..., str], eventually: Callable[..., Any]
) -> None:
    assert wire.begin(policy="other").ends() == "POLICY_NOT_FOUND"
    publish(store, "other", seed=9)
    eventually(lambda: wire.versions("other") == ["1"])
    wire.play("other").step(1)


@pytest.mark.parametrize("damage", ["flipped", "truncated", "manifest"])
def test_a_damaged_version_changes_nothing(
    wire: Any,
    bot: str,
    store: Path,
    publish: Callable[..., str],
    eventually: Callable[..., Any],
    damage: str,
    tmp_path: Path,
) -> None:
    session = wire.play(bot)
    session.step(1)
    # Published elsewhere, damaged, then moved into place as one folder.
    publish(tmp_path / "elsewhere", bot, seed=2)
    folder = tmp_path / "elsewhere" / bot / "1"
    weights, manifest = folder / WEIGHTS_NAME, folder / "manifest.json"
    data = bytearray(weights.read_bytes())
    if damage == "flipped":
        data[-3] ^= 0x40
        weights.write_bytes(data)
    elif damage == "truncated":
        weights.write_bytes(data[: len(data) // 2])
    else:
        manifest.write_text(manifest.read_text()[:50])
    folder.rename(store / bot / "2")
    eventually(lambda: f"{bot} version 2 cannot" in wire.log(), "the damage to be reported")
    assert wire.play(bot).spec.version == "1"
    session.step(2)
    refused = wire.begin(policy=bot, version="2").ends()
    assert refused in ("DATA_LOSS", "VERSION_NOT_FOUND")
    # Said once, and the next good version is taken.
    publish(store, bot, seed=3)
    eventually(lambda: _newest(wire, bot) == "3")
    assert wire.play(bot).spec.version == "3"
    assert wire.log().count(f"{bot} version 2 cannot") == 1, wire.log()
    assert "Traceback" not in wire.log()
