"""Runs jobs as Kubernetes Indexed Jobs. Results lie on a volume that this control plane and the pods both mount.

Any number of control planes of one namespace look after the same jobs: what they do is the same, however often it is
done, and the registry takes the first one's word for how a job ended.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import subprocess
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from playserve.errors import NotFoundError, PlayserveError, ServerFault
from playserve.files import read_json, write_text
from playserve_services.control.jobs import processes
from playserve_services.control.jobs.cluster.api import Api, JobStatus, PodStatus
from playserve_services.control.jobs.cluster.manifests import job_manifest, job_name, results_folder, work_of
from playserve_services.control.jobs.cluster.settings import ClusterSettings
from playserve_services.control.jobs.requests import EvaluationRequest, GridRequest, parse_request
from playserve_services.control.jobs.workers import Ended, Look, Part, PartState, Started
from playserve_services.control.models import Job

__all__ = ["ClusterWorkers"]

_log = logging.getLogger(__name__)
_MERGE_TIMEOUT_S = 300.0
_KEPT_LOG_BYTES = 262_144
_MOST_PODS = 8


class ClusterWorkers:
    """See the module's docstring.

    Args:
        settings: Where and how.
        api: Makes the calls.
        grids: Folder of planned grids on the volume; none: no grids.
    """

    def __init__(self, settings: ClusterSettings, api: Api, grids: Path | None) -> None:
        self._settings, self._api, self._grids = settings, api, grids
        whose = hashlib.sha256(f"{settings.namespace}/{settings.name}".encode()).hexdigest()[:32]
        self.owner = f"cluster-{whose}"
        self._deleted: set[str] = set()

    def open(self) -> bool:
        """Every control plane of the namespace looks after them."""
        return True

    def close(self) -> None:
        """Close the connections."""
        self._api.close()

    def check(self, request: EvaluationRequest | GridRequest) -> None:
        """See the protocol."""
        work_of(self._settings, "0" * 16, request, self._grids)

    def start(self, job: Job, request: EvaluationRequest | GridRequest) -> Started:
        """Create its Kubernetes Job, if that is not there."""
        work = work_of(self._settings, job.id, request, self._grids)
        if isinstance(request, EvaluationRequest):
            results_folder(self._settings, job.id).mkdir(parents=True, exist_ok=True)
        self._api.create(job_manifest(self._settings, job.id, job.kind, work))
        return Started(place=f"{self._settings.namespace}/{job_name(self._settings, job.id)}")

    def look(self, job: Job) -> Look:
        """Look at its Kubernetes Job."""
        found = self._api.job(job_name(self._settings, job.id))
        if found is None:
            self._deleted.discard(job.id)
            if not job.place:
                return "not begun"
            return Ended(None, f"its Kubernetes Job {job.place} is gone: it was deleted, or its time to live was over")
        if not found.condition:
            return "running"
        self._keep_log(job)
        if found.condition == "Complete" and not found.failed:
            return Ended(0)
        failed = ", ".join(map(str, sorted(found.failed)[:20]))
        return Ended(1, f"{found.why}; failed: {failed or 'no index by itself'}; the log says why")

    def cancel(self, job: Job) -> None:
        """Delete its Kubernetes Job; its pods have their grace to save what they have."""
        if job.id in self._deleted:
            return
        self._keep_log(job)
        self._api.delete(job_name(self._settings, job.id))
        self._deleted.add(job.id)

    def parts(self, job: Job) -> Sequence[Part]:
        """Return the state of each index; none where the Kubernetes Job is gone, or not there yet."""
        name = job_name(self._settings, job.id)
        found = self._api.job(name)
        if found is None:
            return []
        pods: dict[int, list[PodStatus]] = {}
        for pod in self._api.pods(name):
            pods.setdefault(pod.index, []).append(pod)
        return [_part(index, found, pods.get(index, [])) for index in range(found.completions)]

    def log_tail(self, job: Job, limit: int, part: int | None) -> str:
        """Return the end of the log of one part's newest pod, or of those that tell most; kept when pods are gone."""
        newest = {pod.index: pod for pod in self._api.pods(job_name(self._settings, job.id))}
        if part is not None:
            if part not in newest:
                raise NotFoundError(f"part {part} of job {job.id} has no pod")
            return self._api.log(newest[part].name)[-limit:].decode("utf-8", "replace")
        if not newest:
            return self._kept_log(job)[-limit:].decode("utf-8", "replace")
        return self._logs(list(newest.values()), limit)

    def evaluation_report(self, job: Job) -> dict[str, Any]:
        """Return the results.json of an evaluation, its shards put together."""
        request = parse_request(job.request)
        assert isinstance(request, EvaluationRequest)  # noqa: S101 - asked for evaluations alone
        folder = results_folder(self._settings, job.id)
        shards = [folder / f"shard-{index}" for index in range(request.shards)]
        whole = shards[0] if request.shards == 1 else folder / "whole"
        if request.shards > 1 and not whole.exists():
            missing = [shard.name for shard in shards if not (shard / "results.json").exists()]
            if missing:
                raise NotFoundError(f"job {job.id} is {job.state}; there are no results of {', '.join(missing[:20])}")
            _merge(shards, whole)
        found = read_json(whole / "results.json")
        if found is None:
            raise NotFoundError(f"job {job.id} is {job.state} and has no report")
        return found

    def _logs(self, pods: Sequence[PodStatus], limit: int) -> str:
        """Return the ends of several pods' logs, each under its name: of those that failed, then of those that run."""
        order = {"Failed": 0, "Running": 1, "Succeeded": 2}
        shown = sorted(pods, key=lambda pod: (order.get(pod.phase, 3), pod.index))[:_MOST_PODS]
        share = limit // len(shown)
        texts = []
        for pod in sorted(shown, key=lambda pod: pod.index):
            tail = self._api.log(pod.name)[-share:].decode("utf-8", "replace")
            texts.append(f"== part {pod.index}, pod {pod.name}, {pod.phase}\n{tail}")
        return "\n".join(texts)

    def _keep_log(self, job: Job) -> None:
        """Keep the end of the log beside the results: pods go, and their logs with them."""
        try:
            newest = {pod.index: pod for pod in self._api.pods(job_name(self._settings, job.id))}
            if newest:
                path = self._log_path(job)
                path.parent.mkdir(parents=True, exist_ok=True)
                write_text(path, self._logs(list(newest.values()), _KEPT_LOG_BYTES))
        except (OSError, PlayserveError) as error:  # a log is not worth the job
            _log.warning("the log of job %s is not kept: %s", job.id, error)

    def _kept_log(self, job: Job) -> bytes:
        try:
            return self._log_path(job).read_bytes()
        except FileNotFoundError:
            return b""

    def _log_path(self, job: Job) -> Path:
        return results_folder(self._settings, job.id) / "log.txt"


