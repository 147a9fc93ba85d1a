"""The five calls of the Kubernetes API that jobs need, by the official client; its errors as ours."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import urllib3
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException, OpenApiException
from kubernetes.config.config_exception import ConfigException

from playserve.errors import BadSettingError, ServerFault, ServerUnavailableError
from playserve_services.control.jobs.cluster.settings import ClusterSettings

__all__ = ["Api", "JobStatus", "PodStatus", "indexes_of"]

_TIMEOUT_S = 10.0
_INDEX = "batch.kubernetes.io/job-completion-index"
_JOB_NAME = "batch.kubernetes.io/job-name"
_MAX_LOG_LINES = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStatus:
    """A Kubernetes Job.

    Attributes:
        completions: Indexes that it has.
        succeeded: Those that are done.
        failed: Those that have failed too often.
        condition: "Complete" or "Failed"; empty: it has not ended.
        why: Why it failed, for people.
        leaving: Whether it is being deleted.
    """

    completions: int
    succeeded: frozenset[int]
    failed: frozenset[int]
    condition: str
    why: str
    leaving: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PodStatus:
    """A pod of a Kubernetes Job.

    Attributes:
        name: Its name.
        index: Which part it does.
        created: When it was made, as text that sorts.
        phase: Pending, Running, Succeeded, Failed or Unknown.
        detail: Why it waits, or how it ended; empty: nothing is known.
    """

    name: str
    index: int
    created: str
    phase: str
    detail: str


def indexes_of(text: str) -> frozenset[int]:
    """Return the numbers in Kubernetes' text of indexes, such as "1,3-5,7"."""
    found: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)


class Api:
    """Makes the calls, each with a deadline, in a namespace.

    Args:
        settings: Say where the API is.

    Raises:
        BadSettingError: This is no pod, and there is no kubeconfig; or it cannot be used.
    """

    def __init__(self, settings: ClusterSettings) -> None:
        self._namespace = settings.namespace
        configuration = client.Configuration()
        try:
            if settings.kubeconfig is None:
                config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
            else:
                config.load_kube_config(  # type: ignore[no-untyped-call]
                    config_file=str(settings.kubeconfig), client_configuration=configuration, persist_config=False
                )
        except (ConfigException, OSError) as error:
            raise BadSettingError(f"cannot reach the Kubernetes API: {error}") from error
        configuration.retries = 0  # we look again anyway
        self._client = client.ApiClient(configuration)
        self._batch, self._core = client.BatchV1Api(self._client), client.CoreV1Api(self._client)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()  # type: ignore[no-untyped-call]

    def create(self, manifest: dict[str, Any]) -> None:
        """Create a Job; one of that name that is there already is left as it is.

        Raises:
            BadSettingError: Kubernetes does not take the manifest.
            ServerUnavailableError, ServerFault: It does not answer, or refuses us.
        """
        try:
            body = client.V1Job.from_dict(manifest)
        except ValueError as error:
            raise BadSettingError(f"the cluster's settings make no Kubernetes Job: {str(error)[:500]}") from error
        assert body is not None  # noqa: S101 - as the manifest is
        with _typed("create jobs", exists_ok=True):
            self._batch.create_namespaced_job(
                self._namespace, body, field_validation="Strict", _request_timeout=_TIMEOUT_S
            )

    def job(self, name: str) -> JobStatus | None:
        """Return a Job; None: there is none."""
        found: Any = None
        with _typed("get jobs", missing_ok=True):
            found = self._batch.read_namespaced_job(name, self._namespace, _request_timeout=_TIMEOUT_S)
        return None if found is None else _job_status(found)

    def delete(self, name: str) -> None:
        """Delete a Job after its pods, which have their grace to save what they have; none of that name is fine."""
        with _typed("delete jobs", missing_ok=True):
            self._batch.delete_namespaced_job(
                name, self._namespace, propagation_policy="Foreground", _request_timeout=_TIMEOUT_S
            )

    def pods(self, job: str) -> list[PodStatus]:
        """Return the pods of a Job, by index, the newest of each index last."""
        found: Any = None
        with _typed("list pods"):
            found = self._core.list_namespaced_pod(
                self._namespace, label_selector=f"{_JOB_NAME}={job}", _request_timeout=_TIMEOUT_S
            )
        pods = [_pod_status(pod) for pod in found.items]
        return sorted(pods, key=lambda pod: (pod.index, pod.created, pod.name))

    def log(self, pod: str) -> bytes:
        """Return the last lines of a pod's log; nothing where it has none, or is gone."""
        answer: Any = None
        with _typed("get pods/log", missing_ok=True, early_ok=True):
            # As bytes: a log is not always text, and never of a model's.
            answer = self._core.read_namespaced_pod_log(
                pod, self._namespace, tail_lines=_MAX_LOG_LINES, _request_timeout=_TIMEOUT_S, _preload_content=False
            )
        return b"" if answer is None else bytes(answer.data)


