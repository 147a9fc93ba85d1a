"""Writes the dashboards, and the chart's copies of them and of the alerts: one source, several files.

::

    python deploy/grafana/make.py            # or --check: exit 1 if a file is not what this would write

A panel is a title, a unit and PromQL by legend; ids, sizes and places follow from the order.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["DASHBOARDS", "Dashboard", "Panel", "files"]

DEPLOY = Path(__file__).resolve().parents[1]
CHART_FILES = DEPLOY.parent / "helm" / "playserve" / "files"
_WIDE, _HIGH, _ACROSS = 8, 8, 24
_OF = '{namespace=~"$namespace",policy=~"$policy"}'
_IN = '{namespace=~"$namespace"}'


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One chart.

    Attributes:
        title: What it shows, in a line.
        text: What a high or low value means.
        unit: Grafana's name of the unit: s, short, percentunit, ops, bytes.
        queries: PromQL by legend.
        limit: Line that should not be crossed.
        single: One number instead of lines.
    """

    title: str
    text: str
    unit: str
    queries: Mapping[str, str]
    limit: float | None = None
    single: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Dashboard:
    """One page of charts.

    Attributes:
        name: Of the file and of the address.
        title: In Grafana's list.
        panels: In order of reading.
        policies: Whether one chooses policies.
    """

    name: str
    title: str
    panels: Sequence[Panel]
    policies: bool = True


def rate(metric: str, *by: str, over: str = "1m") -> str:
    """Return the rate of a counter, summed by labels."""
    return f"sum by ({', '.join(by)}) (rate({metric}{_OF}[{over}]))"


def share(part: str, whole: str, over: str = "1m") -> str:
    """Return one counter's rate over another's."""
    return f"sum(rate({part}{_OF}[{over}])) / sum(rate({whole}{_OF}[{over}]))"


def quantiles(metric: str) -> dict[str, str]:
    """Return quantiles of a histogram, by legend."""
    return {
        f"p{name}": f"histogram_quantile({q}, sum by (le) (rate({metric}_bucket{_OF}[1m])))"
        for name, q in (("50", "0.5"), ("95", "0.95"), ("99", "0.99"))
    }


