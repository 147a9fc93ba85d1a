"""The page of the Doom recipe: one HTML file with its films inside, that asks the network for nothing."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from playserve_trainer.demo.charts import time_chart
from playserve_trainer.demo.doom.report import Grid, grids, measured_text
from playserve_trainer.wording import duration

__all__ = ["render_page"]

# Larger films are linked instead: a page of 50 MB is no page.
_INLINE_BYTES = 6 << 20
_EXTRA_CSS = """
.films { display: grid; gap: 0.9rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); }
.films video { display: block; width: 100%; height: auto; border-radius: 8px; background: #000; }
.verdicts { list-style: none; padding: 0; margin: 0; } .verdicts li { margin: 0.25rem 0; }
"""


def render_page(value: Mapping[str, Any], log: Mapping[str, Any], out: Path) -> str:
    """Return the page.

    Args:
        value: The JSON value of results.json.
        log: The JSON value of demo.json.
        out: Folder of the recipe, for the films.
    """
    css = files("playserve_trainer.demo").joinpath("page.css").read_text(encoding="utf-8") + _EXTRA_CSS
    body = "".join(
        (
            _header(value, log), "<main>", _films(value, out),
            *(_table(number, grid) for number, grid in enumerate(grids(value))), _checkpoint(value),
            _settings(value), _time(value), _commands(log), "</main>", _footer(log),
        )
    )  # fmt: skip
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "media-src data: 'self'; style-src 'unsafe-inline'\">\n"
        f"<title>playserve: Doom by keys, mouse and instruction</title>\n<style>\n{css}</style>\n</head>\n"
        f"<body>\n{body}</body>\n</html>\n"
    )


def _header(value: Mapping[str, Any], log: Mapping[str, Any]) -> str:
    plan, machine = value["plan"], log["machine"]
    cpu = f" of {escape(machine['cpu'])}" if machine["cpu"] else ""
    made = value["record_and_train_seconds"]
    how = f"recorded and trained in {duration(made)}" if made else "from the checkpoint that the package carries"
    lead = (
        f"One policy sees {len(plan['scenarios_played'])} scenarios of Doom and an instruction, and answers with keys "
        f"and mouse, 20 times a second: {how}, on {machine['cores']} cores{cpu}."
    )
    verdicts = "".join(f"<li>{_badge(verdict)} {escape(measured_text(verdict))}</li>" for verdict in value["verdicts"])
    return (
        f'<header><h1>Doom by keys, mouse and instruction</h1><p class="lead">{lead}</p>'
        f'<ul class="verdicts">{verdicts}</ul></header>'
    )


def _badge(verdict: Mapping[str, Any]) -> str:
    kind, word = {True: ("met", "met"), False: ("missed", "missed"), None: ("none", "shown")}[verdict["met"]]
    return f'<span class="badge {kind}">{word}</span>'


def _section(name: str, title: str, content: str) -> str:
    return (
        f'<section aria-labelledby="{name}"><div class="heading"><h2 id="{name}">{escape(title)}</h2></div>'
        f"{content}</section>"
    )


def _films(value: Mapping[str, Any], out: Path) -> str:
    if not value["films"]:
        return ""
    return _section("films", "Seen", f'<div class="films">{"".join(_film(film, out) for film in value["films"])}</div>')


def _film(film: Mapping[str, Any], out: Path) -> str:
    path = out / film["path"]
    inline = film["bytes"] <= _INLINE_BYTES
    source = f"data:video/mp4;base64,{base64.b64encode(path.read_bytes()).decode()}" if inline else film["path"]
    name = f"{film['scenario']}: {film['goal']}".replace("_", " ")
    met = "" if film["goal_met"] is None else ", goal met" if film["goal_met"] else ", goal missed"
    trip = film["round_trip_ms"]
    number = len(film["episodes"])
    chosen = f"All {number} episodes that were played" if number > 1 else f"The best of {film['tries']} episodes"
    mean = "mean score" if number > 1 else "score"
    cut = "" if film["whole"] else " Cut before its end."
    return (
        f'<figure class="card"><h3>{escape(name)}</h3>'
        f'<video controls muted loop playsinline preload="metadata" aria-label="Film of {escape(name)}" '
        f'src="{escape(source)}"></video><figcaption>“{escape(film["instruction"])}”: {mean} {film["score"]:g}{met}; '
        f"round trip {trip['p50']:.1f} ms (p99 {trip['p99']:.1f}). {chosen}, in real time.{cut}</figcaption></figure>"
    )


def _table(number: int, grid: Grid) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in grid.head)
    rows = "".join(
        "<tr>"
        + "".join(
            f'<th scope="row">{escape(cell)}</th>' if index == 0 else f"<td>{escape(cell)}</td>"
            for index, cell in enumerate(row)
        )
        + "</tr>"
        for row in grid.rows
    )
    note = f"<p>{escape(grid.note)}</p>" if grid.note else ""
    table = (
        f'<div class="card scroll" role="region" aria-label="{escape(grid.title)}" tabindex="0"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>{note}"
    )
    return _section(f"table-{number}", grid.title, table)


def _checkpoint(value: Mapping[str, Any]) -> str:
    manifest = value["manifest"]
    metrics = ", ".join(f"{name} {number:.4g}" for name, number in sorted(manifest["metrics"].items()))
    facts = (
        ("parameters N", f"{manifest['num_params']:,}"),
        ("frames D", f"{manifest['samples_seen']:,}"),
        ("training FLOPs", f"{manifest['flops']:.3g} counted; 6ND {manifest['flops_6nd']:.3g}"),
        ("held out", metrics),
        ("data digest", manifest["data_digest"]),
        ("weights digest", manifest["weights_sha256"]),
        ("code", manifest["code_version"]),
        ("trained at", manifest["created_at"]),
    )
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(str(text))}</dd>" for name, text in facts)
    return _section("checkpoint", "The checkpoint", f'<div class="card facts"><dl>{items}</dl></div>')


def _settings(value: Mapping[str, Any]) -> str:
    reasons = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in value["plan"]["reasons"].items()
    )
    return _section("settings", "Settings, and why", f'<div class="card facts"><dl>{reasons}</dl></div>')


def _time(value: Mapping[str, Any]) -> str:
    seconds = list(value["stage_seconds"].items())
    if not seconds:
        return ""
    total = duration(sum(amount for _, amount in seconds))
    chart = f'<figure class="card narrow">{time_chart(seconds)}<figcaption>{total} in all.</figcaption></figure>'
    return _section("time", "Where the time went", chart)


def _commands(log: Mapping[str, Any]) -> str:
    steps = "".join(
        f"<li>{escape(stage['title'])}<pre><code>{escape(' '.join(stage['command']))}</code></pre></li>"
        for stage in log["stages"]
        if stage["command"]
    )
    return _section("commands", "The same by hand", f'<ol class="steps">{steps}</ol>')


def _footer(log: Mapping[str, Any]) -> str:
    machine = log["machine"]
    shown = ", ".join(f"{name} {version}" for name, version in sorted(machine["packages"].items()))
    return (
        f"<footer><p>Made {escape(log['finished_at'])}; Python {escape(machine['python'])} on "
        f"{escape(machine['system'])}; {escape(shown)}. All numbers are in results.json beside this page.</p></footer>"
    )
