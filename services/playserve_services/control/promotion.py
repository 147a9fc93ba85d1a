"""Moving an alias, through the gate where one is asked for. Judged and moved in one change of the registry."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy.orm import Session

from playserve_services.control.gate import GateRefusedError, GateResult, judge
from playserve_services.control.models import Evaluation
from playserve_services.control.repository.aliases import STABLE, aliases_of, check_alias, set_alias
from playserve_services.control.repository.audit import Actor
from playserve_services.control.repository.evaluations import newest_evaluation
from playserve_services.control.repository.policies import get_version

__all__ = ["GateRule", "gate", "promote"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GateRule:
    """What is asked of a candidate.

    Attributes:
        margin: By how much its mean may be worse, in units of the score.
        alpha: Level of the test.
        against: The alias whose version it is compared with.
        protocol: By which protocol; empty: that of the candidate's newest evaluation.
    """

    margin: float = 0.0
    alpha: float = 0.05
    against: str = STABLE
    protocol: str = ""


def gate(session: Session, policy: str, version: str, rule: GateRule) -> GateResult:
    """Return the test of a version against the one that `rule.against` points at.

    Raises:
        BadSettingError, PolicyNotFoundError, VersionNotFoundError: A name is none, or nothing has it.
        GateRefusedError: There is nothing to compare: no such alias yet, or no evaluations of one protocol.
    """
    get_version(session, policy, version)
    standing = aliases_of(session, policy).get(policy, {}).get(check_alias(rule.against))
    if standing is None:
        raise GateRefusedError(
            f"{policy}/{rule.against} points at nothing, so there is nothing to compare {version} with; set it once "
            "without a gate"
        )
    candidate = _measured(session, policy, version, rule.protocol)
    stable = _measured(session, policy, standing, candidate.protocol)
    return judge(candidate, stable, margin=rule.margin, alpha=rule.alpha)


def promote(
    session: Session,
    actor: Actor,
    policy: str,
    alias: str,
    version: str,
    *,
    expected: str | None = None,
    rule: GateRule | None = None,
) -> tuple[str | None, GateResult | None]:
    """Point an alias at a version; return the version before, and the gate's numbers where it was asked.

    Raises:
        GateRefusedError: The gate does not let it through; the message has the numbers.
        PlayserveError: As :func:`playserve_services.control.repository.aliases.set_alias`.
    """
    result = None if rule is None else gate(session, policy, version, rule)
    if result is not None and not result.passed:
        raise GateRefusedError(f"{policy} {version} was not promoted to {alias}: {result.in_words()}", result)
    evidence = {} if result is None else {"gate": result.to_json()}
    before = set_alias(session, actor, policy, alias, version, expected=expected, evidence=evidence)
    return before, result


def _measured(session: Session, policy: str, version: str, protocol: str) -> Evaluation:
    found = newest_evaluation(session, policy, version, protocol)
    if found is None:
        by = f" by the protocol {protocol!r}" if protocol else ""
        raise GateRefusedError(f"{policy} {version} has no stored evaluation{by}; the gate needs one of each version")
    return found
