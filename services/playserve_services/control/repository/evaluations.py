"""Results of evaluations: mean, standard error and number of episodes of one version by one protocol."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from playserve.errors import BadSettingError
from playserve_services.control.models import Evaluation
from playserve_services.control.repository.audit import Actor, note, now
from playserve_services.control.repository.policies import get_policy, get_version

__all__ = ["Measured", "list_evaluations", "newest_evaluation", "record_evaluation", "summary_of_scores"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What was measured.

    Attributes:
        protocol: By what protocol.
        n: Episodes.
        mean: Mean score.
        se: Standard error of the mean; None for one episode.
        scores: Score of each, where they are known.
        source: Where it comes from, for people.
    """

    protocol: str
    n: int
    mean: float
    se: float | None
    scores: tuple[float, ...] = ()
    source: str = ""


def summary_of_scores(protocol: str, scores: Sequence[float], source: str = "") -> Measured:
    """Return mean and standard error of scores.

    Raises:
        BadSettingError: There are none, or one is not finite.
    """
    if not scores or not all(math.isfinite(score) for score in scores):
        raise BadSettingError("scores are a list of at least one finite number")
    n = len(scores)
    mean = statistics.fmean(scores)
    se = statistics.stdev(scores) / math.sqrt(n) if n > 1 else None
    if not (math.isfinite(mean) and (se is None or math.isfinite(se))):
        raise BadSettingError("scores are too large to be averaged")
    return Measured(protocol=protocol, n=n, mean=mean, se=se, scores=tuple(scores), source=source)


def record_evaluation(session: Session, actor: Actor, policy: str, version: str, measured: Measured) -> Evaluation:
    """Keep a result.

    Raises:
        PolicyNotFoundError, VersionNotFoundError: Nothing of that name is registered.
    """
    get_version(session, policy, version)
    row = Evaluation(
        policy=policy, version=version, protocol=measured.protocol, n=measured.n, mean=measured.mean, se=measured.se,
        scores=list(measured.scores), source=measured.source, created_at=now(), created_by=actor.principal,
    )  # fmt: skip
    session.add(row)
    session.flush()
    after = {"evaluation": row.id, "protocol": row.protocol, "mean": row.mean, "se": row.se, "n": row.n}
    note(session, actor, "evaluation.recorded", f"{policy}/{version}", after=after)
    return row


def list_evaluations(
    session: Session, policy: str, *, version: str = "", protocol: str = "", limit: int = 100
) -> Sequence[Evaluation]:
    """Return results of a policy, newest first; raises PolicyNotFoundError."""
    get_policy(session, policy)
    query = select(Evaluation).where(Evaluation.policy == policy).order_by(Evaluation.id.desc()).limit(limit)
    if version:
        query = query.where(Evaluation.version == version)
    if protocol:
        query = query.where(Evaluation.protocol == protocol)
    return session.execute(query).scalars().all()


def newest_evaluation(session: Session, policy: str, version: str, protocol: str = "") -> Evaluation | None:
    """Return the newest result of a version, by a protocol or by any; None: there is none."""
    found = list_evaluations(session, policy, version=version, protocol=protocol, limit=1)
    return found[0] if found else None
