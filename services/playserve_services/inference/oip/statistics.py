"""What the protocol's ModelStatistics says: requests that came by this protocol, and nothing of other sessions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tritonclient.grpc import service_pb2 as oip

from playserve.specs import PolicySpec
from playserve_services.auth.principal import now_utc
from playserve_services.inference.sessions import Answer

__all__ = ["Statistics"]


@dataclass(slots=True)
class _Counts:
    """Of one version since the start of the server."""

    answered: int = 0
    failed: int = 0
    batches: int = 0
    answered_ns: int = 0
    failed_ns: int = 0
    queue_ns: int = 0
    compute_ns: int = 0
    last_ms: int = 0
    last_batch_ns: int = -1


class Statistics:
    """Counts answers by version. Event loop's thread only."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], _Counts] = {}

    def _of(self, spec: PolicySpec) -> _Counts:
        return self._counts.setdefault((spec.name, spec.version), _Counts())

    def answered(self, spec: PolicySpec, answer: Answer, took_ns: int) -> None:
        """Count an answer that took so long since its frame arrived."""
        counts, began_ns = self._of(spec), answer.frame.arrived_ns + answer.queue_ns
        counts.answered += 1
        counts.answered_ns += took_ns
        counts.queue_ns += answer.queue_ns
        counts.compute_ns += answer.compute_ns
        if began_ns != counts.last_batch_ns:  # batches come back one after another, each with a beginning of its own
            counts.last_batch_ns = began_ns
            counts.batches += 1
        counts.last_ms = int(now_utc().timestamp() * 1000)

    def failed(self, spec: PolicySpec, took_ns: int) -> None:
        """Count a frame that entered its sequence and has no answer."""
        counts = self._of(spec)
        counts.failed += 1
        counts.failed_ns += took_ns

    def message(self, specs: Iterable[PolicySpec]) -> oip.ModelStatisticsResponse:
        """Return the statistics of versions, in their order. What is not measured is absent."""
        response = oip.ModelStatisticsResponse()
        for spec in specs:
            counts = self._counts.get((spec.name, spec.version), _Counts())
            model = response.model_stats.add(
                name=spec.name, version=spec.version, last_inference=counts.last_ms,
                inference_count=counts.answered, execution_count=counts.batches,
            )  # fmt: skip
            stats = model.inference_stats
            for duration, count, ns in (
                (stats.success, counts.answered, counts.answered_ns),
                (stats.fail, counts.failed, counts.failed_ns),
                (stats.queue, counts.answered, counts.queue_ns),
                (stats.compute_infer, counts.answered, counts.compute_ns),
            ):
                duration.count, duration.ns = count, ns
        return response
