import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from playserve_trainer.demo.log import DemoLog
from playserve_trainer.demo.outcome import read_outcomes
from playserve_trainer.demo.page import render_page
from playserve_trainer.demo.plan import DemoPlan

Finished = Callable[..., tuple[DemoPlan, Path]]
VOID = {"meta", "img", "input", "br", "link"}


class Reader(HTMLParser):
    """Checks that tags nest, and collects attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def page_of(plan: DemoPlan, out: Path) -> str:
    log = DemoLog.open(out, plan)
    with log.stage("record-freeway", "Record <freeway>", ["playserve", "data", "record", "--game", "freeway"]):
        pass
    outcomes = read_outcomes(plan, out)
    verdicts = [outcome.judge()["met"] for outcome in outcomes]
    met = None if None in verdicts else all(verdicts)
    log.update({"finished_at": "2026-01-01", "goals_met": met, "stage_seconds": log.seconds(), "total_seconds": 481.0})
    return render_page(outcomes, log.value)


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    return reader


def test_nothing_is_fetched(finished: Finished) -> None:
    page = page_of(*finished())
    reader = read(page)
    assert not re.search(r"https?:|@import|url\(", page)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in reader.tags}
    sources = [image["src"] or "" for image in reader.all("img")]
    assert len(sources) == 4
    assert all(source.startswith("data:image/gif;base64,") for source in sources)


def test_it_says_what_is_needed_to_judge_and_repeat_it(finished: Finished) -> None:
    page = page_of(*finished())
    for wanted in (
        "d1" * 32, "0.1.0+gabc", "100,814", "240,000", "1.23e+13", "1.45e+11", "temperature 1", "frame skip 4",
        "playserve data record --game freeway", "Record &lt;freeway&gt;", "most frequent &lt;in&gt; data", "8 min 1 s",
        "goal 26 met", "goal 10 met", "always FIRE", "its first 1,500 of 1,800 steps",
    ):  # fmt: skip
        assert wanted in page, wanted


def test_it_can_be_used_without_eyes_and_without_a_mouse(finished: Finished) -> None:
    reader = read(page_of(*finished()))
    assert reader.all("html")[0]["lang"] == "en"
    assert all(image["alt"] for image in reader.all("img"))
    pictures = reader.all("svg")
    assert len(pictures) == 2 * 4 + 1
    assert all(picture["role"] == "img" and picture["aria-label"] for picture in pictures)
    assert {cell["scope"] for cell in reader.all("th")} == {"col", "row"}
    assert len(reader.all("caption")) == len(reader.all("table")) == 2
    names = {attributes.get("id") for _, attributes in reader.tags}
    assert {section["aria-labelledby"] for section in reader.all("section")} <= names


@pytest.mark.parametrize(
    ("options", "title", "words"),
    [
        ({"breakout": 4.0}, "but a goal was missed", "GOAL MISSED: mean 4,"),
        ({"judged": False}, "too short to learn", "nothing is judged"),
        ({"film": None}, "From nothing to agents that play", "No game was filmed"),
    ],
)
def test_it_says_plainly_what_went_otherwise(finished: Finished, options: dict, title: str, words: str) -> None:
    page = page_of(*finished(**options))
    read(page)
    assert title in page
    assert words in page
