"""Grids and evaluations as Jobs, control and Triton: commands that exist, shards that are merged, new names."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fleet
import pytest

from playserve_client.commands import rollout
from playserve_trainer.commands import grid

Render = Callable[[dict[str, Any]], fleet.Rendered]
FILES = fleet.CHART / "files"
EVALUATION = {"enabled": True, "arguments": ["nethack", "--episodes", "8"], "shards": 3, "existingClaim": "results"}
CONTROL = {"enabled": True, "tls": {"existingSecret": "control-tls"}}
JOBS = {"enabled": True, "existingClaim": "jobs"}
GRID = {"enabled": True, "existingClaim": "grids", "runs": 5}


def command_of(job: dict[str, Any]) -> list[str]:
    command: list[str] = job["spec"]["template"]["spec"]["containers"][0]["command"]
    return [word.replace("$(JOB_COMPLETION_INDEX)", "2") for word in command]


def parsed(module: Any, arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    module.configure(parser)
    return parser.parse_args(arguments)


def job(rendered: fleet.Rendered, component: str) -> dict[str, Any]:
    (found,) = [j for j in rendered.of("Job") if j["metadata"]["labels"]["app.kubernetes.io/component"] == component]
    return found


def test_a_grid_is_an_indexed_job_of_one_pod_a_run(render: Render) -> None:
    spec = job(render({"jobs": {"grid": GRID}}), "grid")["spec"]
    assert (spec["completionMode"], spec["completions"]) == ("Indexed", 5)
    assert spec["backoffLimitPerIndex"] == 2
    ignored = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    assert spec["podFailurePolicy"] == {"rules": [ignored]}
    command = command_of({"spec": spec})
    assert command[:2] == ["playserve", "grid"]
    assert parsed(grid, command[2:]).folder == Path("/grid/grid")


def test_runs_on_several_gpus_are_started_by_torchrun(scenario: Callable[[str], fleet.Rendered]) -> None:
    found = job(scenario("gpu-fleet-triton"), "grid")
    command = command_of(found)
    assert command[:6] == ["torchrun", "--standalone", "--nproc-per-node", "2", "-m", "playserve_trainer.grid"]
    assert parsed(grid, command[6:]).folder == Path("/grid/atari-isoflop")
    pod = found["spec"]["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 2
    # What processes of one machine share.
    assert {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "2Gi"}} in pod["volumes"]


def test_returns_are_measured_when_the_grid_is_done(render: Render) -> None:
    found = job(render({"jobs": {"grid": {**GRID, "returns": True}}}), "returns")
    assert parsed(grid, command_of(found)[2:]).folder == Path("/grid/grid")
    (wait,) = found["spec"]["template"]["spec"]["initContainers"]
    assert wait["command"][:2] == ["python3", "-c"]
    assert wait["command"][2] == (FILES / "wait_for_grid.py").read_text()


def test_shards_cover_the_run_and_are_merged(render: Render) -> None:
    rendered = render({"jobs": {"evaluation": EVALUATION}})
    shards, merge = job(rendered, "evaluation"), job(rendered, "merge")
    assert shards["spec"]["completions"] == 3
    played = parsed(rollout, command_of(shards)[2:])
    assert (played.shard, played.out, played.episodes) == ("2/3", Path("/results/evaluation/shard-2"), 8)
    assert played.server == "games-playserve-inference.play.svc.cluster.local:50051"
    merged = parsed(rollout, command_of(merge)[2:])
    assert merged.folders == [Path(f"/results/evaluation/shard-{i}") for i in range(3)]
    (wait,) = merge["spec"]["template"]["spec"]["initContainers"]
    assert wait["command"][3:] == [str(folder) for folder in merged.folders]


def test_changed_values_make_a_new_job_since_a_jobs_template_cannot_change(render: Render) -> None:
    def names(values: dict[str, Any]) -> set[str]:
        return {found["metadata"]["name"] for found in render({"jobs": {"evaluation": values}}).of("Job")}

    first = names(EVALUATION)
    assert names(EVALUATION) == first
    assert not names({**EVALUATION, "shards": 4}) & first


def test_merging_waits_for_every_shard(tmp_path: Path) -> None:
    folders = [tmp_path / f"shard-{i}" for i in range(2)]
    for folder in folders:
        folder.mkdir()
    write_results(folders[0], interrupted=False)
    write_results(folders[1], interrupted=True)  # stopped by a node that went away: the next pod goes on
    command = [sys.executable, "-c", (FILES / "wait_for_shards.py").read_text(), *map(str, folders)]
    code = command[2].replace("poll_s: float = 10.0", "poll_s: float = 0.01")
    with subprocess.Popen([*command[:2], code, *command[3:]], stderr=subprocess.PIPE, text=True) as waiting:
        assert waiting.stderr is not None
        assert waiting.stderr.readline() == f"waiting for 1 of 2 shards: {folders[1]}\n"
        write_results(folders[1], interrupted=False)
        assert waiting.wait() == 0


def write_results(folder: Path, *, interrupted: bool) -> None:
    temporary = folder / "new"
    temporary.write_text(json.dumps({"run": {"interrupted": interrupted}}))
    temporary.rename(folder / "results.json")


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ([{"running": 1}, {"waiting": 1}, {"done": 3}], ""),
        ([{"failed": 1}, {"running": 1}, {"done": 3}], ""),  # tried again, and done
        ([{"running": 1}, {"failed": 2, "done": 1}], "2 runs failed for good: going on without them\n"),
    ],
)
def test_waiting_for_a_grid_ends_when_nobody_works_on_it_any_more(
    tmp_path: Path, told: list[dict[str, int]], said: str
) -> None:
    """The script of the chart against a `playserve` on PATH that tells one state after the other, the last for good."""
    states = [{"done": 0, "running": 0, "failed": 0, "waiting": 0, **state} for state in told]
    (tmp_path / "states.json").write_text(json.dumps(states))
    program = tmp_path / "playserve"
    program.write_text(
        f"#!{sys.executable}\nimport json, pathlib, sys\n"
        f"path = pathlib.Path({str(tmp_path / 'states.json')!r})\nstates = json.loads(path.read_text())\n"
        "assert sys.argv[1:] == ['grid', 'status', '/grid/a', '--json'], sys.argv\n"
        "path.write_text(json.dumps(states[1:] or states))\nprint(json.dumps({'runs': states[0]}))\n"
    )
    program.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", (FILES / "wait_for_grid.py").read_text(), "/grid/a", "0.01", "0.3"],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        check=True, stderr=subprocess.PIPE, text=True, timeout=60,
    )  # fmt: skip
    assert done.stderr == said


def test_the_grid_waited_for_tells_its_states_as_the_command_does() -> None:
    from playserve_trainer.grid.status import STATES

    assert set(STATES) == {"done", "running", "failed", "waiting"}


def test_sqlite_has_one_writer_on_a_volume_that_outlives_the_release(scenario: Callable[[str], fleet.Rendered]) -> None:
    rendered = scenario("air-gapped")
    assert rendered.one("Deployment", "-control")["spec"]["strategy"] == {"type": "Recreate"}
    claim = rendered.one("PersistentVolumeClaim", "-control")
    assert claim["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}


def test_postgresql_comes_from_a_secret_and_takes_several(scenario: Callable[[str], fleet.Rendered]) -> None:
    deployment = scenario("gpu-fleet-triton").one("Deployment", "-control")
    assert deployment["spec"]["strategy"] == {"type": "RollingUpdate"}
    assert deployment["spec"]["replicas"] == 2
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    (database,) = [v for v in container["env"] if v["name"] == "PLAYSERVE_CONTROL_DATABASE"]
    assert database["valueFrom"] == {"secretKeyRef": {"name": "playserve-database", "key": "url"}}


def test_control_may_start_jobs_only_where_that_is_said(render: Render) -> None:
    assert not render({"control": CONTROL}).of("Role")
    assert not render({"control": CONTROL}).of("ConfigMap", "-cluster")
    rendered = render({"control": {**CONTROL, "jobs": JOBS}})
    # tests/services/control/test_cluster.py holds them against the calls that control makes.
    rights = {(rule["resources"][0], *rule["verbs"]) for rule in rendered.one("Role")["rules"]}
    assert rights == {("jobs", "create", "get", "delete"), ("pods", "list"), ("pods/log", "get")}
    binding = rendered.one("RoleBinding")
    assert [subject["name"] for subject in binding["subjects"]] == ["games-playserve-control"]


def test_control_is_told_how_its_jobs_become_kubernetes_jobs(render: Render, tmp_path: Path) -> None:
    from playserve_services.control.jobs.cluster.manifests import job_manifest, work_of
    from playserve_services.control.jobs.cluster.settings import load_cluster
    from playserve_services.control.jobs.requests import parse_request

    more = {"grid": {"processes": 2, "gpu": {"count": 2}, "runtimeClassName": "nvidia"},
            "evaluation": {"tlsSecret": "fleet-tls"}}  # fmt: skip
    keys = {"keys": {"existingSecret": "control-keys"}}
    rendered = render({"control": {**CONTROL, **keys, "jobs": JOBS}, "jobs": more, "store": {"s3": {"region": "eu"}}})
    file = tmp_path / "cluster.json"
    file.write_text(rendered.one("ConfigMap", "-cluster")["data"]["cluster.json"])
    cluster = load_cluster(file)
    request = {"kind": "evaluation", "family": "atari", "game": "pong", "policy": "p", "version": "1", "server": "s:1"}
    work = work_of(cluster, "0" * 16, parse_request(request), None)
    manifest = job_manifest(cluster, "0" * 16, "evaluation", work)
    assert fleet.validate([manifest]) == []
    # The pods are those of the chart's own Jobs: account, labels that policies select by, image.
    accounts = {account["metadata"]["name"] for account in rendered.of("ServiceAccount")}
    pod = manifest["spec"]["template"]
    assert pod["spec"]["serviceAccountName"] in accounts
    policy = rendered.one("NetworkPolicy", "-evaluation")["spec"]["podSelector"]["matchLabels"]
    assert policy.items() <= pod["metadata"]["labels"].items()
    assert cluster.grid is not None
    assert (cluster.grid.processes, cluster.grid.resources["limits"]["nvidia.com/gpu"]) == (2, "2")
    assert cluster.grid.env == {"AWS_DEFAULT_REGION": "eu"}
    assert cluster.key is not None
    assert cluster.key.model_dump() == {"secret": "control-keys", "item": "jobs"}
    deployment = rendered.one("Deployment", "-control")
    mounts = deployment["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    assert {"name": "jobs", "mountPath": str(cluster.folder)} in mounts


def test_jobs_are_off_without_a_cluster_and_four_at_once_with_one(render: Render) -> None:
    def most(control: dict[str, Any]) -> str:
        (container,) = render({"control": control}).one("Deployment", "-control")["spec"]["template"]["spec"][
            "containers"
        ]
        (found,) = [v["value"] for v in container["env"] if v["name"] == "PLAYSERVE_CONTROL_MAX_JOBS"]
        return str(found)

    assert most(CONTROL) == "0"
    assert most({**CONTROL, "jobs": JOBS}) == "4"
    assert most({**CONTROL, "jobs": JOBS, "settings": {"max_jobs": 9}}) == "9"


def test_with_mutual_tls_control_shows_replicas_a_certificate(render: Render) -> None:
    security = {"insecureListen": False, "tls": {"existingSecret": "fleet", "mutual": True}}
    pod = render({"control": CONTROL, "security": security}).one("Deployment", "-control")["spec"]["template"]["spec"]
    told = {item["name"]: item.get("value") for item in pod["containers"][0]["env"]}
    assert told["PLAYSERVE_CONTROL_REPLICA_TLS_CERT"] == "/etc/playserve/fleet/tls.crt"
    (volume,) = [volume for volume in pod["volumes"] if volume["name"] == "fleet"]
    assert {item["key"] for item in volume["secret"]["items"]} == {"ca.crt", "tls.crt", "tls.key"}


def test_triton_shares_memory_and_is_asked_by_inference_alone(scenario: Callable[[str], fleet.Rendered]) -> None:
    rendered = scenario("gpu-fleet-triton")
    pod = rendered.one("StatefulSet", "-triton")["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > 60  # --exit-timeout-secs
    assert {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}} in pod["volumes"]
    ingress = rendered.one("NetworkPolicy", "-triton")["spec"]["ingress"]
    assert ingress[0]["from"][0]["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "inference"


def test_where_triton_computes_each_pod_is_a_front_with_a_number(render: Render) -> None:
    rendered = render({"triton": {"enabled": True, "compute": True, "modelRepositoryClaim": "models"}})
    (container,) = rendered.one("StatefulSet", "-inference")["spec"]["template"]["spec"]["containers"]
    told = {one["name"]: one for one in container["env"]}
    assert told["PLAYSERVE_ENGINE"]["value"] == "triton"
    assert told["PLAYSERVE_TRITON_FRONT"]["value"] == "$(POD_INDEX)"
    service = rendered.one("StatefulSet", "-triton")["spec"]["serviceName"]
    assert told["PLAYSERVE_TRITON_URL"]["value"].startswith(f"{service}-0.{service}.")
    names = [one["name"] for one in container["env"]]
    assert names.index("POD_INDEX") < names.index("PLAYSERVE_TRITON_FRONT")  # Kubernetes puts in what stands before
