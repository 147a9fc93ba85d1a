"""What an operator can read at /metrics of the control plane. One registry a control plane, no globals."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

__all__ = ["ControlMetrics"]

_log = logging.getLogger(__name__)

_SECONDS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)


class _Gauges(Collector):
    """Reads the registry when it is asked; a registry that does not answer has no gauges but `up` 0."""

    def __init__(self, probe: Callable[[], Mapping[str, float]]) -> None:
        self._probe = probe

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Yield nothing: registering must not ask the database."""
        return []

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Yield what the registry holds now."""
        try:
            values = self._probe()
        except Exception as error:  # noqa: BLE001 - a database that is down must not take the other metrics with it
            _log.warning("no gauges: %s", error)
            values = {}
        yield GaugeMetricFamily(
            "playserve_control_database_up", "Whether the registry's database answers.", value=float(bool(values))
        )
        for name, value in values.items():
            yield GaugeMetricFamily(f"playserve_control_{name}", _TEXTS[name], value=value)


_TEXTS = {
    "revision": "Revision of the registry.",
    "policies": "Registered policies.",
    "keys_live": "API keys that hold.",
    "replicas": "Replicas that were ever heard of and not forgotten.",
    "replicas_fresh": "Replicas that were heard of lately.",
    "replicas_behind": "Fresh replicas that follow an older view than this registry's.",
    "jobs_running": "Jobs that run.",
    "jobs_queued": "Jobs that wait.",
    "jobs_lost": "Jobs whose process was gone when it was looked for.",
    "disk_free_bytes": "Room for the data folder: uploads, jobs, and the registry where that is SQLite.",
}


class ControlMetrics:
    """Counters of the control plane, and gauges that `probe` returns by name (see _TEXTS)."""

    def __init__(self, probe: Callable[[], Mapping[str, float]]) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_Gauges(probe))
        self.requests = Counter(
            "playserve_control_requests", "Answered requests.", ["method", "route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "playserve_control_request_seconds", "Time to answer.", ["route"], buckets=_SECONDS, registry=self.registry
        )
        self.refused = Counter(
            "playserve_control_access_refused", "Calls without a key that may.", ["reason"], registry=self.registry
        )
        self.published = Counter(
            "playserve_control_published", "Uploads, by how they ended.", ["outcome"], registry=self.registry
        )
        self.replica_errors = Counter(
            "playserve_control_replica_errors", "Calls to replicas that failed.", ["replica"], registry=self.registry
        )
