"""Where jobs run: the one interface of this machine's processes and of a cluster's pods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from playserve_services.control.jobs.requests import EvaluationRequest, GridRequest
from playserve_services.control.models import Job

__all__ = ["Ended", "Look", "Part", "PartState", "Started", "Workers"]

PartState = Literal["waiting", "running", "succeeded", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A job that has begun.

    Attributes:
        pid: Of its process on this machine; None: it has none.
        place: Of its Kubernetes Job, as namespace/name; empty: it has none.
    """

    pid: int | None = None
    place: str = ""


@dataclass(frozen=True, slots=True)
class Ended:
    """A job that has ended.

    Attributes:
        status: Exit status; None: nobody wrote it down.
        why: More for people, where it did not succeed.
    """

    status: int | None
    why: str = ""


#: What a look at a job may find beside its end; "not begun": it was taken on, and nobody has started it.
Look = Ended | Literal["running", "not begun"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One index of a job that runs in several parts.

    Attributes:
        index: From 0.
        state: What it does.
        attempts: How often it was begun, as far as is still known.
        pod: Name of its newest pod; empty: none is left.
        detail: Why it waits, or failed.
    """

    index: int
    state: PartState
    attempts: int = 0
    pod: str = ""
    detail: str = ""


class Workers(Protocol):
    """Runs jobs. Every call may block, and is made in a worker thread."""

    owner: str
    """Whose jobs these are: `Job.owner` of each."""

    def open(self) -> bool:
        """Take up what there is; return whether jobs are looked after here."""
        ...

    def close(self) -> None:
        """Let go. Jobs that run go on."""
        ...

    def check(self, request: EvaluationRequest | GridRequest) -> None:
        """Say now what would fail later.

        Raises:
            BadSettingError, NotFoundError: It asks for what cannot be had here.
        """
        ...

    def start(self, job: Job, request: EvaluationRequest | GridRequest) -> Started:
        """Start a job; one that has been started already is left as it is.

        Raises:
            ServerUnavailableError: It cannot be started now; :meth:`look` will say that it has not begun.
            PlayserveError, OSError: It cannot be started at all.
        """
        ...

    def look(self, job: Job) -> Look:
        """Return how a job does.

        Raises:
            ServerUnavailableError: That cannot be told now.
        """
        ...

    def cancel(self, job: Job) -> None:
        """Have a running job save what it has and end; called again and again until it has."""
        ...

    def parts(self, job: Job) -> Sequence[Part]:
        """Return the state of each part, by index; none where a job runs as one."""
        ...

    def log_tail(self, job: Job, limit: int, part: int | None) -> str:
        """Return the last `limit` bytes of a job's log, or of one part's, as text; empty where it has not begun."""
        ...

    def evaluation_report(self, job: Job) -> dict[str, Any]:
        """Return the results.json of an evaluation.

        Raises:
            NotFoundError: There is none yet.
        """
        ...
