"""`playserve top` in front of the real server: what it shows, of one that goes and comes back, too."""

from __future__ import annotations

import argparse
import asyncio
import json
from typing import Any

import numpy as np
import pytest

from playserve.errors import BadSettingError
from playserve.settings import Consent, Pace
from playserve.testing import FakePolicyServer
from playserve.v1 import admin_service_pb2 as ad
from playserve.v1 import policy_service_pb2 as ps
from playserve.v1 import types_pb2 as pb
from playserve_client.aio import PolicyClient
from playserve_client.commands import top as command
from playserve_client.top.table import lines_of
from playserve_client.top.watch import Snapshot, Watcher, compare


def snapshot(at_s: float, uptime_s: float, steps: int = 0, **fields: Any) -> Snapshot:
    session = ad.SessionInfo(
        session_id="6b1f0c", principal="ann", policy="pong", version="2", state=ad.SESSION_STATE_OPEN,
        pace=ps.PACE_LIVE, age_us=90_000_000, steps=steps, num_envs=1,
    )  # fmt: skip
    policy = pb.PolicySpec(name="pong", version="2", slots_total=8, slots_free=7, aliases=["stable"])
    status = ad.GetStatusResponse(
        server_version="0.1.0", uptime_us=int(uptime_s * 1e6), sessions=1, policies=[policy], **fields
    )
    return Snapshot(at_s=at_s, status=status, sessions=(session,))


def arguments(*given: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.configure(parser)
    return parser.parse_args(list(given))


def test_rates_are_what_changed_between_two_looks() -> None:
    view = compare(snapshot(14.0, 24.0, steps=140), snapshot(12.0, 22.0, steps=100))
    assert view["session_list"][0]["steps_per_s"] == 20.0
    assert view["policies"][0] | {"slots_used": 1, "sessions": 1, "aliases": ["stable"]} == view["policies"][0]


def test_a_server_that_was_restarted_has_no_rates_yet() -> None:
    view = compare(snapshot(14.0, 1.0, steps=5), snapshot(12.0, 22.0, steps=100))
    assert view["session_list"][0]["steps_per_s"] is None
    assert compare(snapshot(1.0, 1.0))["session_list"][0]["steps_per_s"] is None


def test_the_table_shows_the_busiest_sessions_where_all_have_no_room_and_no_control_characters() -> None:
    view = {"address": "a:1", "at": "2026-01-01T00:00:00+00:00", "reachable": True,
            **compare(snapshot(14.0, 24.0, draining=True))}  # fmt: skip
    one = view["session_list"][0]
    view["session_list"] = [one | {"session_id": f"s{i}", "steps_per_s": float(i)} for i in range(30)]
    lines = lines_of(view, rows=2)
    assert [line.split()[0] for line in lines if line.startswith("s")] == ["s29", "s28"]
    assert any("28 more" in line for line in lines)
    assert "draining" in lines[0]
    assert sum(line.startswith("s") for line in lines_of(view)) == 30
    view["session_list"] = [one | {"principal": "\x1b[2J\r"}]
    assert not any("\x1b" in line or "\r" in line for line in lines_of(view))


def test_the_port_for_players_is_not_the_admin_port() -> None:
    with FakePolicyServer({"p": lambda inputs, context: 0}) as server, Watcher(server.address) as watcher:
        with pytest.raises(BadSettingError, match="--admin-port"):
            watcher.look()


def test_once_of_a_server_that_is_not_there_is_an_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.run(arguments("127.0.0.1:1", "--once", "--timeout", "2")) == 1
    assert "unreachable since" in capsys.readouterr().out
    with pytest.raises(BadSettingError, match="interval"):
        command.run(arguments("127.0.0.1:1", "--interval", "0"))


async def test_a_real_server_is_shown_while_it_plays_and_after_it_came_back(
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("torch")
    from desktop_policy import DesktopPolicy

    from playserve_services.inference.app import InferenceServer
    from playserve_services.inference.settings import ServeSettings

    def server(admin_port: int = 0) -> InferenceServer:
        settings = ServeSettings(port=0, admin_port=admin_port, metrics_port=0, slots=5)
        return InferenceServer(settings, {"desktop": lambda: DesktopPolicy(rate_hz=20.0)})

    frame = np.zeros((8, 8), np.uint8)
    async with server() as first:
        admin = f"127.0.0.1:{first.admin_port}"
        url = f"http://127.0.0.1:{first.metrics_port}/metrics"
        with Watcher(admin, metrics_url=url, timeout_s=20.0) as watcher:
            async with (
                PolicyClient(f"127.0.0.1:{first.port}", timeout_s=20.0) as client,
                client.play("desktop", pace=Pace.LIVE, consent=Consent(watch=True)) as session,
            ):
                await asyncio.to_thread(watcher.look)
                for _ in range(3):
                    await session.send_step(frame)
                    await session.recv(20.0)
                view = await asyncio.to_thread(watcher.look)
                once = arguments(admin, "--metrics", url, "--once", "--timeout", "20", "--interval", "0.1")
                assert await asyncio.to_thread(command.run, once) == 0
            printed = capsys.readouterr().out
            assert view["sessions"] == 1
            (policy,), (player,) = view["policies"], view["session_list"]
            assert (policy["slots_used"], policy["slots_total"], policy["sessions"]) == (1, 5, 1)
            assert policy["frames_per_s"] > 0
            assert policy["compute_p99_ms"] > 0
            assert player["session_id"] == session.session_id
            assert (player["state"], player["pace"], player["steps"], player["watch"]) == ("open", "live", 3, True)
            assert player["steps_per_s"] > 0
            assert session.session_id in printed
            assert "COMPUTE p50/p99 ms" in printed
            port = first.admin_port
            await first.stop()
            gone = await asyncio.to_thread(watcher.look)
            assert (gone["reachable"], gone["unreachable_since"]) == (False, gone["at"])
            still = await asyncio.to_thread(watcher.look)
            assert still["unreachable_since"] == gone["unreachable_since"]
            async with server(port):
                for _ in range(50):
                    back = await asyncio.to_thread(watcher.look)
                    if back["reachable"]:
                        break
                    await asyncio.sleep(0.2)
                assert back["reachable"]
                assert back["sessions"] == 0
                assert "no metrics" in back["metrics_error"], "its port is another one now, and the rest is shown"
                assert any("no metrics" in line for line in lines_of(back))


def test_views_go_on_until_ctrl_c_as_tables_or_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    looks = 0

    def sleep(seconds: float) -> None:
        nonlocal looks
        looks += 1
        if looks == 3:
            raise KeyboardInterrupt

    assert command.run(arguments("127.0.0.1:1", "--timeout", "1", "--json"), sleep) == 0
    views = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [view["reachable"] for view in views] == [False] * 3
    looks = 2
    assert command.run(arguments("127.0.0.1:1", "--timeout", "1"), sleep) == 0
    assert "unreachable since" in capsys.readouterr().out
