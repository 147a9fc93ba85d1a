"""What an operator sees of sessions that move."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram

__all__ = ["HandoffMetrics"]

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)


class HandoffMetrics:
    """Counters of one server, giving and taking.

    Args:
        registry: Where they are registered.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.given = Counter(
            "playserve_sessions_given", "Sessions that were handed to another server.", ("policy",), registry=registry
        )
        self.failed = Counter(
            "playserve_handoffs_failed",
            "Attempts to hand a session over after which it stayed where it was.",
            ("policy", "reason"),
            registry=registry,
        )
        self.taken = Counter(
            "playserve_sessions_taken", "Sessions that came from another server.", ("policy",), registry=registry
        )
        self.refused = Counter(
            "playserve_takeovers_failed",
            "Sessions of another server that did not come to live here.",
            ("reason",),
            registry=registry,
        )
        self.redirected = Counter(
            "playserve_opens_redirected",
            "Players who were sent on to a peer with room.",
            ("policy",),
            registry=registry,
        )
        self.pause = Histogram(
            "playserve_handoff_pause_seconds",
            "How long a session stood still before its player was told where it lives.",
            registry=registry,
            buckets=_SECONDS,
        )
        self.sent = Counter(
            "playserve_handoff_bytes", "Bytes of memory that were sent to other servers.", registry=registry
        )
