"""Which recordings are good enough to learn from: Open P2P's rules on held keys and activity.

Theirs has two more steps that need more than a recording: the likelihood under a small policy, and people's review.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from playserve.errors import BadSettingError
from playserve_client.p2p.statistics import ActionTally

__all__ = ["QualityRules"]


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityRules:
    """What a recording must keep to; shares are of the frames whose action is known.

    Attributes:
        max_held: Largest share for which any key may be held; a key that is always down says nothing.
        max_keys: Most keys held at once; more is a stuck keyboard or a lost release.
        min_activity: Smallest share in which something is done. Open P2P gives no number for it; this one is ours.
    """

    max_held: float = 0.6
    max_keys: int = 6
    min_activity: float = 0.05

    def __post_init__(self) -> None:
        if not (0 <= self.max_held <= 1 and 0 <= self.min_activity <= 1 and self.max_keys >= 0):
            raise BadSettingError(f"{self}, wanted shares from 0 to 1 and at least 0 keys")

    def broken(self, tally: ActionTally) -> list[str]:
        """Return each rule that a recording breaks, in words; none: it is good."""
        found = [
            f"{key} is held in {tally.held_share(key):.0%} of frames, more than {self.max_held:.0%}"
            for key in sorted(tally.keys)
            if tally.held_share(key) > self.max_held
        ]
        if tally.keys_at_once_max > self.max_keys:
            found.append(f"{tally.keys_at_once_max} keys are held at once, more than {self.max_keys}")
        if tally.activity < self.min_activity:
            found.append(f"something is done in {tally.activity:.1%} of frames, less than {self.min_activity:.0%}")
        return found

    def to_json(self) -> dict[str, Any]:
        """Return a JSON value."""
        return dataclasses.asdict(self)
