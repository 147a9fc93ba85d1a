"""Templates, the words that they show numbers in, and the headers of every page."""

from __future__ import annotations

import datetime
import hashlib
import math
from importlib.resources import files
from typing import Any

from fastapi import Request
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.responses import HTMLResponse, Response

from playserve_services.control.pages.access import Viewer
from playserve_services.control.repository.audit import now

__all__ = ["PAGE_HEADERS", "Pages", "ago", "amount", "duration", "percent", "render", "size"]

#: What a page may load and do: its own style, script and pictures, and nothing of anybody else.
_POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; media-src 'self'; "
    "connect-src 'self'; frame-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
PAGE_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
}
# Where a form leads, by the word in the address of the page after it: nothing of an address is shown as it came.
_DONE = {
    "drain": "The replica was told to drain.",
    "drain-view": "The registry's view tells the replica to drain; it did not answer by itself yet.",
    "undrain": "The drain was taken out of the view.",
    "ended": "The session is ending.",
    "promoted": "The alias points at that version now.",
    "rolled-back": "The alias was rolled back.",
    "canary": "The canary weight was set.",
    "cancelled": "The job was told to end.",
}
#: Shown where there is no number.
_NONE = "\N{EN DASH}"
_SECTIONS = (
    ("fleet", "", "Fleet"),
    ("sessions", "/sessions", "Sessions"),
    ("policies", "/policies", "Policies"),
    ("recordings", "/recordings", "Recordings"),
    ("jobs", "/jobs", "Jobs"),
    ("scaling", "/scaling", "Scaling"),
)


def ago(at: datetime.datetime) -> str:
    """Return how long ago a time was, in words."""
    return f"{duration((now() - at).total_seconds())} ago"


def duration(seconds: float) -> str:
    """Return a duration in words, of one unit or two."""
    seconds = max(0.0, seconds)
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min"
    if seconds < 86_400:
        return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min"
    return f"{seconds // 86_400:.0f} d {seconds % 86_400 // 3600:.0f} h"


def amount(value: float | int | None, digits: int = 3) -> str:
    """Return a number: whole ones with separators, others with some significant digits, large ones in powers."""
    if value is None:
        return _NONE
    if isinstance(value, float) and not math.isfinite(value):
        return _NONE
    if isinstance(value, int) or (float(value).is_integer() and abs(value) < 1e6):
        return f"{int(value):,}" if abs(value) < 1e9 else f"{value:.3g}"
    return f"{value:.{digits}g}" if abs(value) < 1000 or abs(value) >= 1e6 else f"{value:,.0f}"


def size(value: float) -> str:
    """Return a number of bytes."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def percent(share: float | None) -> str:
    """Return a share in percent."""
    if share is None:
        return _NONE
    value = 100 * share
    return f"{value:.0f} %" if value >= 10 or value == round(value) else f"{value:.2g} %"


def milliseconds(seconds: float | None) -> str:
    """Return a time in milliseconds."""
    return _NONE if seconds is None else f"{1000 * seconds:.3g} ms"


def utc(at: datetime.datetime) -> str:
    """Return a time to the second."""
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"


class Pages:
    """Renders templates. Every value is escaped."""

    def __init__(self) -> None:
        self._environment = Environment(
            loader=PackageLoader("playserve_services.control.pages"), autoescape=True, undefined=StrictUndefined,
            trim_blocks=True, lstrip_blocks=True,
        )  # fmt: skip
        self._environment.filters.update(
            ago=ago, amount=amount, duration=duration, percent=percent, size=size, ms=milliseconds, utc=utc
        )
        self._environment.globals["sections"] = _SECTIONS
        static = files("playserve_services.control.pages").joinpath("static")
        # A new release's style must not wait for a browser's cache.
        self._environment.globals["digest"] = hashlib.sha256(
            b"".join(path.read_bytes() for path in sorted(static.iterdir(), key=lambda path: path.name))
        ).hexdigest()[:12]

    def text(self, template: str, **values: Any) -> str:
        """Return a template with values."""
        return self._environment.get_template(template).render(**values)


def render(
    request: Request,
    template: str,
    viewer: Viewer | None = None,
    *,
    status: int = 200,
    section: str = "",
    **values: Any,
) -> Response:
    """Return a page.

    Args:
        request: What is answered.
        template: Its name.
        viewer: Who looks; None: nobody is signed in.
        status: Of the answer.
        section: Which part of the dashboard it belongs to.
        values: For the template.
    """
    pages: Pages = request.app.state.pages
    base = request.scope.get("root_path", "")
    done = _DONE.get(request.query_params.get("done", ""), "")
    text = pages.text(template, base=base, viewer=viewer, section=section, done=done, **values)
    return HTMLResponse(text, status, headers=PAGE_HEADERS)
