"""A real HTTP server that plays the Kubernetes API's part for the calls of jobs, and runs their pods as processes.

It takes an Indexed Job only if it is one by the published schemas, lets callers do only what a Role says, puts the
index into commands, tries a failed index again, and tells status in Kubernetes' words. What it does not play: nodes,
images, volumes (pods see this machine's files), time-outs, and everything that no job of ours asks for.
"""

from __future__ import annotations

import datetime
import json
import os
import re
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import fleet

__all__ = ["SmallKubernetes"]

_INDEX = "batch.kubernetes.io/job-completion-index"
_JOB_NAME = "batch.kubernetes.io/job-name"
_JOBS = re.compile(r"/apis/batch/v1/namespaces/([^/]+)/jobs(?:/([^/]+))?")
_PODS = re.compile(r"/api/v1/namespaces/([^/]+)/pods(?:/([^/]+)(/log)?)?")
_VERBS = {"POST": "create", "DELETE": "delete"}


class Refusal(Exception):  # noqa: N818 - an answer, not a fault
    """An answer that is no success."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class _Pod:
    name: str
    index: int
    process: subprocess.Popen[bytes]
    log: Path
    created: str

    def phase(self) -> str:
        status = self.process.poll()
        return "Running" if status is None else "Failed" if status else "Succeeded"

    def to_json(self, job: str) -> dict[str, Any]:
        state: dict[str, Any] = {"running": {}}
        if (status := self.process.poll()) is not None:
            state = {"terminated": {"exitCode": abs(status), "reason": "Error" if status else "Completed"}}
        return {
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": self.name, "annotations": {_INDEX: str(self.index)}, "labels": {_JOB_NAME: job},
                         "creationTimestamp": self.created},
            "spec": {"containers": [{"name": "main"}]},
            "status": {"phase": self.phase(), "containerStatuses": [
                {"name": "main", "image": "x", "imageID": "x", "ready": status is None, "restartCount": 0,
                 "state": state},
            ]},
        }  # fmt: skip


@dataclass
class _Job:
    manifest: dict[str, Any]
    pods: list[_Pod] = field(default_factory=list)
    leaving: bool = False

    def of(self, index: int) -> list[_Pod]:
        return [pod for pod in self.pods if pod.index == index]

    def running(self) -> list[_Pod]:
        return [pod for pod in self.pods if pod.phase() == "Running"]


class SmallKubernetes:
    """See the module's docstring.

    Args:
        folder: For logs of pods and the kubeconfig.
        namespace: The only one that there is.
        rules: Of the Role that callers have, as in its manifest.
        secrets: Item by "secret/item".
        path: PATH of the pods.
    """

    TOKEN = "token-of-control"  # noqa: S105 - opens nothing

    def __init__(
        self, folder: Path, namespace: str, rules: Sequence[Mapping[str, Any]], secrets: Mapping[str, str], path: str
    ) -> None:
        self._folder, self._namespace, self._rules, self._path = folder, namespace, rules, path
        self._secrets = secrets
        self._jobs: dict[str, _Job] = {}
        self._lock = threading.Lock()
        self._count = 0
        self.asked: set[tuple[str, str]] = set()
        self.down = False
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        self.kubeconfig = folder / "kubeconfig.json"
        cluster = {"server": f"http://127.0.0.1:{self._server.server_port}"}
        context = {"cluster": "small", "user": "control", "namespace": namespace}
        self.kubeconfig.write_text(json.dumps({
            "apiVersion": "v1", "kind": "Config", "current-context": "small",
            "clusters": [{"name": "small", "cluster": cluster}], "contexts": [{"name": "small", "context": context}],
            "users": [{"name": "control", "user": {"token": self.TOKEN}}],
        }))  # fmt: skip

    def close(self) -> None:
        """Stop everything."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        for job in self._jobs.values():
            for pod in job.pods:
                pod.process.kill()
                pod.process.wait()

    @property
    def manifests(self) -> list[dict[str, Any]]:
        """Every Job that there is, as it was created."""
        return [job.manifest for job in self._jobs.values()]

    def remove(self, name: str) -> None:
        """Have a Job be gone, as if its time to live were over."""
        with self._lock:
            job = self._jobs.pop(name)
        for pod in job.pods:
            pod.process.kill()
            pod.process.wait()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _answer(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(length)
                try:
                    if outer.down:
                        raise Refusal(503, "etcd has no leader")
                    if self.headers.get("Authorization") != f"Bearer {outer.TOKEN}":
                        raise Refusal(401, "Unauthorized")
                    status, kind, data = 200, "application/json", outer._serve(self.command, self.path, body)
                except Refusal as refusal:
                    status, kind = refusal.status, "application/json"
                    data = {"apiVersion": "v1", "kind": "Status", "status": "Failure", "message": str(refusal),
                            "code": status}  # fmt: skip
                if isinstance(data, bytes):
                    kind, payload = "text/plain", data
                else:
                    payload = json.dumps(data).encode()
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

            do_GET = do_POST = do_DELETE = _answer

            def log_message(self, *args: Any) -> None:
                pass

        return Handler

    def _serve(self, method: str, target: str, body: bytes) -> dict[str, Any] | bytes:
        parts = urlsplit(target)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        with self._lock:
            self._work()
            if match := _JOBS.fullmatch(parts.path):
                self._check(match[1], _VERBS.get(method, "get" if match[2] else "list"), "jobs", "batch")
                return self._on_jobs(method, match[2], body, query)
            if match := _PODS.fullmatch(parts.path):
                self._check(match[1], "get" if match[2] else "list", "pods/log" if match[3] else "pods", "")
                return self._on_pods(match[2], query)
        raise Refusal(404, f"the server could not find the requested resource {parts.path}")

    def _check(self, namespace: str, verb: str, resource: str, group: str) -> None:
        """Refuse what no rule of the Role allows."""
        allowed = any(
            verb in rule["verbs"] and resource in rule["resources"] and group in rule["apiGroups"]
            for rule in self._rules
        )
        if namespace != self._namespace or not allowed:
            raise Refusal(403, f'control cannot {verb} resource "{resource}" in the namespace "{namespace}"')
        self.asked.add((verb, resource))

    def _on_jobs(self, method: str, name: str | None, body: bytes, query: Mapping[str, str]) -> dict[str, Any]:
        if method == "POST":
            return self._create(json.loads(body), strict=query.get("fieldValidation") == "Strict")
        job = self._jobs.get(name or "")
        if job is None:
            raise Refusal(404, f'jobs.batch "{name}" not found')
        if method == "DELETE":
            assert "Foreground" in (query.get("propagationPolicy", "") + body.decode()), "pods would outlive the Job"
            job.leaving = True
            for pod in job.running():
                pod.process.send_signal(signal.SIGTERM)
        return self._job_json(job)

    def _create(self, manifest: dict[str, Any], *, strict: bool) -> dict[str, Any]:
        problems = fleet.validate([manifest]) if strict else ["fieldValidation is not Strict"]
        if problems:
            raise Refusal(400, "; ".join(problems))
        name = manifest["metadata"]["name"]
        if name in self._jobs:
            raise Refusal(409, f'jobs.batch "{name}" already exists')
        self._jobs[name] = _Job(manifest)
        self._work()
        return self._job_json(self._jobs[name])

    def _on_pods(self, name: str | None, query: Mapping[str, str]) -> dict[str, Any] | bytes:
        if name is None:
            wanted = unquote(query.get("labelSelector", "")).removeprefix(f"{_JOB_NAME}=")
            job = self._jobs.get(wanted)
            items = [] if job is None else [pod.to_json(wanted) for pod in job.pods]
            return {"apiVersion": "v1", "kind": "PodList", "metadata": {}, "items": items}
        for job in self._jobs.values():
            for pod in job.pods:
                if pod.name == name:
                    lines = pod.log.read_bytes().splitlines(keepends=True)
                    return b"".join(lines[-int(query.get("tailLines", "1000000")) :])
        raise Refusal(404, f'pods "{name}" not found')

    def _work(self) -> None:
        """Do what the controller does: start pods, as many at once as may be; forget what was deleted."""
        for name, job in list(self._jobs.items()):
            if job.leaving:
                if not job.running():
                    del self._jobs[name]
                continue
            spec = job.manifest["spec"]
            for index in range(spec["completions"]):
                if len(job.running()) >= spec["parallelism"]:
                    break
                pods = job.of(index)
                failures = sum(pod.phase() == "Failed" for pod in pods)
                if failures == len(pods) and failures <= spec["backoffLimitPerIndex"]:
                    self._start(name, job, index)

    def _start(self, name: str, job: _Job, index: int) -> None:
        self._count += 1
        pod = job.manifest["spec"]["template"]["spec"]
        container = pod["containers"][0]
        env = {"PATH": self._path, "JOB_COMPLETION_INDEX": str(index)}
        for item in container["env"]:
            reference = item.get("valueFrom", {}).get("secretKeyRef")
            env[item["name"]] = self._secrets[f"{reference['name']}/{reference['key']}"] if reference else item["value"]
        command = [word.replace("$(JOB_COMPLETION_INDEX)", str(index)) for word in container["command"]]
        log = self._folder / f"{name}-{self._count}.log"
        with log.open("wb") as output:
            program = next(
                (str(Path(folder) / command[0]) for folder in self._path.split(os.pathsep)
                 if (Path(folder) / command[0]).exists()), command[0],
            )  # fmt: skip
            process = subprocess.Popen(
                [program, *command[1:]], env=env, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
            )
        created = datetime.datetime.now(datetime.UTC).isoformat()
        job.pods.append(_Pod(f"{name}-{index}-{self._count:05d}", index, process, log, created))

    def _job_json(self, job: _Job) -> dict[str, Any]:
        spec = job.manifest["spec"]
        done, failed = [], []
        for index in range(spec["completions"]):
            phases = [pod.phase() for pod in job.of(index)]
            if "Succeeded" in phases:
                done.append(index)
            elif phases.count("Failed") > spec["backoffLimitPerIndex"]:
                failed.append(index)
        status: dict[str, Any] = {
            "active": len(job.running()), "completedIndexes": _ranges(done), "failedIndexes": _ranges(failed),
        }  # fmt: skip
        if len(done) + len(failed) == spec["completions"]:
            reason = {"type": "Failed", "reason": "FailedIndexes", "message": "Job has failed indexes"}
            status["conditions"] = [{"type": "Complete", "status": "True"} if not failed else
                                    {**reason, "status": "True"}]  # fmt: skip
        metadata = dict(job.manifest["metadata"])
        if job.leaving:
            metadata["deletionTimestamp"] = datetime.datetime.now(datetime.UTC).isoformat()
        return {**job.manifest, "metadata": metadata, "status": status}


def _ranges(numbers: Sequence[int]) -> str:
    """Return numbers as Kubernetes writes them: three and more in a row by first and last."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    words: list[str] = []
    for run in runs:
        words += [f"{run[0]}-{run[-1]}"] if len(run) > 2 else [str(number) for number in run]
    return ",".join(words)
