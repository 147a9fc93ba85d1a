"""The control plane, its database, or a replica beside ours goes away: who plays does not notice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bystander import Bystander
from contract_kit.control import serving_control
from contract_kit.servers import serving
from throwaway_postgres import postgres

from playserve.errors import ServerUnavailableError
from playserve_client import PolicyClient

Read = Callable[[Any], dict[str, float]]

pytestmark = pytest.mark.timeout(300)  # several processes that load torch


def test_control_plane_down(
    tmp_path: Path, replica_flags: Any, registered: Any, connect: Any, metrics: Read, eventually: Any
) -> None:
    data = ["--data", str(tmp_path / "control"), "--store", str(tmp_path / "store")]
    with serving_control(*data) as control:
        flags = replica_flags(registered(control), "r0")
        with serving([], *flags) as server, Bystander(server.address, "bot") as bystander:
            wire = connect(server.address)
            eventually(lambda: metrics(server)["playserve_registry_revision"] > 0, "the view")
            control.kill()
            eventually(lambda: metrics(server)["playserve_registry_up"] == 0, "the loss to be noticed")
            bystander.plays_on()
            assert wire.play("bot", version="stable").step(1)  # newcomers are served by the last view
            first = metrics(server)["playserve_registry_view_age_seconds"]
            eventually(lambda: metrics(server)["playserve_registry_view_age_seconds"] > first, "the view to age")
            # So does a replica that starts meanwhile.
            with serving([], *flags) as late:
                assert connect(late.address).play("bot", version="stable").step(1)
                assert metrics(late)["playserve_registry_up"] == 0
            with serving_control(*data, port=control.port):
                eventually(lambda: metrics(server)["playserve_registry_up"] == 1, "the control plane to be followed")
                bystander.plays_on()


def test_database_down(
    tmp_path: Path, replica_flags: Any, registered: Any, connect: Any, metrics: Read, eventually: Any
) -> None:
    data = ["--data", str(tmp_path / "control"), "--store", str(tmp_path / "store")]
    with postgres() as cluster, serving_control(*data, PLAYSERVE_CONTROL_DATABASE=cluster.new_database()) as control:
        flags = replica_flags(registered(control), "r0")
        with serving([], *flags) as server, Bystander(server.address, "bot") as bystander:
            eventually(lambda: metrics(server)["playserve_registry_revision"] > 0, "the view")
            assert metrics(control)["playserve_control_database_up"] == 1
            cluster.stop()
            eventually(lambda: metrics(server)["playserve_registry_up"] == 0, "the loss to be noticed")
            assert metrics(control)["playserve_control_database_up"] == 0
            assert (control.status("/healthz"), control.status("/readyz")) == (200, 503)
            assert control.status("/v1/policies/bot/aliases/stable", "PUT", b'{"version": "1"}') == 503
            bystander.plays_on()
            assert connect(server.address).play("bot", version="stable").step(1)
            cluster.start()
            eventually(lambda: metrics(server)["playserve_registry_up"] == 1, "the database to be used again")
            assert control.status("/readyz") == 200
            bystander.plays_on()


def test_replica_killed(tmp_path: Path, replica_flags: Any, registered: Any, metrics: Read, eventually: Any) -> None:
    data = ["--data", str(tmp_path / "control"), "--store", str(tmp_path / "store"), "--replica-timeout-s", "1"]
    frame = np.zeros((8, 8), np.uint8)
    with serving_control(*data) as control:
        registered(control)
        with (
            serving([], *replica_flags(control, "r0", cache=tmp_path / "view0.json")) as server,
            serving([], *replica_flags(control, "r1", cache=tmp_path / "view1.json")) as victim,
            Bystander(server.address, "bot") as bystander,
            PolicyClient(victim.address) as client,
        ):
            session = client.play("bot", seed=1, resume=False)
            session.step(frame)
            eventually(lambda: metrics(control)["playserve_control_replicas_fresh"] == 2, "both to be known")
            victim.process.kill()
            with pytest.raises(ServerUnavailableError):  # noqa: PT012 - some may be under way
                for _ in range(100):
                    session.step(frame)
            # Whoever watches the fleet sees one fewer; Prometheus itself says which: `up` is 0.
            eventually(lambda: metrics(control)["playserve_control_replicas_fresh"] == 1, "the loss to be seen")
            assert metrics(control)["playserve_control_replicas"] == 2
            bystander.plays_on()
            with PolicyClient(server.address) as elsewhere, elsewhere.play("bot", seed=1) as again:
                again.step(frame)
