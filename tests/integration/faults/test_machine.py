"""The machine fails us: a disk that is full, a clock that jumps, a checkpoint that is damaged."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bystander import Bystander
from contract_kit.control import serving_control
from contract_kit.servers import ServerProcess, serving

from playserve.errors import AccessEndedError, UnauthenticatedError
from playserve_client import PolicyClient
from playserve_services.auth.keyring import KeyFile
from playserve_services.auth.keys import Scope, issue_key
from playserve_trainer.checkpoint import WEIGHTS_NAME

Read = Callable[[Any], dict[str, float]]
FRAME = np.zeros((8, 8), np.uint8)

pytestmark = pytest.mark.timeout(300)


def test_disk_full_under_the_control_plane(
    tmp_path: Path, small_disk: Any, replica_flags: Any, registered: Any, metrics: Read, eventually: Any
) -> None:
    data = ["--data", str(small_disk.folder / "control"), "--store", str(tmp_path / "store")]
    alias = ("/v1/policies/bot/aliases/candidate", "PUT", b'{"version": "1"}')
    with serving_control(*data, wrapper=small_disk.wrapper) as control:
        flags = replica_flags(registered(control), "r0")
        with serving([], *flags) as server, Bystander(server.address, "bot") as bystander:
            assert metrics(control)["playserve_control_disk_free_bytes"] > 0
            ballast = small_disk.fill(control.process)
            assert metrics(control)["playserve_control_disk_free_bytes"] == 0
            assert control.status(*alias) == 503  # no change is taken, and what was taken can be read
            assert control.status("/v1/view") == 200
            bystander.plays_on()
            assert metrics(server)["playserve_registry_up"] == 1
            ballast.unlink()
            assert control.status(*alias) == 200
            bystander.plays_on()


def test_disk_full_under_a_replica(
    tmp_path: Path, small_disk: Any, replica_flags: Any, registered: Any, metrics: Read, eventually: Any
) -> None:
    cache = small_disk.folder / "view.json"
    with serving_control("--data", str(tmp_path / "control"), "--store", str(tmp_path / "store")) as control:
        flags = replica_flags(registered(control), "r0", cache=cache)
        with (
            serving([], *flags, wrapper=small_disk.wrapper) as server,
            Bystander(server.address, "bot") as bystander,
        ):
            kept = small_disk.seen_from_here(server.process) / "view.json"
            eventually(kept.is_file, "the first view on disk")
            old = kept.read_bytes()
            ballast = small_disk.fill(server.process)
            assert control.status("/v1/policies/bot/aliases/candidate", "PUT", b'{"version": "1"}') == 200
            failures = "playserve_registry_cache_failures_total"
            eventually(lambda: metrics(server)[failures] == 1, "the view that cannot be kept")
            with PolicyClient(server.address) as client:  # it is in force all the same
                client.play("bot", version="candidate").step(FRAME)
            assert kept.read_bytes() == old  # whole, if old
            bystander.plays_on()
            ballast.unlink()
            assert control.status("/v1/policies/bot/aliases/other", "PUT", b'{"version": "1"}') == 200
            eventually(lambda: b"other" in kept.read_bytes(), "the newest view on disk")


@pytest.fixture
def wall_clock(tmp_path: Path) -> tuple[dict[str, str], Callable[[str], None]]:
    """Return the environment of a process whose wall clock can be moved, and what moves it ("+3h")."""
    library = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))), None)
    if library is None:
        pytest.skip("missing system dependency: libfaketime")
    offset = tmp_path / "offset"

    def jump(by: str) -> None:
        beside = offset.with_suffix(".new")
        beside.write_text(by + "\n")
        beside.replace(offset)

    jump("+0")
    return (
        {"LD_PRELOAD": str(library), "FAKETIME_TIMESTAMP_FILE": str(offset), "FAKETIME_NO_CACHE": "1",
         "FAKETIME_DONT_FAKE_MONOTONIC": "1", "DONT_FAKE_MONOTONIC": "1"},
        jump,
    )  # fmt: skip


@pytest.fixture
def guarded(tmp_path: Path, wall_clock: Any) -> Iterator[tuple[ServerProcess, str, str]]:
    """Return a server on such a clock, a key that holds for ever, and one that holds for an hour."""
    hour = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1)
    lasting, kept = issue_key("bystander", frozenset({Scope.PLAY}))
    passing, kept_too = issue_key("visitor", frozenset({Scope.PLAY}), expires_at=hour)
    KeyFile(tmp_path / "keys.json").change(lambda keys: [*keys, kept, kept_too], missing_ok=True)
    flags = ("--max-batch", "4", "--fixed-batch", "--metrics-port", "0", "--keys", str(tmp_path / "keys.json"))
    with serving(["memory"], *flags, **wall_clock[0]) as server:
        yield server, lasting, passing


def test_clock_jump(guarded: Any, wall_clock: Any, metrics: Read, eventually: Any) -> None:
    server, lasting, passing = guarded
    _, jump = wall_clock
    refused = 'playserve_calls_refused_total{reason="UNAUTHENTICATED"}'
    with (
        Bystander(server.address, api_key=lasting) as bystander,
        PolicyClient(server.address, api_key=passing) as client,
    ):
        visitor = client.play("memory", seed=1)
        visitor.step(FRAME)
        jumps = metrics(server)["playserve_clock_jumps_total"]
        jump("+3h")
        eventually(lambda: metrics(server)["playserve_clock_jumps_total"] == jumps + 1, "the jump to be seen")
        bystander.plays_on()  # silence, deadlines and windows are measured on another clock
        with pytest.raises(AccessEndedError):  # noqa: PT012 - within seconds
            while True:
                visitor.step(FRAME)
        with pytest.raises(UnauthenticatedError):
            client.play("memory")
        assert metrics(server)[refused] >= 1
        jump("-3h")
        eventually(lambda: metrics(server)["playserve_clock_jumps_total"] == jumps + 2, "the jump back to be seen")
        bystander.plays_on()
        client.play("memory").step(FRAME)
        jump("+0")
        eventually(lambda: metrics(server)["playserve_clock_jumps_total"] == jumps + 3, "the clock to be set right")
        assert server.process.poll() is None


def test_corrupt_checkpoint_published(
    tmp_path: Path, store: Path, publish: Callable[..., str], metrics: Read, eventually: Any
) -> None:
    flags = ("--store", str(store), "--poll-s", "0.1", "--max-batch", "4", "--fixed-batch", "--metrics-port", "0")
    refused = 'playserve_versions_refused_total{policy="bot"}'
    with serving([], *flags) as server, Bystander(server.address, "bot") as bystander:
        assert metrics(server).get(refused, 0.0) == 0
        publish(tmp_path / "elsewhere", "bot", seed=2, hidden=8)
        weights = tmp_path / "elsewhere" / "bot" / "1" / WEIGHTS_NAME
        data = bytearray(weights.read_bytes())
        data[-3] ^= 0x40
        weights.write_bytes(data)
        os.rename(tmp_path / "elsewhere" / "bot" / "1", store / "bot" / "2")
        eventually(lambda: metrics(server).get(refused) == 1, "the damage to be counted")
        bystander.plays_on()
        with PolicyClient(server.address) as client, client.play("bot") as newcomer:
            assert newcomer.spec.version == "1"
            newcomer.step(FRAME)
