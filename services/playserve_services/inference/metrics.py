"""What an operator can read at /metrics. One registry a server, no globals; children are looked up once a policy."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from playserve_services.inference.catalog import LoadedPolicy
    from playserve_services.inference.sessions import Answer, EndReason, Session

__all__ = ["Metrics"]

_SECONDS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class _Distribution:
    """Counts of one policy. Written by the event loop's thread, read by the scraper's."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Add one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


class _Histogram(Collector):
    """A histogram by policy, cheap to write.

    prometheus_client's own takes a lock and walks the bounds at each observation; there are six a step.
    """

    def __init__(self, name: str, text: str, bounds: Sequence[float]) -> None:
        self._name, self._text, self._bounds = name, text, bounds
        self._policies: dict[str, _Distribution] = {}

    def labels(self, policy: str) -> _Distribution:
        """Return the distribution of a policy."""
        return self._policies.setdefault(policy, _Distribution(self._bounds))

    def collect(self) -> Iterable[HistogramMetricFamily]:
        """Yield the cumulative counts."""
        family = HistogramMetricFamily(self._name, self._text, labels=["policy"])
        for policy, values in list(self._policies.items()):
            running = list(accumulate(values.counts))
            bounds = [*(str(float(bound)) for bound in self._bounds), "+Inf"]
            family.add_metric([policy], list(zip(bounds, running, strict=True)), values.total)
        yield family


class _PolicyMetrics:
    """The children of one policy: `.labels()` costs more than the observation."""

    def __init__(self, metrics: Metrics, policy: str) -> None:
        self.frames = metrics.frames.labels(policy)
        self.dropped = metrics.frames_dropped.labels(policy)
        self.stale = metrics.frames_stale.labels(policy)
        self.shed = metrics.frames_shed.labels(policy)
        self.misses = metrics.deadline_misses.labels(policy)
        self.age = metrics.frame_age.labels(policy)
        self.decode = metrics.decode_time.labels(policy)
        self.queue = metrics.queue_time.labels(policy)
        self.compute = metrics.compute_time.labels(policy)
        self.total = metrics.total_time.labels(policy)
        self.batch_size = metrics.batch_size.labels(policy)
        self.padding = metrics.padding.labels(policy)

    def figures(self) -> dict[str, Any]:
        """Return the counts that a heartbeat carries."""
        return {
            "answered": _value(self.frames),
            "late": _value(self.misses),
            "dropped": _value(self.dropped) + _value(self.stale) + _value(self.shed),
            "total": list(self.total.counts),
        }


def _value(counter: Counter) -> int:
    return int(next(s.value for m in counter.collect() for s in m.samples if s.name.endswith("_total")))


