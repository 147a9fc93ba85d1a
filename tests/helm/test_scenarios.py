"""Every scenario of the chart: valid everywhere, and what must hold in each of them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chart_schema
import fleet
import pytest
import yaml
from pydantic_settings import BaseSettings

from playserve_services.auth.http import check_url
from playserve_services.control.settings import ControlSettings
from playserve_services.inference.settings import ServeSettings

ROOT = Path(__file__).resolve().parents[2]
Manifest = dict[str, Any]


def pods(rendered: fleet.Rendered) -> Iterator[tuple[Manifest, Manifest]]:
    """Yield everything that makes pods, with the pod's spec."""
    for manifest in rendered.manifests:
        if manifest["kind"] in ("StatefulSet", "Deployment", "Job"):
            yield manifest, manifest["spec"]["template"]["spec"]


def containers(pod: Manifest) -> list[Manifest]:
    return [*pod.get("initContainers", []), *pod["containers"]]


def test_the_scenarios_are_the_five_that_the_documentation_names() -> None:
    assert {path.stem for path in (fleet.CHART / "ci").glob("*.yaml")} == {
        "laptop-cpu", "one-gpu", "gpu-fleet-triton", "air-gapped", "mutual-tls",
    }  # fmt: skip


def test_every_manifest_is_valid_in_the_three_newest_versions_of_kubernetes(every: fleet.Rendered) -> None:
    assert len(fleet.newest_versions()) == 3
    assert fleet.validate(every.manifests) == []


def test_every_manifest_is_valid_in_the_oldest_version_that_the_chart_takes(every: fleet.Rendered) -> None:
    chart = yaml.safe_load((fleet.CHART / "Chart.yaml").read_text())
    assert chart["kubeVersion"] == ">=1.29.0-0"
    assert fleet.validate(every.manifests, ["1.29"]) == []


def test_a_kind_without_a_schema_fails() -> None:
    unknown = {"apiVersion": "games.example.com/v1", "kind": "Arcade", "metadata": {"name": "a"}}
    misspelt = {"apiVersion": "apps/v1", "kind": "StatefullSet", "metadata": {"name": "a"}}
    assert "no schema" in fleet.validate([unknown])[0]
    assert len(fleet.validate([misspelt])) == 3


def test_a_field_that_a_custom_resource_does_not_have_fails() -> None:
    route = {
        "apiVersion": "gateway.networking.k8s.io/v1alpha2", "kind": "TCPRoute", "metadata": {"name": "a", "labell": {}},
        "spec": {"rules": [{"backendRefs": [{"name": "a", "port": 1}]}], "parentRef": []},
    }  # fmt: skip
    problems = fleet.validate([route], ["1.37"])
    assert any("parentRef" in problem for problem in problems)
    assert any("labell" in problem for problem in problems)


def test_pods_are_not_root_and_can_write_nowhere_but_their_volumes(every: fleet.Rendered) -> None:
    for manifest, pod in pods(every):
        context = pod["securityContext"]
        assert context["runAsNonRoot"], manifest["metadata"]["name"]
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in containers(pod):
            own = container["securityContext"]
            assert own["readOnlyRootFilesystem"]
            assert own["allowPrivilegeEscalation"] is False
            assert own["capabilities"] == {"drop": ["ALL"]}
            # Caches of libraries go where HOME is.
            assert {"name": "tmp", "mountPath": "/tmp"} in container["volumeMounts"]
            assert {"name": "HOME", "value": "/tmp"} in container["env"]
            assert container["resources"]["requests"]
            assert container["resources"]["limits"]["memory"]


def test_no_pod_but_controls_gets_a_token_and_no_service_sets_variables(every: fleet.Rendered) -> None:
    accounts = {account["metadata"]["name"] for account in every.of("ServiceAccount")}
    roles = bool(every.of("Role"))
    for manifest, pod in pods(every):
        control = manifest["metadata"]["name"].endswith("-control")
        assert pod["automountServiceAccountToken"] is (control and roles)
        # A Service called `playserve` would set PLAYSERVE_PORT to tcp://...
        assert pod["enableServiceLinks"] is False
        assert pod["serviceAccountName"] in accounts
    assert all(account["automountServiceAccountToken"] is False for account in every.of("ServiceAccount"))


