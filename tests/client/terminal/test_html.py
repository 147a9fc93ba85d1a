"""The replay for pages, in real Chromium: what a frame's text and colours are, and what keys and controls do."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from playserve.errors import BadSettingError
from playserve_client.nethack.tty import TtyChunk
from playserve_client.terminal.html import render_page, render_recording, render_replay, script_source
from playserve_client.terminal.keys import key_name
from playserve_client.terminal.recording import ChunkRecording
from playserve_client.terminal.screen import PALETTE, REVERSE, Screen, look

MAX_BYTES = 1_500_000
TEXT = "[...document.querySelectorAll('#{id} .nhr-screen > span')].map((row) => row.textContent).join('\\n')"
# Of each cell: the colour of its text, and that behind it where it is not the screen's own.
LOOKS = """
[...document.querySelectorAll('#{id} .nhr-screen > span')].map((row) => [...row.children].flatMap((run) => {
  const style = getComputedStyle(run);
  return [...run.textContent].map(() => [style.color, style.backgroundColor, run.classList.contains('nhr-cursor')]);
}))
"""


def page_of(path: Path, *replays: str) -> Path:
    path.write_text(render_page("".join(replays), "test"), encoding="utf-8")
    return path


def seek(browser: Any, element_id: str, frame: int) -> None:
    browser.run(
        f"(() => {{ const seek = document.querySelector('#{element_id} .nhr-seek'); seek.value = {frame}; "
        "seek.dispatchEvent(new Event('input')); })()"
    )


def part(browser: Any, name: str, element_id: str = "game") -> str:
    return str(browser.run(f"document.querySelector('#{element_id} .nhr-{name}').textContent"))


def screen(browser: Any, element_id: str = "game") -> list[str]:
    return str(browser.run(TEXT.replace("{id}", element_id))).split("\n")


def rgb(color: str) -> str:
    return f"rgb({int(color[1:3], 16)}, {int(color[3:5], 16)}, {int(color[5:7], 16)})"


def test_every_frame_shows_its_screen(recorded: Any, browser: Any, tmp_path: Path) -> None:
    page = page_of(tmp_path / "page.html", render_replay(recorded.truth, title="A", facts={}, element_id="game"))
    browser.open(page)
    assert browser.requests == [page.as_uri()]
    for step in [0, 1, 2, 63, 64, 65, 300, 200, 199, 499, 0]:
        seek(browser, "game", step)
        assert screen(browser) == recorded.lines(step), step
        key = key_name(int(recorded.truth.keys[step]))
        assert " ".join((part(browser, "key"), part(browser, "meaning"))).strip() == key
        assert part(browser, "step") == f"step {step} of 499"
    # All frames in one go, forwards and backwards.
    show_all = f"""(() => {{
      const seek = document.querySelector('#game .nhr-seek'), found = [];
      for (const frame of [...Array(500).keys(), ...[...Array(500).keys()].reverse()]) {{
        seek.value = frame;
        seek.dispatchEvent(new Event('input'));
        found.push({TEXT.replace("{id}", "game")});
      }}
      return found;
    }})()"""
    expected = ["\n".join(recorded.lines(step)) for step in range(500)]
    assert browser.run(show_all) == expected + expected[::-1]


def test_cells_have_the_terminals_colours_and_the_cursor_is_seen(recorded: Any, browser: Any, tmp_path: Path) -> None:
    truth: TtyChunk = recorded.truth
    browser.open(page_of(tmp_path / "page.html", render_replay(truth, title="A", facts={}, element_id="game")))
    menus = np.flatnonzero((truth.colors >= REVERSE).any(axis=(1, 2)))
    assert len(menus), "the recording shows no reversed text"
    for step in (0, 250, int(menus[0])):
        seek(browser, "game", step)
        looks = browser.run(LOOKS.replace("{id}", "game"))
        for row, column in np.argwhere((truth.chars[step] != 32) | (truth.colors[step] >= REVERSE)).tolist():
            color, reverse = look(int(truth.colors[step, row, column]))
            text, behind, cursor = looks[row][column]
            assert cursor == ((row, column) == tuple(truth.cursor[step]))
            if not cursor:
                back = rgb(PALETTE[0])
                assert (text, behind) == ((back, rgb(PALETTE[color])) if reverse else (rgb(PALETTE[color]), behind))
                assert reverse or behind == "rgba(0, 0, 0, 0)"
        row, column = truth.cursor[step]
        assert looks[row][min(column, 79)][2]


def test_keys_and_controls(recorded: Any, browser: Any, tmp_path: Path) -> None:
    browser.open(page_of(tmp_path / "page.html", render_replay(recorded.truth, title="A", facts={}, element_id="game")))
    browser.run("document.querySelector('#game .nhr-screen').focus()")
    for keys, step in [
        (["ArrowRight"] * 3, 3),
        (["ArrowLeft"], 2),
        (["End"], 499),
        (["ArrowLeft"], 498),
        (["Home"], 0),
    ]:
        browser.press(*keys)
        assert part(browser, "step") == f"step {step} of 499"
        assert screen(browser) == recorded.lines(step)
    browser.run("document.querySelector('#game .nhr-next').click()")
    assert part(browser, "step") == "step 1 of 499"
    browser.run("document.querySelector('#game .nhr-back').click()")
    assert part(browser, "step") == "step 0 of 499"
    label = browser.run("document.querySelector('#game .nhr-screen').getAttribute('aria-label')")
    assert label.startswith("Screen at step 0 of 499.")
    assert "Dlvl:1" in label
    browser.press(*["ArrowUp"] * 9)
    assert browser.run("document.querySelector('#game .nhr-speed').value") == "200"
    browser.press(" ")
    assert part(browser, "play") == "Pause"
    moved = "new Promise((done) => { const look = () => " + (
        "document.querySelector('#game .nhr-seek').value > 20 ? done(true) : setTimeout(look, 10); look(); })"
    )
    assert browser.run(moved)
    browser.press(" ")
    assert part(browser, "play") == "Play"
    step = int(browser.run("document.querySelector('#game .nhr-seek').value"))
    assert screen(browser) == recorded.lines(step)
    # At the end it stops; playing again starts from the first frame.
    seek(browser, "game", 495)
    browser.run("document.querySelector('#game .nhr-play').click()")
    ended = moved.replace("'#game .nhr-seek').value > 20", "'#game .nhr-play').textContent === 'Play'")
    assert browser.run(ended)
    assert part(browser, "step") == "step 499 of 499"


def test_replays_on_one_page_do_not_meet(recorded: Any, browser: Any, tmp_path: Path) -> None:
    other = replace(recorded.truth, chars=recorded.truth.chars[::-1], colors=recorded.truth.colors[::-1])
    browser.open(
        page_of(
            tmp_path / "page.html",
            render_replay(recorded.truth, title="A", facts={}, element_id="a"),
            render_replay(other, title="B", facts={}, element_id="b"),
        )
    )
    seek(browser, "a", 100)
    seek(browser, "b", 30)
    assert screen(browser, "a") == recorded.lines(100)
    assert screen(browser, "b") == recorded.lines(469)
    browser.run("document.querySelector('#b .nhr-screen').focus()")
    browser.press("ArrowRight")
    assert (part(browser, "step", "a"), part(browser, "step", "b")) == ("step 100 of 499", "step 31 of 499")


def test_a_browser_that_cannot_unpack_says_so_under_the_first_screen(
    recorded: Any, browser: Any, tmp_path: Path
) -> None:
    text = render_replay(recorded.truth, title="A", facts={}, element_id="game")
    page = tmp_path / "page.html"
    page.write_text(f"<!doctype html><script>delete window.DecompressionStream</script>{text}", encoding="utf-8")
    browser.open(page, ready="document.querySelector('#game .nhr-message')?.textContent")
    assert "lacks DecompressionStream" in part(browser, "message")
    assert screen(browser) == recorded.lines(0)
    assert browser.run("document.querySelector('#game .nhr-controls').hidden")


class Reader(HTMLParser):
    """Checks that tags nest, and collects what is labelled."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        assert "src" not in values
        assert "href" not in values
        if values.get("id"):
            self.ids.append(values["id"] or "")
        if tag not in {"input", "meta"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_it_is_sound_html_that_names_nothing_outside(recorded: Any) -> None:
    text = render_replay(recorded.truth, title="<A> & B", facts={"end": "killed by <b>"}, element_id="game-1")
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    assert reader.ids == ["game-1", "game-1-speed"]
    assert "<b>" not in text
    assert "&lt;A&gt; &amp; B" in text
    assert "url(" not in text
    assert script_source() in render_page(text, "x")


def test_a_game_of_5000_steps_is_small(recorded: Any) -> None:
    # Ten walks, longer than what deflate looks back over.
    truth: TtyChunk = recorded.truth
    chunk = TtyChunk(
        chars=np.tile(truth.chars, (10, 1, 1)),
        colors=np.tile(truth.colors, (10, 1, 1)),
        cursor=np.tile(truth.cursor, (10, 1)),
        keys=np.tile(truth.keys, 10),
        scores=np.arange(5000, dtype=np.int32),
        expert=np.ones(5000, np.bool_),
    )
    assert len(render_replay(chunk, title="x", facts={}, element_id="x")) < MAX_BYTES


def test_of_a_long_game_the_best_part_is_shown(recorded: Any) -> None:
    scores = np.zeros(500, np.int32)
    scores[210:] = 50
    chunk = replace(recorded.truth, scores=scores)
    text = render_recording(ChunkRecording(chunk, name="seed-1"), element_id="x", frames=100)
    assert "shown steps 111 to 210 of 499, those in which the score grew most" in text
    assert '"first":111,"total":500' in text
    whole = render_recording(ChunkRecording(chunk, name="seed-1"), element_id="x")
    assert "shown steps" not in whole


def test_what_is_not_known_is_not_shown(recorded: Any, browser: Any, tmp_path: Path) -> None:
    text = render_replay(
        recorded.truth, title="nao", facts={}, element_id="game", show_keys=False, show_scores=False
    )  # fmt: skip
    browser.open(page_of(tmp_path / "page.html", text))
    seek(browser, "game", 77)
    assert screen(browser) == recorded.lines(77)
    assert part(browser, "now") == "step 77 of 499"
    recording = ChunkRecording(recorded.truth, name="nao", has_keys=False)
    assert '"names":null,"scored":true' in render_recording(recording, element_id="game")


@pytest.mark.parametrize("element_id", ["", "a b", '"><script>', "é"])
def test_ids_are_simple(recorded: Any, element_id: str) -> None:
    with pytest.raises(BadSettingError, match="id is letters"):
        render_replay(recorded.truth, title="x", facts={}, element_id=element_id)


def test_a_replay_has_frames(recorded: Any) -> None:
    empty = {
        name: getattr(recorded.truth, name)[:0] for name in ("chars", "colors", "cursor", "keys", "scores", "expert")
    }
    with pytest.raises(BadSettingError, match="at least one frame"):
        render_replay(TtyChunk(**empty), title="x", facts={}, element_id="x")


def test_colours_can_be_read() -> None:
    def luminance(color: str) -> float:
        parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    assert len(set(PALETTE)) == 16
    assert all(re.fullmatch("#[0-9a-f]{6}", color) for color in PALETTE)
    back = luminance(PALETTE[0])
    for color in PALETTE[1:]:
        assert (luminance(color) + 0.05) / (back + 0.05) >= 4.5, color


def test_the_still_is_the_first_screen(recorded: Any) -> None:
    text = render_replay(recorded.truth, title="x", facts={}, element_id="x")
    still = text.partition("<pre")[2].partition(">")[2].partition("</pre>")[0]
    rows = [re.sub("<[^>]*>", "", row) for row in still.split("</span>")[:24]]
    first = Screen(recorded.truth.chars[0], recorded.truth.colors[0], (0, 0))
    assert rows == [line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;") for line in first.lines()]