FLEET = Dashboard(
    name="playserve-fleet",
    title="playserve: fleet",
    panels=(
        Panel(title="Sessions", text="Open sessions, detached ones included.", unit="short", single=True,
              queries={"sessions": f"sum(playserve_sessions_open{_OF})"}),
        Panel(title="Slots used", text="At 100% players are turned away.", unit="percentunit", single=True, limit=0.9,
              queries={"used": f"sum(playserve_slots_used{_OF}) / sum(playserve_slots_total{_OF})"}),
        Panel(title="Late answers", text="Answers later than one period of the session's rate.", unit="percentunit",
              single=True, limit=0.01,
              queries={"late": share("playserve_deadline_misses_total", "playserve_frames_total", "5m")}),
        Panel(title="Slots by replica", text="New sessions go where there is room; running ones stay.", unit="short",
              queries={"{{pod}} {{policy}}": f"sum by (pod, policy) (playserve_slots_used{_OF})",
                       "there are": f"sum(playserve_slots_total{_OF})"}),
        Panel(title="Sessions opened", text="By kind: live players, lockstep ones, rollouts of evaluators.", unit="ops",
              queries={"{{kind}}": rate("playserve_sessions_opened_total", "kind"),
                       "resumed": f"sum(rate(playserve_sessions_resumed_total{_OF}[1m]))"}),
        Panel(title="Sessions ended", unit="ops",
              text="closed is a goodbye; expired and stream_lost are not; engine_failed is our fault.",
              queries={"{{reason}}": rate("playserve_sessions_ended_total", "reason")}),
        Panel(title="Opens refused", unit="ops",
              text="NO_FREE_SLOT wants more replicas, QUOTA_EXCEEDED a word with the player.",
              queries={"{{reason}}": rate("playserve_opens_refused_total", "reason")}),
        Panel(title="Errors told to clients", text="In-band: the game goes on.", unit="ops",
              queries={"{{reason}}": rate("playserve_errors_total", "reason")}),
        Panel(title="Calls refused", text="Callers without a key, or with one that may not.", unit="ops",
              queries={"{{reason}}": f"sum by (reason) (rate(playserve_calls_refused_total{_IN}[1m]))"}),
        Panel(title="Age of the registry's view", unit="s",
              text="Since control confirmed it; replicas go on with an old one.",
              queries={"{{pod}}": f"max by (pod) (playserve_registry_view_age_seconds{_IN})"}),
        Panel(title="Memory of sessions", text="Of all slots, used or not.", unit="bytes",
              queries={"{{policy}}": f"sum by (policy) (playserve_slots_total{_OF} * playserve_slot_bytes{_OF})"}),
    ),
)  # fmt: skip
STEPS = Dashboard(
    name="playserve-steps",
    title="playserve: steps",
    panels=(
        Panel(title="From arrival to departure", text="A frame's whole way through the server; 20 Hz leaves 50 ms.",
              unit="s", limit=0.05, queries=quantiles("playserve_total_seconds")),
        Panel(title="Age of a frame when it was computed", text="Waiting in queues, mostly.", unit="s",
              queries=quantiles("playserve_frame_age_seconds")),
        Panel(title="Computation of a batch", text="Grows with the batch; a step in it is a cold graph.", unit="s",
              queries=quantiles("playserve_compute_seconds")),
        Panel(title="Queue", text="From unpacked to the beginning of the computation.", unit="s",
              queries=quantiles("playserve_queue_seconds")),
        Panel(title="Unpacking", text="Decoding the inputs of a message.", unit="s",
              queries=quantiles("playserve_decode_seconds")),
        Panel(title="Rows of a batch", text="How well sessions share a computation; padding is waste.", unit="short",
              queries={"rows": share("playserve_batch_rows_sum", "playserve_batch_rows_count"),
                       "padding": share("playserve_padding_rows_total", "playserve_batch_rows_count")}),
        Panel(title="Frames answered", text="By policy.", unit="ops",
              queries={"{{policy}}": rate("playserve_frames_total", "policy")}),
        Panel(title="Frames without an answer of their own",
              text="dropped: a newer one had come; stale: their budget was over; shed: the key was over its quota.",
              unit="ops",
              queries={"dropped {{policy}}": rate("playserve_frames_dropped_total", "policy"),
                       "stale {{policy}}": rate("playserve_frames_stale_total", "policy"),
                       "shed {{policy}}": rate("playserve_frames_shed_total", "policy")}),
        Panel(title="Late answers by replica", text="One replica alone: its node. All: too many sessions.", unit="ops",
              queries={"{{pod}}": rate("playserve_deadline_misses_total", "pod")}),
    ),
)  # fmt: skip
CONTROL = Dashboard(
    name="playserve-control",
    title="playserve: control",
    policies=False,
    panels=(
        Panel(title="Database", text="0: the registry does not answer; games go on.", unit="short", single=True,
              queries={"up": f"min(playserve_control_database_up{_IN})"}),
        Panel(title="Replicas", text="Fresh ones were heard of lately; those behind follow an old view.", unit="short",
              queries={"known": f"max(playserve_control_replicas{_IN})",
                       "fresh": f"max(playserve_control_replicas_fresh{_IN})",
                       "behind": f"max(playserve_control_replicas_behind{_IN})"}),
        Panel(title="Jobs", text="Evaluations and grids.", unit="short",
              queries={"running": f"max(playserve_control_jobs_running{_IN})",
                       "queued": f"max(playserve_control_jobs_queued{_IN})",
                       "lost": f"max(playserve_control_jobs_lost{_IN})"}),
        Panel(title="Requests", text="By status.", unit="ops",
              queries={"{{status}}": f"sum by (status) (rate(playserve_control_requests_total{_IN}[1m]))"}),
        Panel(title="Time to answer", text="99th percentile by route.", unit="s",
              queries={"{{route}}": "histogram_quantile(0.99, sum by (le, route) "
                       f"(rate(playserve_control_request_seconds_bucket{_IN}[5m])))"}),
        Panel(title="Refused calls", text="Without a key that may.", unit="ops",
              queries={"{{reason}}": f"sum by (reason) (rate(playserve_control_access_refused_total{_IN}[1m]))"}),
        Panel(title="Uploads", text="By how they ended.", unit="short",
              queries={"{{outcome}}": f"sum by (outcome) (increase(playserve_control_published_total{_IN}[1h]))"}),
        Panel(title="Calls to replicas that failed", text="Control could not reach the admin port.", unit="ops",
              queries={"{{replica}}": f"sum by (replica) (rate(playserve_control_replica_errors_total{_IN}[5m]))"}),
        Panel(title="Revision of the registry", text="Grows with every change.", unit="short",
              queries={"revision": f"max(playserve_control_revision{_IN})"}),
    ),
)  # fmt: skip
DASHBOARDS = (FLEET, STEPS, CONTROL)