@pytest.mark.parametrize(("prefix", "model"), [("PLAYSERVE_", ServeSettings), ("PLAYSERVE_CONTROL_", ControlSettings)])
def test_every_variable_of_the_chart_is_a_setting(
    every: fleet.Rendered, prefix: str, model: type[BaseSettings]
) -> None:
    for _, pod in pods(every):
        for container in containers(pod):
            for variable in container["env"]:
                name = variable["name"]
                if not name.startswith(prefix) or name.startswith("PLAYSERVE_CONTROL_") != (model is ControlSettings):
                    continue
                assert name.removeprefix(prefix).lower() in model.model_fields, name


def test_the_inference_server_accepts_what_the_chart_tells_it(
    every: fleet.Rendered, monkeypatch: pytest.MonkeyPatch
) -> None:
    (container,) = every.one("StatefulSet", "-inference")["spec"]["template"]["spec"]["containers"]
    for variable in container["env"]:
        if "value" in variable:
            text = variable["value"].replace("$(POD_NAME)", "games-playserve-inference-1").replace("$(POD_INDEX)", "1")
            assert "$(" not in text
            monkeypatch.setenv(variable["name"], text)
    settings = ServeSettings()
    assert settings.host == "0.0.0.0"
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {
        "grpc": settings.port, "admin": settings.admin_port, "health": settings.health_port,
        "metrics": settings.metrics_port,
    }  # fmt: skip
    if settings.registry:
        check_url("registry", settings.registry)
    if settings.advertise:
        assert re.fullmatch(r"[a-z0-9.-]+:[0-9]+", settings.advertise)


def test_the_control_plane_accepts_what_the_chart_tells_it(
    every: fleet.Rendered, monkeypatch: pytest.MonkeyPatch
) -> None:
    for deployment in every.of("Deployment", "-control"):
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        for variable in container["env"]:
            monkeypatch.setenv(variable["name"], variable.get("value", "from-a-secret"))
        assert ControlSettings().host == "0.0.0.0"


def test_volumes_and_mounts_are_the_same(every: fleet.Rendered) -> None:
    for manifest, pod in pods(every):
        claims = {claim["metadata"]["name"] for claim in manifest["spec"].get("volumeClaimTemplates", [])}
        there = {volume["name"] for volume in pod["volumes"]}
        assert not there & claims
        used = {mount["name"] for container in containers(pod) for mount in container["volumeMounts"]}
        assert used == there | claims, manifest["metadata"]["name"]


def test_secrets_that_the_chart_makes_are_those_that_pods_read(every: fleet.Rendered) -> None:
    text = json.dumps([spec for _, spec in pods(every)])
    for secret in every.of("Secret"):
        assert f'"{secret["metadata"]["name"]}"' in text


def test_selectors_find_the_pods_that_they_mean_and_no_others(every: fleet.Rendered) -> None:
    labels = {m["metadata"]["name"]: m["spec"]["template"]["metadata"]["labels"] for m, _ in pods(every)}
    by_component = {found["app.kubernetes.io/component"]: found for found in labels.values()}
    for manifest in every.manifests:
        spec = manifest.get("spec", {})
        selector = spec.get("selector") or spec.get("podSelector")
        if manifest["kind"] in ("Service", "PodDisruptionBudget", "NetworkPolicy"):
            wanted = {k: v for k, v in selector.get("matchLabels", selector).items() if "pod-name" not in k}
            matching = [name for name, found in by_component.items() if wanted.items() <= found.items()]
            assert matching == [wanted["app.kubernetes.io/component"]], manifest["metadata"]["name"]


def test_the_notes_tell_the_next_command(every: fleet.Rendered) -> None:
    assert "kubectl -n play rollout status statefulset/games-playserve-inference" in every.notes
    assert "playserve policies --server" in every.notes


def test_the_schema_of_values_is_what_the_settings_of_the_services_say() -> None:
    assert chart_schema.main(["--check"]) == 0, "run: python deploy/chart_schema.py"


def test_fleet_tells_what_it_checked(tmp_path: Path) -> None:
    out = tmp_path / "manifests.yaml"
    values = str(fleet.CHART / "ci" / "laptop-cpu.yaml")
    done = subprocess.run(
        [sys.executable, "deploy/fleet.py", "-f", values, "--set", "inference.replicas=2", "--out", str(out)],
        cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert "0 problems" in done.stdout
    assert "replicas: 2" in out.read_text()


def test_fleet_refuses_values_in_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "deploy/fleet.py", "--set", "inference.replicaas=2"],
        cwd=ROOT, check=False, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert "replicaas" in done.stderr
