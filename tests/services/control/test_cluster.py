"""Jobs as Kubernetes Indexed Jobs: manifests by the published schemas, calls by the chart's Role, pods as processes."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("kubernetes", reason="the official client of the Kubernetes API")
pytest.importorskip("helm_python", reason="needs helm-python-sdk: the Role is the chart's")
pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate: the schemas of Kubernetes")

import fleet
from small_kubernetes import SmallKubernetes

from playserve.errors import BadSettingError
from playserve_services.control.jobs.cluster.api import indexes_of
from playserve_services.control.jobs.cluster.manifests import job_manifest, work_of
from playserve_services.control.jobs.cluster.settings import ClusterSettings, load_cluster
from playserve_services.control.jobs.requests import parse_request

LIMIT_S = 100.0
JOB = "0123456789abcdef"
EVALUATION = {"kind": "evaluation", "family": "atari", "game": "breakout", "policy": "p", "version": "1",
              "server": "127.0.0.1:50051"}  # fmt: skip
CONTROL = {"enabled": True, "tls": {"existingSecret": "tls"}, "jobs": {"enabled": True, "existingClaim": "jobs"}}
#: Stands in for playserve in a pod: says what it was told, and does as the file of its index says.
SCRIPT = """#!{python}
import os, pathlib, signal, sys, time
def stop(*_):
    print("saved", flush=True); sys.exit(130)
signal.signal(signal.SIGTERM, stop)
index = os.environ["JOB_COMPLETION_INDEX"]
print("pod", index, os.path.basename(sys.argv[0]), *sys.argv[1:], flush=True)
print("key", os.environ.get("PLAYSERVE_API_KEY"), flush=True)
told = pathlib.Path({folder!r}) / f"status-{{index}}"
while not told.exists():
    time.sleep(0.02)
