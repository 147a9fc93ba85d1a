"""What an upgrade of the chart would do: every disruptive difference is named, and nothing else."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fleet
import pytest
import upgrade_check
import yaml
from upgrade_check import Severity

Render = Callable[[dict[str, Any]], fleet.Rendered]
ROOT = Path(__file__).resolve().parents[2]
SMALL = {"requests": {"storage": "500Mi"}}
FLEET = {
    "inference": {"replicas": 3, "registryCache": {"persistent": True}},
    "external": {"mode": "loadBalancer"},
    "control": {"enabled": True, "tls": {"existingSecret": "control-tls"}},
}


def felt(render: Render, old: dict[str, Any], new: dict[str, Any]) -> dict[str, Severity]:
    """Return the differences between two sets of values, as "Kind/name what" by severity."""
    found = upgrade_check.compare(render(old).manifests, render(new).manifests)
    return {f"{d.where.replace('games-playserve-', '')} {d.what}": d.severity for d in found}


def test_the_same_values_change_nothing(render: Render) -> None:
    assert felt(render, FLEET, FLEET) == {}


def test_a_new_version_of_the_chart_restarts_no_pod(render: Render, tmp_path: Path) -> None:
    """Labels of objects carry the chart's version, those of pods do not."""
    import shutil

    newer = tmp_path / "playserve"
    shutil.copytree(fleet.CHART, newer)
    text = (newer / "Chart.yaml").read_text()
    (newer / "Chart.yaml").write_text(text.replace("\nversion: 0.1.0", "\nversion: 0.2.0"))
    values = fleet.merged({"security": {"insecureListen": True}, "store": {"url": "s3://a/b"}}, FLEET)
    old, new = fleet.render(values), fleet.render(values, chart=newer)
    assert old.manifests != new.manifests
    assert upgrade_check.compare(old.manifests, new.manifests) == []


def test_a_new_image_restarts_replicas_one_by_one(render: Render) -> None:
    found = felt(render, FLEET, fleet.merged(FLEET, {"inference": {"image": {"tag": "0.2.0"}}}))
    assert found == {
        "StatefulSet/inference its pods are replaced one by one: spec.containers.inference.image: "
        '"playserve-inference:0.1.0" -> "playserve-inference:0.2.0"': Severity.RESTART
    }


def test_a_changed_setting_is_named(render: Render) -> None:
    found = felt(render, FLEET, fleet.merged(FLEET, {"inference": {"settings": {"slots": 64}}}))
    ((what, severity),) = found.items()
    assert "PLAYSERVE_SLOTS" in what
    assert severity is Severity.RESTART


def test_a_volume_of_replicas_cannot_change(render: Render) -> None:
    found = felt(render, FLEET, fleet.merged(FLEET, {"inference": {"registryCache": {"size": "1Gi"}}}))
    ((what, severity),) = found.items()
    assert what.startswith("StatefulSet/inference spec.volumeClaimTemplates cannot change")
    assert severity is Severity.REFUSED


def test_another_name_of_the_release_is_not_an_upgrade(render: Render) -> None:
    found = felt(render, FLEET, {**FLEET, "fullnameOverride": "arcade"})
    lost = {what.split()[0] for what, severity in found.items() if severity is Severity.LOSS}
    assert "Service/inference" in lost
    assert found["StatefulSet/inference is deleted: its sessions end after their drain"] is Severity.OUTAGE


def test_fewer_replicas_lose_addresses_and_drain(render: Render) -> None:
    found = felt(render, FLEET, fleet.merged(FLEET, {"inference": {"replicas": 2}}))
    assert found == {
        "Service/inference-2 is deleted: whoever dials it finds nobody": Severity.LOSS,
        "StatefulSet/inference spec.replicas goes from 3 to 2: the last ones drain and go": Severity.RESTART,
    }


