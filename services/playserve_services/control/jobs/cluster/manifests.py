"""The manifest of a job: one Kubernetes Indexed Job; each pod does a shard of an evaluation or a run of a grid.

It is made of checked settings and a checked request by :func:`job_manifest` alone, and holds no secret: keys come from
Secrets by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from playserve.errors import BadSettingError, DataLossError
from playserve.files import read_json
from playserve_services.control.jobs.cluster.settings import ClusterSettings, PodSettings
from playserve_services.control.jobs.requests import EvaluationRequest, GridRequest

__all__ = ["JOB_LABEL", "Work", "job_manifest", "job_name", "results_folder", "work_of"]

#: Label of a Job and its pods: the job's id.
JOB_LABEL = "playserve.dev/job"
_INDEX = "$(JOB_COMPLETION_INDEX)"  # Kubernetes puts it in
_TLS = "/etc/playserve/tls"


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What the pods of a job do.

    Attributes:
        pod: What they are like.
        command: Of each.
        completions: How many of them there are.
        parallelism: How many at once.
    """

    pod: PodSettings
    command: Sequence[str]
    completions: int
    parallelism: int


def job_name(cluster: ClusterSettings, job_id: str) -> str:
    """Return the name of a job's Kubernetes Job."""
    return f"{cluster.name}-{job_id}"


def results_folder(cluster: ClusterSettings, job_id: str) -> Path:
    """Return the folder of an evaluation's results, here and in its pods."""
    return cluster.folder / "results" / job_id


def work_of(
    cluster: ClusterSettings, job_id: str, request: EvaluationRequest | GridRequest, grids: Path | None
) -> Work:
    """Return what the pods of a job do.

    Raises:
        BadSettingError: Jobs of that kind do not run here, or the grid is not on the volume.
        NotFoundError: There is no such grid.
        DataLossError: Its plan is damaged.
    """
    pod = cluster.evaluation if isinstance(request, EvaluationRequest) else cluster.grid
    if pod is None:
        raise BadSettingError(f"the cluster's settings say nothing of {request.kind} jobs")
    if isinstance(request, GridRequest):
        return _grid(cluster, pod, request, grids)
    command = ["playserve", *request.command(f"{results_folder(cluster, job_id)}/shard-{_INDEX}")]
    command.append(f"--shard={_INDEX}/{request.shards}")
    if cluster.tls_secret:
        command.append(f"--tls-ca={_TLS}/ca.crt")
    if cluster.mutual:
        command += [f"--tls-cert={_TLS}/tls.crt", f"--tls-key={_TLS}/tls.key"]
    return Work(pod=pod, command=command, completions=request.shards, parallelism=request.shards)


def _grid(cluster: ClusterSettings, pod: PodSettings, request: GridRequest, grids: Path | None) -> Work:
    if request.minutes is not None:
        raise BadSettingError("minutes has no meaning in a cluster, where a job's deadline is a setting (deadline_s)")
    folder = request.folder(grids)
    if not folder.is_relative_to(cluster.folder):
        raise BadSettingError(f"the grid {request.grid!r} is not on the volume that pods see, {cluster.folder}")
    plan = read_json(folder / "plan.json") or {}
    runs = plan.get("runs")
    if not isinstance(runs, list) or not runs:
        raise DataLossError(f"the plan of {request.grid!r} has no runs")
    starter = ["playserve", "grid"]
    if pod.processes > 1:
        starter = ["torchrun", "--standalone", "--nproc-per-node", str(pod.processes), "-m", "playserve_trainer.grid"]
    command = [*starter, "run", str(folder), f"--device={request.device}"]
    return Work(pod=pod, command=command, completions=len(runs), parallelism=min(request.workers, len(runs)))


def job_manifest(cluster: ClusterSettings, job_id: str, kind: str, work: Work) -> dict[str, Any]:
    """Return the Kubernetes Job.

    Args:
        cluster: Where and how.
        job_id: Of the job.
        kind: "evaluation" or "grid".
        work: What its pods do.
    """
    pod = work.pod
    labels = {
        "app.kubernetes.io/name": "playserve", "app.kubernetes.io/component": kind, **pod.labels, JOB_LABEL: job_id,
    }  # fmt: skip
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": job_name(cluster, job_id), "namespace": cluster.namespace, "labels": labels},
        "spec": {
            "completionMode": "Indexed",
            "completions": work.completions,
            "parallelism": work.parallelism,
            "backoffLimitPerIndex": pod.retries,
            # One index that fails leaves the others alone.
            "maxFailedIndexes": work.completions,
            "activeDeadlineSeconds": pod.deadline_s,
            "ttlSecondsAfterFinished": pod.ttl_s,
            "podFailurePolicy": {
                # A node that goes away is nobody's failure: what was saved goes on.
                "rules": [{"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}]
            },
            "template": {"metadata": {"labels": labels}, "spec": _pod(cluster, kind, work)},
        },
    }


def _pod(cluster: ClusterSettings, kind: str, work: Work) -> dict[str, Any]:
    pod = work.pod
    optional = {
        "runtimeClassName": pod.runtime_class, "nodeSelector": pod.node_selector, "tolerations": pod.tolerations,
        "imagePullSecrets": [{"name": name} for name in cluster.pull_secrets],
    }  # fmt: skip
    return {
        "restartPolicy": "Never",
        "serviceAccountName": pod.service_account,
        "automountServiceAccountToken": False,
        # A Service called `playserve` would set PLAYSERVE_PORT=tcp://...
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": pod.grace_s,
        "securityContext": dict(cluster.pod_security),
        "containers": [_container(cluster, kind, work)],
        "volumes": _volumes(cluster, kind, pod),
        **{name: value for name, value in optional.items() if value},
    }


def _container(cluster: ClusterSettings, kind: str, work: Work) -> dict[str, Any]:
    pod = work.pod
    # The root is read-only: what libraries cache goes where HOME is.
    env: list[dict[str, Any]] = [{"name": "HOME", "value": "/tmp"}]  # noqa: S108 - a volume of the pod
    env += [{"name": name, "value": value} for name, value in pod.env.items()]
    mounts: list[dict[str, Any]] = [
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108
        {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108
        {"name": "jobs", "mountPath": str(cluster.folder)},
    ]
    if kind == "evaluation":
        if cluster.key is not None:
            reference = {"name": cluster.key.secret, "key": cluster.key.item}
            env.append({"name": "PLAYSERVE_API_KEY", "valueFrom": {"secretKeyRef": reference}})
        if cluster.tls_secret:
            mounts.append({"name": "tls", "mountPath": _TLS, "readOnly": True})
    made: dict[str, Any] = {
        "name": kind,
        "image": pod.image,
        "imagePullPolicy": cluster.pull_policy,
        "command": list(work.command),
        "env": env,
        "resources": {which: dict(amounts) for which, amounts in pod.resources.items()},
        "securityContext": dict(cluster.container_security),
        "volumeMounts": mounts,
    }
    if pod.env_secret:
        made["envFrom"] = [{"secretRef": {"name": pod.env_secret}}]
    return made


def _volumes(cluster: ClusterSettings, kind: str, pod: PodSettings) -> list[dict[str, Any]]:
    volumes: list[dict[str, Any]] = [
        {"name": "tmp", "emptyDir": {}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": pod.shared_memory}},
        {"name": "jobs", "persistentVolumeClaim": {"claimName": cluster.claim}},
    ]
    if kind == "evaluation" and cluster.tls_secret:
        volumes.append({"name": "tls", "secret": {"secretName": cluster.tls_secret, "defaultMode": 0o440}})
    return volumes