sys.exit(int(told.read_text()))
"""


@pytest.fixture(scope="module")
def role() -> list[dict[str, Any]]:
    """Return the rules of the chart's Role for control."""
    values = {"security": {"insecureListen": True}, "store": {"volume": {"existingClaim": "s"}}, "control": CONTROL}
    rules: list[dict[str, Any]] = fleet.render(values).one("Role")["rules"]
    return rules


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    folder = tmp_path / "volume"
    (folder / "grids" / "small").mkdir(parents=True)
    (folder / "grids" / "small" / "plan.json").write_text(json.dumps({"runs": [{}, {}, {}]}))
    return folder


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """Return a folder of programs for pods."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("playserve", "torchrun"):
        (folder / name).write_text(SCRIPT.format(python=sys.executable, folder=str(tmp_path)))
        (folder / name).chmod(0o755)
    return folder


@pytest.fixture
def api(tmp_path: Path, role: list[dict[str, Any]], programs: Path) -> Iterator[SmallKubernetes]:
    made = SmallKubernetes(tmp_path, "play", role, {"keys/jobs": "psk_of_the_job"}, f"{programs}:{os.environ['PATH']}")
    yield made
    made.close()


def settings_of(volume: Path, **more: Any) -> dict[str, Any]:
    pod = {"image": "registry.example/evaluator:1", "resources": {"limits": {"memory": "4Gi"}}, "retries": 1}
    return {"namespace": "play", "claim": "jobs", "folder": str(volume), "evaluation": pod,
            "grid": {**pod, "image": "trainer:1", "processes": 2}, **more}  # fmt: skip


@pytest.fixture
def file(tmp_path: Path, volume: Path, api: SmallKubernetes) -> Path:
    """Return the file that says how jobs run in the cluster."""
    path = tmp_path / "cluster.json"
    key = {"secret": "keys", "item": "jobs"}
    path.write_text(json.dumps(settings_of(volume, kubeconfig=str(api.kubeconfig), key=key)))
    return path


@pytest.fixture
def let(tmp_path: Path) -> Callable[[int, int], None]:
    """Return a function that ends the pods of an index with a status."""

    def end(index: int, status: int) -> None:
        (tmp_path / "new").write_text(str(status))
        (tmp_path / "new").replace(tmp_path / f"status-{index}")

    return end


async def begin(plane: Any, **body: Any) -> str:
    made = await plane.client.post("/v1/jobs", json={**EVALUATION, **body})
    assert made.status_code == 201, made.text
    return str(made.json()["id"])


async def until(plane: Any, job_id: str, *states: str, log: str = "") -> dict[str, Any]:
    deadline = time.monotonic() + LIMIT_S
    while True:
        await asyncio.to_thread(plane.context.jobs.tick)
        found = (await plane.client.get(f"/v1/jobs/{job_id}")).json()
        tail = (await plane.client.get(f"/v1/jobs/{job_id}/log")).json().get("tail", "")
        if found["state"] in states and log in tail:
            return {**found, "log": tail}
        assert time.monotonic() < deadline, (found, tail)
        await asyncio.sleep(0.05)


async def states(plane: Any, job_id: str) -> list[str]:
    return [part["state"] for part in (await plane.client.get(f"/v1/jobs/{job_id}/parts")).json()]


@pytest.mark.parametrize(
    "more",
    [{}, {"tls_secret": "tls", "mutual": True}, {"pull_secrets": ["registry"], "key": {"secret": "k", "item": "i"}}],
)  # fmt: skip
@pytest.mark.parametrize(
    "request_",
    [{**EVALUATION, "shards": 4}, {"kind": "grid", "grid": "small", "workers": 2}],
    ids=["evaluation", "grid"],
)
def test_manifests_are_jobs_by_the_schemas_of_the_newest_kubernetes(
    volume: Path, more: dict[str, Any], request_: dict[str, Any]
) -> None:
    pod = {"image": "x:1", "runtime_class": "nvidia", "node_selector": {"gpu": "h100"}, "env": {"A": "b"},
           "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}], "env_secret": "s3",
           "resources": {"limits": {"nvidia.com/gpu": "1"}}}  # fmt: skip
    cluster = ClusterSettings.model_validate(settings_of(volume, evaluation=pod, grid={**pod, "processes": 2}, **more))
    work = work_of(cluster, JOB, parse_request(request_), volume / "grids")
    manifest = job_manifest(cluster, JOB, request_["kind"], work)
    assert fleet.validate([manifest]) == []
    spec = manifest["spec"]
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == (4 if request_["kind"] == "evaluation" else 3)
    inside = spec["template"]["spec"]
    assert inside["automountServiceAccountToken"] is False
    assert inside["securityContext"]["runAsNonRoot"]
    assert inside["containers"][0]["securityContext"]["readOnlyRootFilesystem"]
    mounted = {mount["name"] for mount in inside["containers"][0]["volumeMounts"]}
    assert mounted == {volume["name"] for volume in inside["volumes"]}


def test_pods_are_told_what_playserve_takes(volume: Path) -> None:
    from playserve.cli import build_parser
    from playserve_trainer.commands import grid

    cluster = ClusterSettings.model_validate({**settings_of(volume), "tls_secret": "tls", "mutual": True})
    evaluation = work_of(cluster, JOB, parse_request({**EVALUATION, "shards": 4}), None)
    words = [word.replace("$(JOB_COMPLETION_INDEX)", "2") for word in evaluation.command]
    parsed = build_parser().parse_args(words[1:])
    assert (parsed.shard, parsed.out) == ("2/4", volume / "results" / JOB / "shard-2")
    assert str(parsed.tls_ca) == "/etc/playserve/tls/ca.crt"
    work = work_of(cluster, JOB, parse_request({"kind": "grid", "grid": "small", "workers": 9}), volume / "grids")
    assert work.command[:6] == ["torchrun", "--standalone", "--nproc-per-node", "2", "-m", "playserve_trainer.grid"]
    assert (work.completions, work.parallelism) == (3, 3)
    import argparse

    parser = argparse.ArgumentParser()
    grid.configure(parser)
    assert parser.parse_args(list(work.command[6:])).folder == volume / "grids" / "small"


@pytest.mark.parametrize(
    ("more", "why"),
    [({"folder": "relative"}, "absolute"), ({"mutual": True}, "tls_secret"), ({"namespace": "No"}, "namespace"),
     ({"evaluation": {"image": "x", "processes": 2}}, "processes"), ({"unknown": 1}, "unknown"),
     ({"name": "x" * 40}, "name"), ({"claim": "../x"}, "claim")],
)  # fmt: skip
def test_settings_that_make_no_sense_are_named(volume: Path, tmp_path: Path, more: dict[str, Any], why: str) -> None:
    path = tmp_path / "cluster.json"
    path.write_text(json.dumps(settings_of(volume, **more)))
    with pytest.raises(BadSettingError, match=why):
        load_cluster(path)
    with pytest.raises(BadSettingError, match="no file"):
        load_cluster(tmp_path / "missing")


@pytest.mark.parametrize(
    ("request_", "why"),
    [({"kind": "grid", "grid": "small", "minutes": 5}, "deadline_s"), ({"kind": "grid", "grid": "x"}, "no planned")],
)  # fmt: skip
async def test_what_a_cluster_cannot_do_is_refused_at_once(start_plane, file, volume, request_, why) -> None:
    async with start_plane(cluster=file, grids=volume / "grids") as plane:
        answer = await plane.client.post("/v1/jobs", json=request_)
        assert answer.status_code in (404, 422)
        assert why in answer.json()["detail"]
        assert (await plane.client.get("/v1/jobs")).json() == []


async def test_a_grid_runs_and_each_index_is_told_of(start_plane, file, volume, api, let) -> None:
    async with start_plane(cluster=file, grids=volume / "grids") as plane:
        body = {"kind": "grid", "grid": "small", "workers": 2}
        made = (await plane.client.post("/v1/jobs", json=body)).json()["id"]
        running = await until(plane, made, "running", log="pod 1 torchrun --standalone --nproc-per-node 2")
        assert running["place"] == f"play/playserve-{made}"
        assert await states(plane, made) == ["running", "running", "waiting"]  # two at once
        let(0, 0)
        let(1, 1)  # fails twice: more than its retries
        await until(plane, made, "running", log="pod 2 torchrun")
        one = (await plane.client.get(f"/v1/jobs/{made}/log", params={"part": 2})).json()["tail"]
        assert one.startswith("pod 2")
        assert (await plane.client.get(f"/v1/jobs/{made}/log", params={"part": 9})).status_code == 404
        let(2, 0)
        ended = await until(plane, made, "failed")
        assert "failed: 1;" in ended["message"]
        parts = (await plane.client.get(f"/v1/jobs/{made}/parts")).json()
        assert [part["state"] for part in parts] == ["succeeded", "failed", "succeeded"]
        assert [part["attempts"] for part in parts] == [1, 2, 1]
        assert parts[1]["detail"] == "ended with status 1 (Error)"
        api.remove(f"playserve-{made}")
        kept = (await plane.client.get(f"/v1/jobs/{made}/log")).json()["tail"]
        assert "== part 1, pod " in kept  # also when the pods are gone
        assert "psk_of_the_job" not in kept  # grids have no key


async def test_an_evaluations_pods_have_the_key_and_its_manifest_has_not(start_plane, file, api, let) -> None:
    async with start_plane(cluster=file) as plane:
        made = await begin(plane, shards=2)
        await until(plane, made, "running", log="key psk_of_the_job")
        assert "psk_of_the_job" not in json.dumps(api.manifests)
        assert (await plane.client.get(f"/v1/jobs/{made}/report")).status_code == 404
        for index in range(2):
            let(index, 0)
        ended = await until(plane, made, "succeeded")
        assert "no results of shard-0, shard-1" in ended["message"]  # the stand-in wrote none


async def test_a_cancelled_job_saves_what_it_has_and_is_gone(start_plane, file, api) -> None:
    async with start_plane(cluster=file) as plane:
        made = await begin(plane, shards=2)
        await until(plane, made, "running", log="pod 1")
        await plane.client.post(f"/v1/jobs/{made}/cancel")
        ended = await until(plane, made, "cancelled")
        assert api.manifests == []
        assert "pod 0" in ended["log"]
        assert (await plane.client.get(f"/v1/jobs/{made}/parts")).json() == []


async def test_a_job_whose_kubernetes_job_is_gone_is_lost(start_plane, file, api) -> None:
    async with start_plane(cluster=file) as plane:
        made = await begin(plane)
        await until(plane, made, "running", log="pod 0")
        api.remove(f"playserve-{made}")
        assert "time to live" in (await until(plane, made, "lost"))["message"]


async def test_an_api_that_is_away_ends_no_job_and_begins_it_later(start_plane, file, api, let) -> None:
    async with start_plane(cluster=file) as plane:
        api.down = True
        made = await begin(plane)
        await asyncio.to_thread(plane.context.jobs.tick)
        assert (await plane.client.get(f"/v1/jobs/{made}")).json()["state"] == "running"
        answer = await plane.client.get(f"/v1/jobs/{made}/parts")
        assert (answer.status_code, answer.json()["reason"]) == (503, "UNAVAILABLE")
        api.down = False
        await until(plane, made, "running", log="pod 0")
        api.down = True
        await asyncio.to_thread(plane.context.jobs.tick)
        api.down = False
        let(0, 1)
        await until(plane, made, "failed")


async def test_another_control_plane_of_the_namespace_takes_a_job_up(start_plane, file, api, let, tmp_path) -> None:
    database = f"sqlite:///{tmp_path / 'shared.db'}"
    async with (
        start_plane(cluster=file, database=database, data=tmp_path / "a") as first,
        start_plane(cluster=file, database=database, data=tmp_path / "b") as second,
    ):
        made = await begin(first)
        await until(second, made, "running", log="pod 0")
        await asyncio.to_thread(first.context.jobs.tick)
        assert len(api.manifests) == 1
        let(0, 0)
        await until(first, made, "succeeded")
        await asyncio.to_thread(second.context.jobs.tick)


async def test_the_chart_lets_control_do_what_it_does_and_no_more(start_plane, file, volume, api, role, let) -> None:
    async with start_plane(cluster=file) as plane:
        made = await begin(plane)
        await until(plane, made, "running", log="pod 0")
        await plane.client.post(f"/v1/jobs/{made}/cancel")
        await until(plane, made, "cancelled")
    allowed = {(verb, resource) for rule in role for resource in rule["resources"] for verb in rule["verbs"]}
    assert api.asked == allowed


async def test_a_role_that_lacks_a_right_is_said(start_plane, file, api) -> None:
    api._rules = []
    async with start_plane(cluster=file) as plane:
        made = await begin(plane)
        ended = await until(plane, made, "failed")
    assert "does not let this control plane create jobs" in ended["message"]
    assert 'cannot create resource "jobs"' in ended["message"]


@pytest.mark.slow  # two pods that each start an evaluator
async def test_shards_of_a_real_server_are_put_together_and_recorded(start_plane, file, programs) -> None:
    pytest.importorskip("ale_py")
    from contract_kit.servers import serving

    from playserve_client.client import PolicyClient

    code = "import sys; from playserve.cli import main; sys.exit(main())"
    (programs / "playserve").write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{code}" "$@"\n')
    with serving(["atari"]) as server:
        async with start_plane(cluster=file) as plane:
            with PolicyClient(server.address) as client:
                version = client.get_policy("atari").spec.version
            plane.register("atari", version)
            await plane.client.put("/v1/policies/atari/aliases/stable", json={"version": version})
            made = await begin(plane, game="freeway", policy="atari", version="stable", server=server.address,
                               episodes=4, envs=2, max_steps=30, stickiness=[0.25], shards=2)  # fmt: skip
            ended = await until(plane, made, "succeeded", "failed", "lost")
            assert ended["state"] == "succeeded", ended
            assert ended["request"]["version"] == version  # the alias, when it was taken on
            assert ended["message"] == "1 results recorded"
            report = (await plane.client.get(f"/v1/jobs/{made}/report")).json()
            assert report["complete"]
            (result,) = (await plane.client.get("/v1/policies/atari/evaluations")).json()
    assert (result["n"], result["source"]) == (4, f"job {made}")


def test_outside_of_a_pod_a_kubeconfig_is_wanted(volume: Path, tmp_path: Path) -> None:
    from playserve_services.control.jobs.cluster.api import Api

    for more in ({}, {"kubeconfig": str(tmp_path / "missing")}):
        with pytest.raises(BadSettingError, match="cannot reach the Kubernetes API"):
            Api(ClusterSettings.model_validate(settings_of(volume, **more)))


def test_settings_that_make_no_job_are_said(volume: Path, api: SmallKubernetes) -> None:
    from playserve_services.control.jobs.cluster.api import Api

    pod = {"image": "x", "tolerations": [{"key": 5}]}
    cluster = ClusterSettings.model_validate(settings_of(volume, evaluation=pod, kubeconfig=str(api.kubeconfig)))
    work = work_of(cluster, JOB, parse_request(EVALUATION), None)
    client = Api(cluster)
    try:
        with pytest.raises(BadSettingError, match="settings make no Kubernetes Job"):
            client.create(job_manifest(cluster, JOB, "evaluation", work))
    finally:
        client.close()


@pytest.mark.parametrize(
    ("text", "numbers"), [("", set()), ("3", {3}), ("0-2", {0, 1, 2}), ("1,3-5,7", {1, 3, 4, 5, 7})]
)
def test_indexes_are_read_as_kubernetes_writes_them(text: str, numbers: set[int]) -> None:
    assert indexes_of(text) == numbers
