"""Jobs: real commands from typed requests; watched, cancelled, found again after a restart, and lost ones said so."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from contract_kit.servers import serving

from playserve_services.control.jobs import processes
from playserve_services.control.jobs.requests import command_of, parse_request, report_command
from playserve_services.control.jobs.results import measured_of

LIMIT_S = 100.0
EVALUATION = {"kind": "evaluation", "family": "atari", "game": "breakout", "policy": "p", "version": "1",
              "server": "127.0.0.1:50051"}  # fmt: skip
#: Stands in for playserve: says that it runs, saves when it is told to end, unless it is stubborn.
SCRIPT = """
import os, signal, sys, time
def stop(*_):
    print("saved", flush=True); sys.exit(130)
signal.signal(signal.SIGTERM, signal.SIG_IGN if "--stubborn" in sys.argv else stop)
print("runs", *sys.argv[1:], flush=True)
while not os.path.exists(os.environ["HOME"] + "/go"):
    time.sleep(0.02)
print("environment", sorted(os.environ), flush=True)
sys.exit(int(open(os.environ["HOME"] + "/go").read()))
"""


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    """Have jobs run the script; return a function that lets it end with a status."""
    extra: list[str] = []
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(processes, "playserve_argv", lambda a: [sys.executable, "-c", SCRIPT, *a, *extra])

    def go(status: int = 0) -> None:
        (tmp_path / "go.new").write_text(str(status))
        (tmp_path / "go.new").replace(tmp_path / "go")

    go.extra = extra  # type: ignore[attr-defined]
    return go


async def job(plane, job_id: str) -> dict[str, Any]:
    value: dict[str, Any] = (await plane.client.get(f"/v1/jobs/{job_id}")).json()
    return value


async def begin(plane, **body: Any) -> str:
    made = await plane.client.post("/v1/jobs", json={**EVALUATION, **body})
    assert made.status_code == 201, made.text
    assert made.json()["state"] == "queued"
    return str(made.json()["id"])


async def until(plane, job_id: str, *states: str, log: str = "") -> dict[str, Any]:
    """Look after the jobs until one is in a state, and its log holds a text."""
    deadline = time.monotonic() + LIMIT_S
    while True:
        await asyncio.to_thread(plane.context.jobs.tick)
        found = await job(plane, job_id)
        tail = (await plane.client.get(f"/v1/jobs/{job_id}/log")).json()["tail"]
        if found["state"] in states and log in tail:
            return {**found, "log": tail}
        assert time.monotonic() < deadline, (found, tail)
        await asyncio.sleep(0.05)


def gone(folder: Path) -> None:
    while processes.is_alive(folder):
        time.sleep(0.02)


def test_a_command_is_made_of_checked_fields() -> None:
    request = parse_request({**EVALUATION, "episodes": 7, "stickiness": [0.25], "max_steps": 50, "tls": True})
    command = command_of(request, Path("/x"), None)
    assert command[:2] == ["rollout", "atari"]
    for part in ("--game=breakout", "--server=127.0.0.1:50051", "--policy=p", "--version=1", "--episodes=7",
                 "--stickiness=0.25", "--max-steps=50", "--tls", "--no-baselines", "--out=/x/run"):  # fmt: skip
        assert part in command


def test_commands_are_ones_that_playserve_takes(tmp_path: Path) -> None:
    from playserve.cli import build_parser

    parser = build_parser()
    more = [{}, {"baseline_episodes": 3, "max_steps": 9}, {"family": "nethack", "game": "mon-hum-neu-mal"},
            {"family": "doom", "game": "health_gathering", "goal": "avoid"}]  # fmt: skip
    for fields in more:
        parsed = parser.parse_args(command_of(parse_request({**EVALUATION, **fields}), tmp_path, None))
        assert (parsed.policy, parsed.version, parsed.out) == ("p", "1", tmp_path / "run")
    (tmp_path / "g").mkdir()
    (tmp_path / "g" / "plan.json").write_text("{}")
    grid: Any = parse_request({"kind": "grid", "grid": "g", "workers": 2, "minutes": 1.5, "retry_failed": True})
    parsed = parser.parse_args(command_of(grid, tmp_path, tmp_path))
    assert (parsed.folder, parsed.workers, parsed.minutes, parsed.retry_failed) == (tmp_path / "g", 2, 1.5, True)
    assert parser.parse_args(report_command(grid, tmp_path)).json


@pytest.mark.parametrize(
    "fields",
    [{"game": "--out=/etc"}, {"game": "a b"}, {"game": "../x"}, {"game": ""}, {"policy": "--x"}, {"version": "../1"},
     {"server": "-x:1"}, {"server": "h;rm:1"}, {"server": "http://h:1"}, {"family": "sh"}, {"kind": "shell"},
     {"episodes": 0}, {"episodes": 10**9}, {"command": "rm -rf /"}, {"goal": "x"}, {"stickiness": [1.0]},
     {"family": "nethack", "stickiness": [0.25]}, {"kind": "grid"}],
)  # fmt: skip
async def test_what_is_no_request_is_refused(plane, fields) -> None:
    answer = await plane.client.post("/v1/jobs", json={**EVALUATION, **fields})
    assert (answer.status_code, answer.json()["reason"]) == (422, "BAD_SETTING")
    assert (await plane.client.get("/v1/jobs")).json() == []


async def test_a_job_runs_and_its_log_and_end_are_told(start_plane, stand_in, monkeypatch) -> None:
    monkeypatch.setenv("PLAYSERVE_CONTROL_DATABASE_PASSWORD", "hunter2")
    async with start_plane(job_key="psk_of_the_job") as plane:
        made = await begin(plane)
        running = await until(plane, made, "running", log="runs rollout atari")
        assert running["pid"]
        assert (await plane.client.get(f"/v1/jobs/{made}/report")).status_code == 404
        stand_in(3)
        failed = await until(plane, made, "failed", log="environment")
        assert failed["exit_status"] == 3
        assert "status 3" in failed["message"]
        assert "'PLAYSERVE_API_KEY'" in failed["log"]
        assert "PLAYSERVE_CONTROL" not in failed["log"]
        assert "psk_of_the_job" not in failed["log"]
        again = await plane.client.post(f"/v1/jobs/{made}/cancel")
        assert again.status_code == 409


async def test_jobs_wait_for_room_and_a_waiting_one_is_cancelled_at_once(plane, stand_in) -> None:
    first, second, third = [await begin(plane) for _ in range(3)]
    await until(plane, first, "running", log="runs")
    assert [(await job(plane, one))["state"] for one in (second, third)] == ["queued", "queued"]
    cancelled = (await plane.client.post(f"/v1/jobs/{second}/cancel")).json()
    assert cancelled["state"] == "cancelled"
    stand_in(1)
    await until(plane, first, "failed")
    await until(plane, third, "failed")
    listed = (await plane.client.get("/v1/jobs", params={"state": "failed"})).json()
    assert {row["id"] for row in listed} == {first, third}


async def test_a_cancelled_job_saves_what_it_has(plane, stand_in) -> None:
    made = await begin(plane)
    await until(plane, made, "running", log="runs")
    assert (await plane.client.post(f"/v1/jobs/{made}/cancel")).json()["cancel_wanted"]
    ended = await until(plane, made, "cancelled", log="saved")
    assert ended["exit_status"] == 130


async def test_a_job_that_will_not_end_is_killed(start_plane, stand_in) -> None:
    stand_in.extra.append("--stubborn")
    async with start_plane(cancel_grace_s=0.01) as plane:
        made = await begin(plane)
        await until(plane, made, "running", log="--stubborn")
        await plane.client.post(f"/v1/jobs/{made}/cancel")
        ended = await until(plane, made, "cancelled")
        assert "saved" not in ended["log"]


async def test_a_job_outlives_the_control_plane_and_its_result_is_found(start_plane, stand_in) -> None:
    async with start_plane() as plane:
        made, other = await begin(plane), await begin(plane)
        pid = (await until(plane, made, "running", log="runs"))["pid"]
    async with start_plane() as plane:
        assert (await until(plane, made, "running"))["pid"] == pid
        assert (await job(plane, other))["state"] == "queued"
    stand_in(4)
    await asyncio.to_thread(gone, plane.settings.data.absolute() / "jobs" / made)
    async with start_plane() as plane:
        assert (await until(plane, made, "failed"))["exit_status"] == 4
        await until(plane, other, "failed")


async def test_a_job_whose_process_is_gone_is_lost(start_plane, stand_in) -> None:
    async with start_plane() as plane:
        made = await begin(plane)
        pid = (await until(plane, made, "running", log="runs"))["pid"]
    os.killpg(pid, signal.SIGKILL)
    async with start_plane() as plane:
        ended = await until(plane, made, "lost")
        assert ended["exit_status"] is None
        assert "left no result" in ended["message"]
        assert ended["ended_at"]
        assert "playserve_control_jobs_lost 1.0" in (await plane.client.get("/metrics")).text


async def test_a_cancel_reaches_a_job_of_an_earlier_control_plane(start_plane, stand_in) -> None:
    async with start_plane() as plane:
        made = await begin(plane)
        await until(plane, made, "running", log="runs")
    async with start_plane() as plane:
        await plane.client.post(f"/v1/jobs/{made}/cancel")
        await until(plane, made, "cancelled", log="saved")


async def test_a_log_that_is_too_long_is_begun_anew_and_its_end_is_told(start_plane, stand_in, monkeypatch) -> None:
    from playserve_services.control.jobs import keeper

    async with start_plane() as plane:
        made = await begin(plane)
        await until(plane, made, "running", log="runs")
        folder = plane.settings.data.absolute() / "jobs" / made
        assert not keeper.trim(folder, 1 << 20)
        assert keeper.trim(folder, 4)  # the command holds it open, and goes on
        assert (folder / keeper.LOG_NAME).stat().st_size == 0
        stand_in(1)
        ended = await until(plane, made, "failed", log="environment")
        assert ended["log"].index("runs") < ended["log"].index("environment")
        assert "runs" not in (folder / keeper.LOG_NAME).read_text()


async def test_shards_are_a_clusters_business(plane) -> None:
    answer = await plane.client.post("/v1/jobs", json={**EVALUATION, "shards": 2})
    assert (answer.status_code, answer.json()["reason"]) == (422, "BAD_SETTING")
    assert "wanted 1, and workers" in answer.json()["detail"]


async def test_a_job_of_one_process_has_no_parts(plane, stand_in) -> None:
    made = await begin(plane)
    await until(plane, made, "running", log="runs")
    assert (await plane.client.get(f"/v1/jobs/{made}/parts")).json() == []
    assert (await plane.client.get(f"/v1/jobs/{made}/log", params={"part": 0})).status_code == 404
    stand_in(1)
    await until(plane, made, "failed")


async def test_no_jobs_where_none_are_allowed(start_plane) -> None:
    async with start_plane(max_jobs=0) as plane:
        answer = await plane.client.post("/v1/jobs", json=EVALUATION)
        assert (answer.status_code, answer.json()["reason"]) == (409, "FAILED_PRECONDITION")


async def test_without_a_server_a_fresh_replica_with_room_is_taken(plane, stand_in) -> None:
    body = {key: value for key, value in EVALUATION.items() if key != "server"}
    assert (await plane.client.post("/v1/jobs", json=body)).status_code == 409
    for name, used, policies in (("full", 9, ["p"]), ("free", 1, ["p"]), ("other", 0, ["q"])):
        beat = {"instance": "i", "address": f"{name}:1", "slots_total": 10, "slots_used": used,
                "versions": {policy: ["1"] for policy in policies}}  # fmt: skip
        await plane.client.put(f"/v1/replicas/{name}", json=beat)
    made = (await plane.client.post("/v1/jobs", json=body)).json()
    assert made["request"]["server"] == "free:1"


async def test_an_evaluation_of_a_real_server_is_recorded(start_plane) -> None:
    pytest.importorskip("ale_py")
    with serving(["atari"]) as server:
        async with start_plane() as plane:
            from playserve_client.client import PolicyClient

            with PolicyClient(server.address) as client:
                version = client.get_policy("atari").spec.version
            plane.register("atari", version)
            made = await begin(plane, game="freeway", policy="atari", version=version, server=server.address,
                               episodes=2, envs=2, max_steps=40, stickiness=[0.25])  # fmt: skip
            ended = await until(plane, made, "succeeded", "failed", "lost")
            assert ended["state"] == "succeeded", ended["log"]
            assert ended["message"] == "1 results recorded"
            report = (await plane.client.get(f"/v1/jobs/{made}/report")).json()
            assert report["complete"]
            (result,) = (await plane.client.get("/v1/policies/atari/evaluations")).json()
    assert (result["n"], result["source"]) == (2, f"job {made}")
    assert "sample" in result["protocol"]
    assert result["mean"] == pytest.approx(next(row["mean"] for row in report["rows"] if row["role"] == "agent"))


async def test_a_grid_that_cannot_be_trained_fails_and_says_why(start_plane, tmp_path) -> None:
    async with start_plane(grids=tmp_path / "grids") as plane:
        body = {"kind": "grid", "grid": "small"}
        missing = await plane.client.post("/v1/jobs", json=body)
        assert (missing.status_code, missing.json()["reason"]) == (404, "NOT_FOUND")
        (tmp_path / "grids" / "small").mkdir(parents=True)
        (tmp_path / "grids" / "small" / "plan.json").write_text("{}")
        made = (await plane.client.post("/v1/jobs", json=body)).json()["id"]
        ended = await until(plane, made, "failed", "succeeded")
        assert ended["state"] == "failed"
        assert ended["log"]
        assert (await plane.client.get(f"/v1/jobs/{made}/report")).status_code == 500


def test_an_unfinished_report_is_no_result() -> None:
    from playserve.errors import DataLossError

    for report in ({"complete": False}, {}, {"complete": True, "policy": {}}):
        with pytest.raises(DataLossError):
            measured_of(json.loads(json.dumps(report)), "test")
