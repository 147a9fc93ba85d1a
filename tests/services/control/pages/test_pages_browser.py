"""The dashboard in real Chromium: by keyboard, dark and light, narrow, updating by itself, and with no error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from dashboard_site import fill_hour

PAGES = ["/", "/replicas/replica-0", "/replicas/replica-0/drain", "/sessions", "/policies", "/policies/breakout",
         "/policies/breakout/promote?version=2", "/recordings", "/jobs", "/scaling", "/audit"]  # fmt: skip
DONE = "document.readyState === 'complete'"
# Relative luminance of a colour such as rgb(1, 2, 3), by WCAG; then the contrast of every text with what is behind it.
CONTRASTS = """
(() => {
  const parse = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = (color) => {
    const [r, g, b] = parse(color).map((v) => v / 255)
      .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (item) => {
    for (; item; item = item.parentElement) {
      const color = getComputedStyle(item).backgroundColor, parts = parse(color);
      if (parts.length === 3 || parts[3] > 0) return color;
    }
    return 'rgb(255, 255, 255)';
  };
  const found = [];
  for (const item of document.querySelectorAll('body *')) {
    const own = [...item.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || item.closest('.hidden, .skip') || !item.checkVisibility()) continue;
    const style = getComputedStyle(item), text = item instanceof SVGElement ? style.fill : style.color;
    const [a, b] = [light(text), light(behind(item))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) found.push([item.outerHTML.slice(0, 120), ratio]);
  }
  return found;
})()
"""


@pytest.fixture
def site(open_site: Any, fleet: Any) -> Any:
    """Return a control plane without keys, with a fleet to show."""
    made = open_site()
    fleet(made.context)
    return made


def focused(browser: Any) -> str:
    return str(browser.run("document.activeElement.textContent.trim() || document.activeElement.id"))


def test_no_page_loads_anything_foreign_or_breaks_its_policy(site: Any, browser: Any) -> None:
    for path in PAGES:
        browser.open(f"{site.url}{path}", DONE)
        assert browser.problems == [], path
        assert all(address.startswith(site.url) for address in browser.requests), path
        assert browser.run("document.querySelector('h1').checkVisibility()"), path


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_dark_and_light(site: Any, browser: Any, scheme: str) -> None:
    browser.look(scheme, 1280, 900)
    for path in PAGES:
        browser.open(f"{site.url}{path}", DONE)
        assert browser.run(CONTRASTS) == [], path
    background = browser.run("getComputedStyle(document.body).backgroundColor")
    assert background == {"light": "rgb(247, 246, 242)", "dark": "rgb(18, 19, 23)"}[scheme]


def test_nothing_runs_out_of_a_narrow_page(site: Any, browser: Any) -> None:
    browser.look("light", 380, 800)
    for path in PAGES:
        browser.open(f"{site.url}{path}", DONE)
        assert browser.run("document.documentElement.scrollWidth") <= 380, path


def test_screenshots_are_not_blank(site: Any, browser: Any, tmp_path: Path) -> None:
    from PIL import Image

    pictures = []
    for scheme in ("light", "dark"):
        browser.look(scheme)
        browser.open(f"{site.url}/", DONE)
        path = tmp_path / f"{scheme}.png"
        browser.screenshot(path)
        with Image.open(path) as picture:
            pictures.append(picture.convert("RGB"))
        colors = pictures[-1].getcolors(1 << 24)
        assert colors is not None
        assert len(colors) > 50
    assert pictures[0].getpixel((5, 700)) != pictures[1].getpixel((5, 700))


def test_a_keyboard_is_enough(site: Any, browser: Any) -> None:
    browser.look()
    browser.open(f"{site.url}/", DONE)
    browser.press("Tab")
    assert focused(browser) == "Skip to the content"
    assert browser.run("document.activeElement.getBoundingClientRect().top >= 0")  # it comes into view
    assert browser.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    browser.press("Enter")
    assert browser.run("document.activeElement.id") == "main"
    browser.open(f"{site.url}/", DONE)
    for _ in range(5):
        browser.press("Tab")
    assert focused(browser) == "Policies"
    browser.press("Enter")
    browser.wait_for("location.pathname.endsWith('/policies') && document.readyState === 'complete'")
    for _ in range(20):
        browser.press("Tab")
        if focused(browser) == "breakout":
            break
    browser.press("Enter")
    browser.wait_for("location.pathname.endsWith('/policies/breakout') && document.readyState === 'complete'")
    # Promote: to the button of the form, on to the page that asks, and there to its button.
    for page, button in (("/breakout", "Promote…"), ("/promote", "Point stable at version 2")):
        browser.wait_for(f"location.pathname.endsWith('{page}') && document.readyState === 'complete'")
        for _ in range(40):
            browser.press("Tab")
            if focused(browser) == "gated":
                browser.press(" ")  # there is nothing to compare with yet
                browser.run("document.activeElement.checked = false")
            if focused(browser) == button:
                break
        assert focused(browser) == button
        browser.press("Enter")
    browser.wait_for("location.search === '?done=promoted' && document.readyState === 'complete'")
    assert browser.run("document.querySelector('[role=status]').textContent") == "The alias points at that version now."


def test_parts_of_a_page_are_renewed_and_what_a_person_did_stays(site: Any, browser: Any) -> None:
    browser.look()
    browser.open(f"{site.url}/", f"{DONE} && !document.querySelector('[data-live-control]').hidden")
    before = browser.run("document.querySelector('#chart-frames svg').outerHTML")
    tile = browser.run("document.querySelector('#tiles').innerText")
    browser.run("document.querySelector('#table-latency').open = true")
    browser.run("document.querySelector('#replicas a').focus()")
    browser.run("window.here = true")
    fill_hour(site.context, {"replica-1": 50.0}, minutes=20)
    # Going on after a pause renews at once.
    for words in ("Go on updating", "Pause updates"):
        browser.run("document.querySelector('[data-live-pause]').click()")
        assert browser.run("document.querySelector('[data-live-pause]').textContent") == words
    browser.wait_for("document.querySelector('#chart-frames polyline') !== null")
    assert browser.run("document.querySelector('#chart-frames svg').outerHTML") != before
    assert browser.run("document.querySelector('#tiles').innerText") != tile
    assert browser.run("document.querySelector('#table-latency').open")
    assert focused(browser) == "replica-0"
    assert browser.run("window.here")  # it is the same page
    assert browser.problems == []


def test_signing_in_and_out(open_site: Any, fleet: Any, browser: Any) -> None:
    site = open_site(require_keys=True)
    fleet(site.context)
    browser.forget()
    browser.look()
    browser.open(f"{site.url}/policies", DONE)
    assert browser.run("document.querySelector('h1').textContent") == "Sign in"
    assert focused(browser) == "key"
    browser.type(f"psk_{'0' * 12}_{'x' * 43}")
    browser.press("Enter")
    browser.wait_for("document.querySelector('[role=alert]') !== null && document.readyState === 'complete'")
    browser.run("document.querySelector('#key').focus()")
    browser.type(site.key("admin"))
    browser.press("Enter")
    browser.wait_for("document.querySelector('h1').textContent === 'Policies'")
    (cookie,) = browser.cookies()
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
    assert browser.run("document.cookie") == ""
    browser.run("document.querySelector('.who button').click()")
    browser.wait_for("document.querySelector('h1').textContent === 'Sign in' && document.readyState === 'complete'")
    assert browser.cookies() == []
