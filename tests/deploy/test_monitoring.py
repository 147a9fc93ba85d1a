"""Alerts and dashboards: metrics that exist, runbook lines that exist, files that are what their source says."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import make
import pytest
import yaml
from prometheus_client import CollectorRegistry

from playserve_services.control.metrics import _TEXTS, ControlMetrics
from playserve_services.inference.metrics import Metrics
from playserve_services.inference.security import SecurityMetrics

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "deploy" / "prometheus" / "rules.yaml"
#: Metrics of others: Prometheus itself and the kubelet.
FOREIGN = {"up", "kubelet_volume_stats_available_bytes", "kubelet_volume_stats_capacity_bytes"}
_WORD = re.compile(r"[a-zA-Z_][a-zA-Z0-9_:]*")
_SUFFIXES = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("_total",), "gauge": ("",)}


def series_of(registry: CollectorRegistry) -> set[str]:
    """Return the names under which Prometheus finds what a registry holds, used or not."""
    return {
        family.name + suffix
        for family in registry.collect()
        for suffix in _SUFFIXES[family.type]
    }  # fmt: skip


@pytest.fixture(scope="module")
def existing() -> set[str]:
    metrics = Metrics()
    SecurityMetrics(metrics.registry, follows=True)
    control = ControlMetrics(lambda: dict.fromkeys(_TEXTS, 0.0))
    return series_of(metrics.registry) | series_of(control.registry) | FOREIGN


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def metrics_in(promql: str) -> set[str]:
    """Return the metrics that an expression reads: names outside of braces, brackets, strings and `by (...)`."""
    bare = re.sub(r'"[^"]*"', "", promql)
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\b(?:by|without|on)\s*\([^)]*\)", " ", bare)
    bare = re.sub(r"[a-z_]+\s*\(", "(", bare)  # functions and aggregations
    return set(_WORD.findall(bare)) - {"or", "and", "unless", "by", "e"}


def dashboard_queries() -> Iterator[tuple[str, str]]:
    for dashboard in make.DASHBOARDS:
        for panel in dashboard.panels:
            for query in panel.queries.values():
                yield f"{dashboard.name}: {panel.title}", query


def test_the_parser_finds_metrics() -> None:
    found = metrics_in(
        'sum by (a, b) (rate(x_total{c="d"}[5m])) / on (a) (y:z > 0.5) or histogram_quantile(0.9, w_bucket)'
    )
    assert found == {"x_total", "y:z", "w_bucket"}


def test_every_rule_reads_metrics_that_exist(existing: set[str]) -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    for rule in rules():
        unknown = metrics_in(rule["expr"]) - existing - recorded
        assert not unknown, f"{rule.get('alert') or rule['record']} reads {unknown}"


def test_every_chart_reads_metrics_that_exist(existing: set[str]) -> None:
    for where, query in dashboard_queries():
        read = metrics_in(query)
        assert read, where
        assert not read - existing, f"{where} reads {read - existing}"


def test_every_labelled_reason_is_one_that_there_is() -> None:
    from playserve.errors import REASONS
    from playserve_services.inference.sessions import EndReason

    known = set(REASONS) | {reason.value for reason in EndReason}
    for rule in rules():
        for text in re.findall(r'reason=~?"([^"]+)"', rule["expr"]):
            assert set(text.split("|")) <= known, rule["alert"]


def test_every_alert_has_a_severity_a_summary_and_a_line_in_the_runbook() -> None:
    headings = re.findall(r"^#+ (.+)$", (ROOT / "docs" / "operations.md").read_text(), re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}
    for rule in rules():
        if "alert" in rule:
            assert rule["labels"]["severity"] in ("warning", "critical"), rule["alert"]
            assert rule["annotations"]["summary"]
            page, _, anchor = rule["annotations"]["runbook"].partition("#")
            assert page == "docs/operations.md"
            assert anchor in anchors, f"{rule['alert']}: no heading for #{anchor}"


def test_the_committed_dashboards_and_the_charts_copies_are_the_generated_ones() -> None:
    assert make.main(["--check"]) == 0, "run: python deploy/grafana/make.py"


def test_a_dashboard_has_no_two_panels_in_one_place() -> None:
    for dashboard in make.DASHBOARDS:
        panels = make.dashboard_json(dashboard)["panels"]
        assert len({panel["id"] for panel in panels}) == len(panels)
        assert len({(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}) == len(panels)


def test_promtool_accepts_the_rules_and_the_configuration(require_program: Callable[[str], None]) -> None:
    require_program("promtool")
    subprocess.run(["promtool", "check", "rules", str(RULES)], check=True)
    subprocess.run(["promtool", "check", "config", str(RULES.with_name("prometheus.yaml"))], check=True)


def test_promtool_sees_the_alerts_fire(tmp_path: Path, require_program: Callable[[str], None]) -> None:
    require_program("promtool")
    labels = 'namespace="play",policy="nethack",layout="a",pod="p"'
    series = {
        f"playserve_slots_used{{{labels}}}": "95x30",
        f"playserve_slots_total{{{labels}}}": "100x30",
        f"playserve_frames_total{{{labels}}}": "0+1000x30",
        f"playserve_deadline_misses_total{{{labels}}}": "0+50x30",
        'up{service="games-playserve-inference-replicas",namespace="play",pod="p"}': "0x30",
        'playserve_control_database_up{namespace="play"}': "0x30",
    }
    fired = ["PlayserveSlotsNearlyFull", "PlayserveDeadlineMisses", "PlayserveReplicaDown", "PlayserveNoReplica"]
    checks: list[dict[str, Any]] = [
        {"expr": f'count(ALERTS{{alertname="{name}",alertstate="firing"}})', "eval_time": "20m",
         "exp_samples": [{"labels": "{}", "value": 1}]}
        for name in [*fired, "PlayserveDatabaseDown"]
    ]  # fmt: skip
    checks.append({"expr": 'count(ALERTS{alertname="PlayserveControlDown"})', "eval_time": "20m", "exp_samples": []})
    input_series = [{"series": name, "values": values} for name, values in series.items()]
    test = {
        "rule_files": [str(RULES)], "evaluation_interval": "1m",
        "tests": [{"interval": "1m", "input_series": input_series, "promql_expr_test": checks}],
    }  # fmt: skip
    path = tmp_path / "alerts.yaml"
    path.write_text(yaml.safe_dump(test))
    done = subprocess.run(["promtool", "test", "rules", str(path)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