def _job_status(found: Any) -> JobStatus:
    status = found.status
    ends = [item for item in status.conditions or () if item.type in ("Complete", "Failed") and item.status == "True"]
    condition = ends[0] if ends else None
    return JobStatus(
        completions=found.spec.completions or 1,
        succeeded=indexes_of(status.completed_indexes or ""),
        failed=indexes_of(status.failed_indexes or ""),
        condition="" if condition is None else condition.type,
        why="" if condition is None else _words(condition.reason or condition.type, condition.message),
        leaving=found.metadata.deletion_timestamp is not None,
    )


def _pod_status(pod: Any) -> PodStatus:
    index = (pod.metadata.annotations or {}).get(_INDEX, "0")
    created = pod.metadata.creation_timestamp
    return PodStatus(
        name=pod.metadata.name,
        index=int(index) if index.isdigit() else 0,
        created="" if created is None else created.isoformat(),
        phase=pod.status.phase or "Unknown",
        detail=_detail(pod.status),
    )


def _detail(status: Any) -> str:
    for container in status.container_statuses or ():
        state = container.state
        if state is None:
            continue
        if state.waiting is not None:
            return _words(state.waiting.reason or "waits", state.waiting.message)
        if state.terminated is not None and state.terminated.exit_code:
            return f"ended with status {state.terminated.exit_code} ({state.terminated.reason or 'no reason'})"
    for condition in status.conditions or ():
        if condition.type == "PodScheduled" and condition.status == "False":
            return _words(condition.reason or "not scheduled", condition.message)
    return ""


def _words(reason: str, message: str | None) -> str:
    return f"{reason}: {message}"[:500] if message else reason


@contextmanager
def _typed(what: str, *, missing_ok: bool = False, exists_ok: bool = False, early_ok: bool = False) -> Iterator[None]:
    """Turn the client's errors into ours; what is said to be fine ends the block.

    Args:
        what: Verb and resource, for whoever mends the Role.
        missing_ok: Whether 404 is fine.
        exists_ok: Whether 409 is fine.
        early_ok: Whether 400 is fine: a container that has not begun has no log.
    """
    try:
        yield
    except ApiException as error:
        fine = {404: missing_ok, 409: exists_ok, 400: early_ok}
        if fine.get(error.status or 0, False):
            return
        raise _error_of(what, error) from error
    except (OpenApiException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
        raise ServerUnavailableError(f"the Kubernetes API does not answer ({type(error).__name__})") from error


def _error_of(what: str, error: ApiException) -> Exception:
    status, message = error.status or 0, _message(error.body)
    if status in (401, 403):
        return ServerFault(f"Kubernetes does not let this control plane {what}: {message}")
    if status in (400, 404, 409, 422):
        return BadSettingError(f"Kubernetes refuses to {what}: {message}")
    return ServerUnavailableError(f"the Kubernetes API answers {status}: {message}")


def _message(body: str | None) -> str:
    """Return the text of Kubernetes' Status."""
    try:
        value = json.loads(body or "")
    except ValueError:
        return (body or "no text")[:500]
    return str(value.get("message", "no text") if isinstance(value, dict) else value)[:500]
