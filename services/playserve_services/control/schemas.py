"""What goes over REST, in and out. Answers never hold a secret; the one exception is a new key, shown once."""

from __future__ import annotations

import datetime
from typing import Annotated, Any, Literal

from fastapi import Path
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from playserve_services.auth.keys import Quota, Scope
from playserve_services.control.history import PolicyCounts
from playserve_services.control.jobs.requests import HostPort, PolicyName
from playserve_services.control.jobs.workers import PartState
from playserve_services.control.models import Recording, Replica, ReplicaSession
from playserve_services.control.promotion import GateRule
from playserve_services.control.repository.evaluations import Measured, summary_of_scores
from playserve_services.control.repository.replicas import Beat
from playserve_services.control.statistics import mean_interval

__all__ = [
    "AliasIn", "AliasOut", "AuditOut", "CanaryIn", "DrainIn", "DrainOut", "EndedOut", "EvaluationIn", "EvaluationOut",
    "GateIn", "HeartbeatIn", "HeartbeatOut", "JobOut", "KeyIn", "KeyIssued", "KeyOut", "Line", "LogOut", "NameInPath",
    "PartOut", "PolicyOut", "RecordingIn", "RecordingOut", "ReplicaOut", "RollbackOut", "SessionOut", "SessionsOut",
    "SyncOut", "Unreachable", "UploadIn", "UploadOut", "VersionInPath", "VersionOut",
]  # fmt: skip

#: One line of text without control characters.
Line = Annotated[str, StringConstraints(max_length=2000, pattern=r"^[^\x00-\x1f\x7f]*$")]
Short = Annotated[str, StringConstraints(max_length=128, pattern=r"^[^\x00-\x1f\x7f]*$")]
RecordingName = Annotated[str, StringConstraints(max_length=300, pattern=r"^[^\x00-\x1f\x7f]*$")]
#: An episode's npz, a folder in Open P2P's format, a shard of NetHack games, a recorded terminal; empty: not said.
RecordingFormat = Literal["", "episode", "p2p", "nethack-shard", "ttyrec"]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
VersionName = Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]{0,17}$")]
Number = Annotated[float, Field(ge=-1e12, le=1e12, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=2**31 - 1)]
Large = Annotated[int, Field(ge=0, le=2**53)]

NameInPath = Annotated[str, Path(pattern=r"^[a-z0-9][a-z0-9._-]{0,127}$")]
VersionInPath = Annotated[str, Path(pattern=r"^[1-9][0-9]{0,17}$")]