class _SlotCollector(Collector):
    """Reads the slots when it is asked, so that the hot path sets no gauge."""

    def __init__(self, policies: Callable[[], Iterable[LoadedPolicy]]) -> None:
        self._policies = policies

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Yield slots used and total by policy; versions of one layout share a pool and count once."""
        used = GaugeMetricFamily("playserve_slots_used", "Slots that a session owns.", labels=["policy", "layout"])
        total = GaugeMetricFamily("playserve_slots_total", "Slots of the state layout.", labels=["policy", "layout"])
        size = GaugeMetricFamily("playserve_slot_bytes", "Memory of one session in bytes.", labels=["policy", "layout"])
        seen = set()
        for policy in self._policies():
            key = (policy.spec.name, policy.pool.digest)
            if key not in seen:
                seen.add(key)
                used.add_metric(key, policy.pool.used)
                total.add_metric(key, policy.pool.capacity)
                size.add_metric(key, policy.pool.bytes_per_slot)
        yield from (used, total, size)


class Metrics:
    """Counters and histograms of one inference server.

    Args:
        policies: Returns the loaded versions, for the gauges of slots.
    """

    def __init__(self, policies: Callable[[], Iterable[LoadedPolicy]] = tuple) -> None:
        self.registry = registry = CollectorRegistry()
        registry.register(_SlotCollector(policies))

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"playserve_{name}", text, ("policy", *labels), registry=registry)

        def histogram(name: str, text: str, bounds: Sequence[float] = _SECONDS) -> _Histogram:
            made = _Histogram(f"playserve_{name}", text, bounds)
            registry.register(made)
            return made

        self.sessions_opened = counter("sessions_opened", "Sessions opened.", "kind")
        self.sessions_resumed = counter("sessions_resumed", "Sessions resumed on a new stream.")
        self.sessions_ended = counter("sessions_ended", "Sessions ended.", "reason")
        self.sessions_open = Gauge(
            "playserve_sessions_open", "Sessions, detached ones included.", ("policy",), registry=registry
        )
        self.opens_refused = counter("opens_refused", "Opens that were refused.", "reason")
        self.streams_lost = counter("streams_lost", "Streams that went without a goodbye; their sessions wait a while.")
        self.streams_stalled = Gauge(
            "playserve_streams_stalled", "Streams whose clients do not read their answers now.", registry=registry
        )
        self.versions_refused = counter("versions_refused", "Versions that the store has and that cannot be served.")
        self.clock_jumps = Counter(
            "playserve_clock_jumps", "Times that the wall clock jumped by more than a second.", registry=registry
        )
        self.tasks = Gauge("playserve_tasks", "Tasks of the event loop; they follow the streams.", registry=registry)
        ProcessCollector(registry=registry)  # memory, file descriptors, processor time
        self.frames = counter("frames", "Frames that were answered.")
        self.frames_dropped = counter("frames_dropped", "Frames without an answer, because a newer one had arrived.")
        self.frames_stale = counter("frames_stale", "Frames without an answer, because their budget was over.")
        self.frames_shed = counter("frames_shed", "Live frames left out, because the caller's key was over its quota.")
        self.deadline_misses = counter("deadline_misses", "Answers later than one period of the session's rate.")
        self.errors = counter("errors", "Errors told to clients.", "reason")
        self.frame_age = histogram("frame_age_seconds", "Age of a frame since its arrival when its computation began.")
        self.decode_time = histogram("decode_seconds", "Unpacking the inputs of a message.")
        self.queue_time = histogram("queue_seconds", "From unpacked to the beginning of the computation.")
        self.compute_time = histogram("compute_seconds", "Computation of a batch, once a batch.")
        self.total_time = histogram("total_seconds", "From a frame's arrival to its answer's departure.")
        self.batch_size = histogram("batch_rows", "Rows of a batch.", _ROWS)
        self.padding = counter("padding_rows", "Rows computed for padding only.")
        self._children: dict[str, _PolicyMetrics] = {}
        #: What waits to be written to each stream; the event loop's thread alone looks (lookout.py).
        self.outboxes: WeakSet[Any] = WeakSet()

    def show_watchers(self, count: Callable[[], int]) -> None:
        """Serve the number of people who watch sessions."""
        gauge = Gauge("playserve_session_watchers", "Who watches sessions now.", registry=self.registry)
        gauge.set_function(count)

    def _of(self, policy: str) -> _PolicyMetrics:
        child = self._children.get(policy)
        if child is None:
            child = self._children[policy] = _PolicyMetrics(self, policy)
        return child

    def figures(self) -> dict[str, Any]:
        """Return what heartbeats tell for the dashboard's charts: counts since the start, by policy."""
        policies = {name: child.figures() for name, child in list(self._children.items())}
        return {"bounds_s": list(_SECONDS), "policies": policies}

    def opened(self, session: Session) -> None:
        """Count an open."""
        name = session.policy.spec.name
        kind = "rollout" if session.rollout else "live" if session.live else "lockstep"
        self.sessions_opened.labels(name, kind).inc()
        self.sessions_open.labels(name).inc()

    def came(self, session: Session) -> None:
        """Count a session that was opened on another server."""
        self.sessions_open.labels(session.policy.spec.name).inc()

    def resumed(self, session: Session) -> None:
        """Count a resume."""
        self.sessions_resumed.labels(session.policy.spec.name).inc()

    def refused(self, policy: str, reason: str) -> None:
        """Count an open that was refused."""
        self.opens_refused.labels(policy, reason).inc()

    def ended(self, session: Session, reason: EndReason) -> None:
        """Count an end."""
        name = session.policy.spec.name
        self.sessions_ended.labels(name, reason.value).inc()
        self.sessions_open.labels(name).dec()

    def dropped(self, session: Session, count: int) -> None:
        """Count frames that a newer one displaced."""
        self._of(session.policy.spec.name).dropped.inc(count)

    def shed(self, session: Session) -> None:
        """Count a frame that was over the quota."""
        self._of(session.policy.spec.name).shed.inc()

    def stale(self, session: Session) -> None:
        """Count a frame whose budget was over."""
        self._of(session.policy.spec.name).stale.inc()

    def error(self, policy: str, reason: str) -> None:
        """Count an error that a client was told."""
        self.errors.labels(policy, reason).inc()

    def batch(self, policy: LoadedPolicy, rows: int, padded: int, seconds: float) -> None:
        """Observe a batch."""
        child = self._of(policy.spec.name)
        child.compute.observe(seconds)
        child.batch_size.observe(rows)
        if padded > rows:
            child.padding.inc(padded - rows)

    def answered(self, session: Session, answers: Sequence[Answer], now_ns: int) -> None:
        """Observe answers as they leave. Frames of one rollout message arrived together: they are observed as one."""
        child = self._of(session.policy.spec.name)
        child.frames.inc(len(answers))
        last_arrival = -1
        for answer in answers:
            frame = answer.frame
            if frame.arrived_ns == last_arrival:
                continue
            last_arrival = frame.arrived_ns
            child.decode.observe(frame.decode_ns * 1e-9)
            child.age.observe(answer.queue_ns * 1e-9)
            child.queue.observe((answer.queue_ns - frame.decode_ns) * 1e-9)
            child.total.observe((now_ns - last_arrival) * 1e-9)
            if session.live and now_ns > frame.deadline_ns:
                child.misses.inc()
