"""Every page: what it shows, that it is whole HTML, and that nothing on it is taken for markup."""

from __future__ import annotations

import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from playserve_services.control.models import Evaluation, Job
from playserve_services.control.pages.charts import interval_chart, ticks
from playserve_services.control.repository.audit import SYSTEM, note, now
from playserve_services.control.repository.recordings import add_recording

VOID = {"meta", "link", "input", "img", "br"}
EVIL = "<script>alert(1)</script>\"'&"
JOB = "0123456789abcdef"
REPORT = "<!doctype html><title>r</title><h1>Report</h1>"


class Reader(HTMLParser):
    """Reads a page and notes what is wrong with it."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.problems: list[str] = []
        self.ids: list[str] = []
        self.labels: set[str] = set()
        self.controls: list[dict[str, str]] = []
        self.headings: list[int] = []
        self.tables_without_scopes = 0
        self.landmarks: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        values = {name: value or "" for name, value in attrs}
        self.problems += [f"{tag} has {name}" for name in values if name.startswith("on") or name == "style"]
        if "javascript:" in " ".join(values.values()):
            self.problems.append(f"{tag} goes to javascript:")
        if tag == "script" and "src" not in values:
            self.problems.append("an inline script")
        if values.get("id"):
            self.ids.append(values["id"])
        if tag == "label":
            self.labels.add(values["for"])
        if tag in ("input", "select", "textarea") and values.get("type") != "hidden":
            self.controls.append({"tag": tag, **values})
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag == "th" and "scope" not in values:
            self.tables_without_scopes += 1
        if tag == "img" and "alt" not in values:
            self.problems.append("a picture without alt")
        if tag in ("main", "nav", "header", "footer"):
            self.landmarks.append(tag)
        if tag == "iframe" and "sandbox" not in values:
            self.problems.append("a frame without a sandbox")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.problems.append(f"</{tag}> closes something else")

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def verdict(self) -> list[str]:
        """Return everything that is wrong."""
        found = [*self.problems, *(f"{tag} is not closed" for tag in self.open)]
        found += [f"id {name} twice" for name in {name for name in self.ids if self.ids.count(name) > 1}]
        found += [f"no label: {c}" for c in self.controls if c.get("id") not in self.labels]
        if self.headings[:1] != [1] or self.headings.count(1) != 1:
            found.append(f"headings {self.headings}")
        found += [f"a heading is left out: {self.headings}"
                  for a, b in zip(self.headings, self.headings[1:], strict=False) if b > a + 1]  # fmt: skip
        if self.tables_without_scopes:
            found.append("a head of a table without scope")
        if sorted(self.landmarks) != ["footer", "header", "main", "nav"]:
            found.append(f"landmarks {self.landmarks}")
        return found


def read(response: Any) -> Reader:
    """Return a page read; it has its headers."""
    assert response.headers["content-type"] == "text/html; charset=utf-8", response.text
    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; style-src 'self'; script-src 'self';")
    assert "unsafe" not in policy
    assert response.headers["cache-control"] == "no-store"
    reader = Reader()
    reader.feed(response.text)
    reader.close()
    return reader


@pytest.fixture
async def full(start_plane, fleet, tmp_path):
    """Return a control plane that has something on every page, of names that are markup where names may be."""
    grids = tmp_path / "grids"
    (grids / "small" / "report").mkdir(parents=True)
    (grids / "small" / "plan.json").write_text('{"study": {"study": "atari-isoflop", "tier": "smoke"}, "runs": [1, 2]}')
    (grids / "small" / "report" / "index.html").write_text(REPORT)
    async with start_plane(grids=grids) as plane:
        fleet(plane.context)
        with plane.context.database.change() as session:
            note(session, SYSTEM, "test", EVIL, before={EVIL: EVIL}, after={})
            at = now()
            session.add(
                Job(
                    id=JOB,
                    kind="grid",
                    request={"kind": "grid", "grid": "small", "workers": 2},
                    state="failed",
                    owner="me",
                    message=EVIL,
                    created_at=at,
                    created_by=EVIL,
                    started_at=at,
                    ended_at=at,
                )
            )
            session.add(Evaluation(policy="breakout", version="1", protocol=EVIL, n=1, mean=1.5, se=None, scores=[],
                                   source=EVIL, created_at=at, created_by=EVIL))  # fmt: skip
            add_recording(session, SYSTEM, EVIL, policy="breakout", version="1", session_id=EVIL, url=f"x://{EVIL}",
                          sha256="0" * 64, size_bytes=123_456, name=EVIL)  # fmt: skip
        plane.client.base_url = "http://127.0.0.1/dashboard"
        yield plane


PAGES = ["/", "/replicas/replica-0", "/replicas/replica-0/drain", "/sessions", "/policies", "/policies/breakout",
         "/policies/breakout/promote?version=2&alias=stable", "/policies/breakout/roll-back",
         "/policies/breakout/canary?percent=10", "/recordings", "/recordings/1", "/jobs", f"/jobs/{JOB}",
         "/scaling", "/scaling/small", "/audit"]  # fmt: skip


async def test_pages_are_whole_and_escape_what_they_show(full) -> None:
    for path in PAGES:
        reader = read(answer := await full.client.get(path))
        assert answer.status_code == 200, path
        assert reader.verdict() == [], path
        assert "<script>alert" not in answer.text, path


async def test_what_was_told_is_shown(full) -> None:
    home = "".join(read(await full.client.get("/")).text)
    for words in ("replica-0", "3 of 32", "30 of 32", "10.0.0.2:50051", "breakout"):
        assert words in home
    policy = "".join(read(await full.client.get("/policies/breakout")).text)
    assert EVIL in policy
    assert "20 to" not in policy
    assert re.search(r"24\.5\s+22\.33 to 26\.67", policy)  # mean and interval of 20 to 29
    assert EVIL in "".join(read(await full.client.get("/audit")).text)
    assert EVIL in "".join(read(await full.client.get("/recordings/1")).text)


async def test_an_evaluation_shows_what_it_measured(full) -> None:
    number = "fedcba9876543210"
    asked = {"kind": "evaluation", "family": "atari", "game": "breakout", "policy": "breakout", "version": "2",
             "server": "127.0.0.1:1"}  # fmt: skip
    report = {
        "complete": True, "title": "Breakout", "protocol": ["sampled"], "policy": {"name": "breakout", "version": "2"},
        "rows": [{"role": "agent", "key": "a"}], "episodes": [{"row": "a", "score": score} for score in (1, 2, 3)],
    }  # fmt: skip
    folder = full.settings.data.absolute() / "jobs" / number / "run"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(report))
    with full.context.database.change() as session:
        at = now()
        session.add(Job(id=number, kind="evaluation", request=asked, state="succeeded", owner="me", message="",
                        created_at=at, created_by="me", started_at=at, ended_at=at))  # fmt: skip
    reader = read(await full.client.get(f"/jobs/{number}"))
    assert reader.verdict() == []
    text = " ".join(" ".join(reader.text).split())
    assert "breakout 2 plays atari breakout" in text
    assert "Breakout, a: sampled 2 -0.4841 to 4.484 3" in text


async def test_the_front_door_leads_to_the_dashboard(full) -> None:
    answer = await full.client.get("http://127.0.0.1/")
    assert (answer.status_code, answer.headers["location"]) == (307, "/dashboard/")


async def test_errors_are_pages(full) -> None:
    for path, status in (
        ("/nowhere", 404),
        ("/replicas/other", 404),
        ("/replicas/UP", 422),
        ("/policies/other", 404),
        ("/jobs/ffffffffffffffff", 404),
        ("/recordings/99", 404),
        ("/scaling/other", 404),
        ("/sessions/replica-0/none", 404),
        ("/policies/breakout/canary?percent=nan", 422),
    ):
        answer = await full.client.get(path)
        assert answer.status_code == status, path
        assert "That did not work" in answer.text


async def test_a_report_is_a_page_in_a_sandbox(full) -> None:
    answer = await full.client.get("/scaling/small/report")
    assert answer.text == REPORT
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("sandbox; default-src 'none';")
    assert "script-src" not in policy
    assert '<iframe class="report" sandbox ' in (await full.client.get("/scaling/small")).text


async def test_static_files_are_there_and_carry_no_foreign_address() -> None:
    folder = Path(__file__).parents[4] / "services/playserve_services/control/pages/static"
    for path in folder.iterdir():
        found = set(re.findall(r"https?://[^\s\"')]+", path.read_text()))
        assert found <= {"http://www.w3.org/2000/svg"}, path


async def test_static_files_are_served(full) -> None:
    home = (await full.client.get("/")).text
    for address in re.findall(r'(?:href|src)="(/dashboard/static/[^"]+)"', home):
        assert (await full.client.get(f"http://127.0.0.1{address}")).status_code == 200


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 0.013), (-5, 5), (3, 3), (0, 0), (1e6, 3e6), (0, 999)])
def test_ticks_are_round_and_span_the_values(low: float, high: float) -> None:
    found = ticks(low, high)
    assert found[0] <= low
    assert found[-1] >= high
    assert 2 <= len(found) <= 8
    steps = {round(b - a, 9) for a, b in itertools.pairwise(found)}
    assert len(steps) == 1


def test_intervals_lie_where_their_numbers_are() -> None:
    chart = interval_chart([("a", 5.0, (0.0, 10.0)), ("b", 7.5, None)], "words")
    assert chart is not None
    first, second = chart.rows
    assert first.low is not None
    assert first.high is not None
    assert first.low < first.x < second.x < first.high
    assert first.x == pytest.approx((first.low + first.high) / 2)
    assert interval_chart([], "words") is None