def _part(index: int, job: JobStatus, pods: Sequence[PodStatus]) -> Part:
    newest = pods[-1] if pods else None
    state: PartState = "waiting"
    if index in job.succeeded:
        state = "succeeded"
    elif index in job.failed:
        state = "failed"
    elif newest is not None and newest.phase == "Running":
        state = "running"
    return Part(
        index=index, state=state, attempts=len(pods), pod="" if newest is None else newest.name,
        detail="" if newest is None or state == "succeeded" else newest.detail,
    )  # fmt: skip


def _merge(shards: Sequence[Path], whole: Path) -> None:
    """Put the shards of an evaluation together, in a folder that is there whole or not at all."""
    temporary = whole.with_name(f".{whole.name}.{uuid.uuid4().hex}")
    try:
        processes.capture(["rollout", "merge", *map(str, shards), f"--out={temporary}"], _MERGE_TIMEOUT_S)
        temporary.rename(whole)
    except subprocess.CalledProcessError as error:
        raise ServerFault(f"the shards cannot be put together: {(error.stderr or '').strip()[-500:]}") from error
    except subprocess.TimeoutExpired as error:
        raise ServerFault(f"the shards were not put together within {_MERGE_TIMEOUT_S:g} s") from error
    except OSError:
        if not whole.exists():  # else another control plane was quicker
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