def _panel(number: int, panel: Panel) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if panel.limit is not None:
        steps.append({"color": "red", "value": panel.limit})
    style = {} if panel.single else {"custom": {"thresholdsStyle": {"mode": "off" if panel.limit is None else "line"}}}
    per_row = _ACROSS // _WIDE
    return {
        "id": number + 1,
        "type": "stat" if panel.single else "timeseries",
        "title": panel.title,
        "description": panel.text,
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "gridPos": {"h": _HIGH, "w": _WIDE, "x": number % per_row * _WIDE, "y": number // per_row * _HIGH},
        "fieldConfig": {
            "defaults": {"unit": panel.unit, "min": 0, "thresholds": {"mode": "absolute", "steps": steps}, **style},
            "overrides": [],
        },
        "targets": [
            {"refId": chr(ord("A") + i), "expr": query, "legendFormat": legend}
            for i, (legend, query) in enumerate(panel.queries.items())
        ],
    }


def _variable(name: str, query: str) -> dict[str, Any]:
    return {
        "name": name, "type": "query", "query": query, "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "includeAll": True, "multi": True, "allValue": ".*", "refresh": 2,
        "current": {"text": "All", "value": "$__all"},
    }  # fmt: skip


def dashboard_json(dashboard: Dashboard) -> dict[str, Any]:
    """Return what Grafana imports."""
    known = "playserve_slots_total" if dashboard.policies else "playserve_control_database_up"
    variables = [
        {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"},
        _variable("namespace", f"label_values({known}, namespace)"),
    ]
    if dashboard.policies:
        variables.append(_variable("policy", 'label_values(playserve_slots_total{namespace=~"$namespace"}, policy)'))
    return {
        "uid": dashboard.name,
        "title": dashboard.title,
        "tags": ["playserve"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": variables},
        "panels": [_panel(number, panel) for number, panel in enumerate(dashboard.panels)],
    }


def files() -> Iterator[tuple[Path, str]]:
    """Yield every file that is made, with what belongs in it."""
    for dashboard in DASHBOARDS:
        text = json.dumps(dashboard_json(dashboard), indent=1) + "\n"
        yield DEPLOY / "grafana" / f"{dashboard.name}.json", text
        yield CHART_FILES / "dashboards" / f"{dashboard.name}.json", text
    # A chart cannot read what is not in its folder.
    yield CHART_FILES / "rules.yaml", (DEPLOY / "prometheus" / "rules.yaml").read_text()


def main(arguments: Sequence[str]) -> int:
    """Write or check the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file is not up to date")
    check = parser.parse_args(arguments).check
    stale = [path for path, text in files() if not path.is_file() or path.read_text() != text]
    for path in stale:
        sys.stdout.write(f"{'stale' if check else 'written'}: {path}\n")
    if not check:
        for path, text in files():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