def test_turning_the_autoscaler_on_or_off_moves_the_number_of_replicas(render: Render) -> None:
    scaled = fleet.merged(FLEET, {"autoscaling": {"enabled": True, "minReplicas": 3}})
    on, off = felt(render, FLEET, scaled), felt(render, scaled, FLEET)
    assert (
        on["StatefulSet/inference spec.replicas goes from 3 to the default, 1, until it is scaled"] is Severity.OUTAGE
    )
    assert (
        off["StatefulSet/inference spec.replicas is set to 3, whatever an autoscaler had made of it"] is Severity.OUTAGE
    )


def test_sqlite_is_away_while_control_is_replaced_and_postgresql_is_not(render: Render) -> None:
    newer = {"control": {"image": {"tag": "0.2.0"}}}
    ((_, severity),) = felt(render, FLEET, fleet.merged(FLEET, newer)).items()
    assert severity is Severity.OUTAGE
    server = fleet.merged(FLEET, {"control": {"database": {"existingSecret": "database"}}})
    ((_, severity),) = felt(render, server, fleet.merged(server, newer)).items()
    assert severity is Severity.RESTART


def test_moving_from_sqlite_keeps_its_volume(render: Render) -> None:
    found = felt(render, FLEET, fleet.merged(FLEET, {"control": {"database": {"existingSecret": "database"}}}))
    assert not any(what.startswith("PersistentVolumeClaim") for what in found)


def test_a_job_with_other_values_is_another_job(render: Render) -> None:
    jobs = {"evaluation": {"enabled": True, "arguments": ["nethack"], "existingClaim": "results"}}
    found = felt(render, {"jobs": jobs}, {"jobs": fleet.merged(jobs, {"evaluation": {"shards": 8}})})
    assert set(found.values()) == {Severity.RESTART}


@pytest.mark.parametrize(
    ("kind", "suffix", "change", "severity", "told"),
    [
        ("StatefulSet", "-inference", ("spec", "selector", {"matchLabels": {"a": "b"}}), "refused", "spec.selector"),
        ("StatefulSet", "-inference", ("spec", "serviceName", "other"), "refused", "spec.serviceName"),
        ("Deployment", "-control", ("spec", "selector", {"matchLabels": {"a": "b"}}), "refused", "spec.selector"),
        ("Service", "-inference", ("spec", "clusterIP", "None"), "refused", "spec.clusterIP"),
        ("Service", "-inference", ("spec", "type", "LoadBalancer"), "loss", "its address changes"),
        ("Service", "-inference", ("spec", "ports", [{"port": 443}]), "loss", "no longer listens on 50051"),
        ("Service", "-inference", ("spec", "selector", {"a": "b"}), "outage", "other pods"),
        ("PersistentVolumeClaim", "-control", ("spec", "accessModes", ["ReadWriteMany"]), "refused", "accessModes"),
        ("PersistentVolumeClaim", "-control", ("spec", "resources", SMALL), "refused", "shrink"),
    ],
)  # fmt: skip
def test_fields_that_cannot_change_are_refused(
    render: Render, kind: str, suffix: str, change: tuple[str, str, Any], severity: str, told: str
) -> None:
    old = render(FLEET)
    new = copy.deepcopy(old)
    new.one(kind, suffix)[change[0]][change[1]] = change[2]
    (found,) = upgrade_check.compare(old.manifests, new.manifests)
    assert found.severity == severity
    assert told in found.what


def test_a_growing_volume_is_no_difference(render: Render) -> None:
    new = fleet.merged(FLEET, {"control": {"database": {"sqlite": {"size": "10Gi"}}}})
    assert felt(render, FLEET, new) == {}


def test_the_command_says_it_and_fails_where_kubernetes_would(render: Render, tmp_path: Path) -> None:
    old = render(FLEET).manifests
    new = render(fleet.merged(FLEET, {"inference": {"registryCache": {"size": "1Gi"}}})).manifests
    for name, manifests in (("old", old), ("new", new)):
        (tmp_path / name).write_text(yaml.safe_dump_all(manifests))
    command = [sys.executable, str(ROOT / "deploy" / "upgrade_check.py"), str(tmp_path / "old"), str(tmp_path / "new")]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stdout.startswith("refused  StatefulSet/games-playserve-inference: spec.volumeClaimTemplates")
    assert done.stdout.endswith("1 differences that are felt\n")
