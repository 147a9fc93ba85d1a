"""What is read from a metrics page is what prometheus_client wrote to it."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from hypothesis import given
from hypothesis import strategies as st

from playserve.errors import BadSettingError, DataLossError, ServerUnavailableError
from playserve_client.top.prometheus import Samples, fetch, parse, quantile

names = st.text(st.characters(codec="utf-8", exclude_characters="\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"), max_size=20)


@given(st.dictionaries(names, st.floats(allow_nan=False), max_size=5))
def test_labels_and_numbers_of_any_kind_survive(values: dict[str, float]) -> None:
    client = pytest.importorskip("prometheus_client")
    registry = client.CollectorRegistry()
    gauge = client.Gauge("playserve_test", "A text with \\ and \n.", ["policy"], registry=registry)
    for name, value in values.items():
        gauge.labels(name).set(value)
    samples = Samples(parse(client.generate_latest(registry).decode()))
    for name, value in values.items():
        assert samples.total("playserve_test", policy=name) == value


def test_a_histogram_gives_the_quantiles_of_what_came_between_two_readings() -> None:
    before = [(0.01, 5.0), (0.1, 5.0), (float("inf"), 5.0)]
    now = [(0.01, 5.0), (0.1, 15.0), (float("inf"), 15.0)]
    assert quantile(0.5, now, before) == pytest.approx(0.055)
    assert quantile(1.0, now, before) == pytest.approx(0.1)
    assert quantile(0.2, now) == pytest.approx(0.006)
    assert quantile(0.5, before, before) is None
    assert quantile(0.5, []) is None
    assert quantile(0.99, [(0.01, 0.0), (float("inf"), 3.0)]) == 0.01, "beyond the last bound nobody knows"


def test_buckets_of_several_series_are_added_up() -> None:
    page = """
# TYPE t histogram
t_bucket{policy="a",kind="x",le="0.5"} 1
t_bucket{policy="a",kind="y",le="0.5"} 2.0 1700000000000
t_bucket{policy="a",kind="x",le="+Inf"} 4
t_bucket{policy="b",kind="x",le="+Inf"} 9
plain 3
"""
    samples = Samples(parse(page))
    assert samples.buckets("t", policy="a") == [(0.5, 3.0), (float("inf"), 4.0)]
    assert (samples.total("plain"), samples.total("absent")) == (3.0, None)


@pytest.mark.parametrize("line", ["what is this", 'a{b="c} 1', "a{b=c} 1", "a one", '{x="y"} 1', "<html>"])
def test_a_page_of_something_else_is_refused(line: str) -> None:
    with pytest.raises(DataLossError, match="no line"):
        parse(f"good 1\n{line}\n")


def test_fetching_says_what_went_wrong() -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/metrics" else 404)
            self.end_headers()
            self.wfile.write(b"good 1\n")

        def log_message(self, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        address = f"http://127.0.0.1:{server.server_port}"
        assert fetch(f"{address}/metrics").total("good") == 1
        with pytest.raises(ServerUnavailableError, match="404"):
            fetch(f"{address}/other")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    with pytest.raises(ServerUnavailableError, match="no metrics"):
        fetch(f"{address}/metrics", 2.0)
    for url in ("file:///etc/passwd", "localhost:80/metrics", ""):
        with pytest.raises(BadSettingError, match="wanted http"):
            fetch(url)
