"""What a finished evaluation measured, out of its results.json: one result for each row that the policy played."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from playserve.errors import DataLossError
from playserve_services.control.repository.evaluations import Measured, summary_of_scores

__all__ = ["Results", "measured_of"]

# Longest protocol that is kept; the rest of it is in results.json.
_MAX_PROTOCOL = 2000


class Results(NamedTuple):
    """What was measured of one version, a result for each row of the agent."""

    policy: str
    version: str
    measured: list[Measured]


def measured_of(report: Mapping[str, Any], source: str) -> Results:
    """Return what a report says.

    Args:
        report: Value of results.json.
        source: Where it comes from, for people.

    Raises:
        DataLossError: It is no report of ``playserve rollout``, or an unfinished one.
    """
    try:
        if not report["complete"]:
            raise DataLossError("results.json is of an unfinished run")
        policy, version = str(report["policy"]["name"]), str(report["policy"]["version"])
        words = "; ".join(str(line) for line in report["protocol"])
        found = []
        for row in report["rows"]:
            if row["role"] != "agent":
                continue
            scores = [float(item["score"]) for item in report["episodes"] if item["row"] == row["key"]]
            if scores and all(math.isfinite(score) for score in scores):
                protocol = f"{report['title']}, {row['key']}: {words}"[:_MAX_PROTOCOL]
                found.append(summary_of_scores(protocol, scores, source))
    except (KeyError, TypeError, ValueError) as error:
        raise DataLossError(f"results.json is no report of playserve rollout ({error!r})") from error
    return Results(policy, version, found)
