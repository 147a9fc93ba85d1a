"""Reads what a server shows at /metrics: Prometheus' text format, as far as counters, gauges and histograms need it.

prometheus_client has a parser, but the client floor stands without it.
"""

from __future__ import annotations

import math
import re
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from playserve.errors import BadSettingError, DataLossError, ServerUnavailableError

__all__ = ["Sample", "Samples", "fetch", "parse", "quantile"]

_LINE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)\s*(?:\{(.*)\})?\s+(\S+)(?:\s+-?[0-9]+)?\s*")
_LABEL = re.compile(r'\s*([a-zA-Z_][a-zA-Z0-9_]*)\s*=\s*"((?:[^"\\\n]|\\.)*)"\s*(?:,|$)')
_ESCAPE = re.compile(r"\\(.)")
_MAX_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Sample:
    """One line: a name, its labels, a number."""

    name: str
    labels: Mapping[str, str]
    value: float


def parse(text: str) -> list[Sample]:
    """Return the samples of a page.

    Raises:
        DataLossError: A line is none.
    """
    return [_sample(line) for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def _sample(line: str) -> Sample:
    match = _LINE.fullmatch(line.strip())
    if match is None:
        raise DataLossError(f"{line[:200]!r} is no line of Prometheus' text format")
    try:
        return Sample(match[1], _labels(match[2] or ""), float(match[3]))
    except ValueError as error:
        raise DataLossError(f"{line[:200]!r} is no line of Prometheus' text format: {error}") from None


def _labels(text: str) -> dict[str, str]:
    labels: dict[str, str] = {}
    at = 0
    while text[at:].strip():
        match = _LABEL.match(text, at)
        if match is None:
            raise ValueError(f"labels {text[at : at + 80]!r}")
        labels[match[1]] = _ESCAPE.sub(lambda found: "\n" if found[1] == "n" else found[1], match[2])
        at = match.end()
    return labels


class Samples:
    """The samples of one page, by name.

    Args:
        samples: Of :func:`parse`.
    """

    def __init__(self, samples: Iterable[Sample]) -> None:
        self._by_name: dict[str, list[Sample]] = {}
        for sample in samples:
            self._by_name.setdefault(sample.name, []).append(sample)

    def total(self, name: str, **labels: str) -> float | None:
        """Return the sum of the samples of a name that have these labels; None: there are none."""
        found = [sample.value for sample in self._of(name, labels)]
        return sum(found) if found else None

    def buckets(self, name: str, **labels: str) -> list[tuple[float, float]]:
        """Return (upper bound, count up to it) of a histogram, by bound; samples of the same bound are added up."""
        sums: dict[float, float] = {}
        for sample in self._of(f"{name}_bucket", labels):
            bound = float(sample.labels.get("le", "nan"))
            sums[bound] = sums.get(bound, 0.0) + sample.value
        return sorted(sums.items())

    def _of(self, name: str, labels: Mapping[str, str]) -> list[Sample]:
        return [s for s in self._by_name.get(name, ()) if labels.items() <= s.labels.items()]


def quantile(q: float, now: Sequence[tuple[float, float]], before: Sequence[tuple[float, float]] = ()) -> float | None:
    """Return a quantile of what came into a histogram between two readings, linear within a bucket.

    Args:
        q: 0 to 1.
        now: (upper bound, count up to it), by bound.
        before: The same, earlier; empty: from the beginning.

    Returns:
        The quantile; the largest bound where it lies beyond that; None: nothing came.
    """
    earlier = dict(before)
    counts = [(bound, count - earlier.get(bound, 0.0)) for bound, count in now]
    if not counts or counts[-1][1] <= 0:
        return None
    rank = q * counts[-1][1]
    low, below = 0.0, 0.0
    for bound, count in counts:
        if count >= rank and count > below:
            if math.isinf(bound):
                return low
            return low + (bound - low) * max(0.0, rank - below) / (count - below)
        low, below = bound, count
    return low


def fetch(url: str, timeout_s: float = 5.0) -> Samples:
    """Read the page at an URL.

    Raises:
        BadSettingError: It is no URL of HTTP.
        ServerUnavailableError: Nobody answers, or with an error.
        DataLossError: The page is something else.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise BadSettingError(f"{url!r} is no URL, wanted http://HOST:PORT/metrics")
    try:
        with urllib.request.urlopen(url, timeout=timeout_s) as response:  # noqa: S310 - the scheme was looked at
            body = response.read(_MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise ServerUnavailableError(f"no metrics at {url}: {error}") from error
    if len(body) > _MAX_BYTES:
        raise DataLossError(f"{url} holds more than {_MAX_BYTES} bytes")
    return Samples(parse(body.decode("utf-8", "replace")))