class _In(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Out(BaseModel):
    model_config = ConfigDict(from_attributes=True, frozen=True)


class PolicyOut(_Out):
    """A policy."""

    name: str
    aliases: dict[str, str]
    canary_weight: float
    created_at: datetime.datetime


class VersionOut(_Out):
    """A published checkpoint."""

    policy: str
    version: str
    weights_sha256: str
    size_bytes: int
    facts: dict[str, Any] = Field(description="What the manifest says of it.")
    created_at: datetime.datetime = Field(description="When it was registered.")
    created_by: str


class SyncOut(_Out):
    """What the store had and the registry had not."""

    registered: list[str]
    aliases: list[str] = Field(description="Of policies that were not known before.")
    failed: dict[str, str] = Field(description="What could not be registered, and why.")


class GateIn(_In):
    """One-sided Welch test that the candidate is not worse by `margin` or more."""

    margin: float = Field(0.0, ge=0, le=1e12, allow_inf_nan=False, description="In units of the score.")
    alpha: float = Field(0.05, gt=0, le=0.5, description="Level of the test.")
    against: PolicyName = "stable"
    protocol: Line = Field("", description="Empty: that of the candidate's newest evaluation.")

    def rule(self) -> GateRule:
        """Return it as a rule."""
        return GateRule(margin=self.margin, alpha=self.alpha, against=self.against, protocol=self.protocol)


class AliasIn(_In):
    """Where an alias shall point."""

    version: VersionName
    expected: Annotated[str, StringConstraints(pattern=r"^([1-9][0-9]{0,17})?$")] | None = Field(
        None, description="Version that it must point at now; empty: that it must not be there; absent: whatever."
    )
    gate: GateIn | None = Field(None, description="Move it only if this test lets the version through.")


class AliasOut(_Out):
    """Where an alias points now."""

    policy: str
    alias: str
    version: str
    before: str | None
    gate: dict[str, Any] | None = None
    revision: int


class RollbackOut(_Out):
    """Where an alias points again."""

    policy: str
    alias: str
    version: str
    before: str
    revision: int


class CanaryIn(_In):
    """Share of new sessions that get the candidate."""

    weight: float = Field(ge=0, le=1)


class EvaluationIn(_In):
    """What was measured: scores, or mean, standard error and number of episodes."""

    protocol: Annotated[str, StringConstraints(min_length=1, max_length=2000, pattern=r"^[^\x00-\x1f\x7f]+$")]
    scores: list[Number] | None = Field(None, min_length=1, max_length=100_000)
    mean: Number | None = None
    se: Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)] | None = None
    n: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    source: Annotated[str, StringConstraints(max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")] = ""

    @model_validator(mode="after")
    def _one_or_the_other(self) -> EvaluationIn:
        summary = (self.mean, self.se, self.n)
        if self.scores is not None and summary != (None, None, None):
            raise ValueError("scores, or mean, se and n; not both")
        if self.scores is None and (self.mean is None or self.n is None or (self.se is None) != (self.n == 1)):
            raise ValueError("scores, or mean and n, and se unless n is 1")
        return self

    def measured(self) -> Measured:
        """Return it as a result."""
        if self.scores is not None:
            return summary_of_scores(self.protocol, self.scores, self.source)
        assert self.mean is not None and self.n is not None  # noqa: S101, PT018 - checked above
        return Measured(protocol=self.protocol, n=self.n, mean=self.mean, se=self.se, source=self.source)


class EvaluationOut(_Out):
    """A stored result."""

    id: int
    policy: str
    version: str
    protocol: str
    n: int
    mean: float
    se: float | None
    interval: tuple[float, float] | None = Field(None, description="95% t interval of the mean.")
    source: str
    created_at: datetime.datetime
    created_by: str

    @classmethod
    def of(cls, row: Any) -> EvaluationOut:
        """Return a row with its interval."""
        return cls.model_validate(row).model_copy(update={"interval": mean_interval(row.mean, row.se, row.n)})


class KeyIn(_In):
    """A key to be issued."""

    principal: Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]+$")]
    scopes: frozenset[Scope] = Field(min_length=1)
    quota: Quota = Quota()
    expires_at: AwareDatetime | None = None


class KeyOut(_Out):
    """What is shown of a key."""

    id: str
    principal: str
    scopes: list[str]
    quota: Quota
    expires_at: datetime.datetime | None
    created_at: datetime.datetime
    created_by: str
    revoked_at: datetime.datetime | None


class KeyIssued(_Out):
    """A new key: the only time that it is shown."""

    key: str
    kept: KeyOut


class AuditOut(_Out):
    """A line of the audit."""

    id: int
    at: datetime.datetime
    principal: str
    key_id: str | None
    action: str
    subject: str
    before: dict[str, Any]
    after: dict[str, Any]


class PolicyFiguresIn(_In):
    """What a replica counted of one policy since its start."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    answered: Large = Field(description="Frames with an answer.")
    late: Large = Field(description="Answers later than one period of the session's rate.")
    dropped: Large = Field(0, description="Frames without an answer.")
    total: list[Large] = Field(max_length=65, description="Answers by time on the server; one more than bounds_s.")


class FiguresIn(_In):
    """Counts for the dashboard's charts."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    bounds_s: list[Annotated[float, Field(gt=0, le=1e6)]] = Field(max_length=64, description="Bounds of `total`.")
    policies: dict[PolicyName, PolicyFiguresIn] = Field(max_length=100)

    def counts(self) -> dict[str, PolicyCounts]:
        """Return them by policy."""
        return {
            name: PolicyCounts(of.answered, of.late, of.dropped, self.bounds_s, of.total)
            for name, of in self.policies.items()
        }


class HeartbeatIn(_In):
    """What a replica says of itself, every few seconds. What this version does not know is ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)  # replicas may be newer than this control plane

    instance: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,64}$")] = Field(
        description="Of this process: a restarted server draws another, and is not told to drain any more."
    )
    address: HostPort = Field(description="Where clients reach it.")
    admin_address: HostPort | Literal[""] | None = Field(
        None, description="Where this control plane reaches its AdminService; empty: it serves none."
    )
    server_version: Annotated[str, StringConstraints(max_length=64, pattern=r"^[^\x00-\x1f\x7f]*$")] = ""
    slots_total: Count = 0
    slots_used: Count = 0
    versions: dict[PolicyName, Annotated[list[PolicyName], Field(max_length=100)]] = Field({}, max_length=1000)
    view_revision: int = Field(-1, ge=-1, le=2**53, description="Of the view that it follows; -1: none.")
    draining: bool = False
    figures: FiguresIn | None = Field(None, description="For charts; absent: this replica tells none.")

    def beat(self) -> Beat:
        """Return it as a heartbeat."""
        return Beat(
            instance=self.instance, address=self.address, admin_address=self.admin_address or "",
            server_version=self.server_version, slots_total=self.slots_total, slots_used=self.slots_used,
            versions=self.versions, view_revision=self.view_revision, draining=self.draining,
        )  # fmt: skip


class HeartbeatOut(_Out):
    """What a replica should do."""

    drain: bool
    revision: int = Field(description="Of the registry; where it is higher than view_revision, ask for the view.")


class ReplicaOut(_Out):
    """A replica."""

    name: str
    instance: str
    address: str
    admin_address: str
    server_version: str
    slots_total: int
    slots_used: int
    versions: dict[str, list[str]]
    view_revision: int
    draining: bool
    drain_wanted: bool
    registered_at: datetime.datetime
    heartbeat_at: datetime.datetime
    fresh: bool = Field(description="Whether it was heard of lately.")

    @classmethod
    def of(cls, row: Replica, *, fresh: bool) -> ReplicaOut:
        """Return a row."""
        names = [name for name in cls.model_fields if name != "fresh"]
        return cls(**{name: getattr(row, name) for name in names}, fresh=fresh)


class DrainIn(_In):
    """How a drain shall go."""

    grace_s: float | None = Field(None, gt=0, le=86_400, description="Absent: the server's own setting.")


class DrainOut(_Out):
    """What came of it."""

    name: str
    drain_wanted: bool
    told: bool = Field(description="Whether the replica has answered already; if not, the view tells it.")
    sessions: int | None = Field(description="That still play, where it has answered.")
    problem: str = Field(default="", description="Why it has not.")


class SessionOut(_Out):
    """A session."""

    replica: str
    session_id: str
    principal: str
    policy: str
    facts: dict[str, Any]
    reported_at: datetime.datetime

    @classmethod
    def of(cls, row: ReplicaSession) -> SessionOut:
        """Return a row."""
        return cls.model_validate(row)


class Unreachable(_Out):
    """A replica whose sessions are as it last reported them."""

    replica: str
    reason: str
    detail: str


class SessionsOut(_Out):
    """Sessions of the fleet."""

    sessions: list[SessionOut]
    unreachable: list[Unreachable]


class EndedOut(_Out):
    """A session that is ending."""

    replica: str
    session_id: str


class JobOut(_Out):
    """A job."""

    id: str
    kind: str
    request: dict[str, Any]
    state: str
    pid: int | None
    place: str = Field(description="Its Kubernetes Job as namespace/name; empty: it has none.")
    exit_status: int | None
    message: str
    cancel_wanted: bool
    created_at: datetime.datetime
    created_by: str
    started_at: datetime.datetime | None
    ended_at: datetime.datetime | None


class PartOut(_Out):
    """A part of a job in a cluster."""

    index: int
    state: PartState
    attempts: int = Field(description="Pods that it has had, as far as they are still known.")
    pod: str
    detail: str = Field(description="Why it waits, or failed.")


class LogOut(_Out):
    """The end of a job's log."""

    id: str
    state: str
    tail: str


class RecordingIn(_In):
    """Where a recorded session lies."""

    principal: Short | None = Field(None, description="Whose it is; absent: the caller's. Others' need an admin.")
    policy: PolicyName
    version: VersionName
    session_id: Short
    url: Line
    sha256: Digest
    size_bytes: Large
    name: RecordingName = ""
    format: RecordingFormat = ""


class UploadIn(_In):
    """What an uploaded recording is."""

    principal: Short | None = Field(None, description="Whose it is; absent: the caller's. Others' need an admin.")
    size_bytes: Large = Field(description="Of the whole recording.")
    name: RecordingName = Field("", description="What its owner calls it.")
    format: RecordingFormat = Field("", description="Folders (p2p, nethack-shard) are uploaded as a tar.")
    policy: PolicyName | Literal[""] = Field("", description="Which played; empty: none, or nobody knows.")
    version: VersionName | Literal[""] = ""
    session_id: Short = ""


class UploadOut(_Out):
    """An upload that has not ended."""

    sha256: str
    received: int = Field(description="Bytes that have come.")


class RecordingOut(_Out):
    """A recording."""

    id: int
    principal: str
    policy: str
    version: str
    session_id: str
    url: str
    sha256: str
    size_bytes: int
    name: str
    format: str
    created_at: datetime.datetime
    stored: bool = Field(description="Whether its bytes can be had here.")

    @classmethod
    def of(cls, row: Recording, *, stored: bool) -> RecordingOut:
        """Return a row."""
        names = [name for name in cls.model_fields if name != "stored"]
        return cls(**{name: getattr(row, name) for name in names}, stored=stored)
