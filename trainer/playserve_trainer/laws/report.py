"""The report: one self-contained HTML page, a PNG a figure, and a JSON of everything that they show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from playserve.files import replacing, write_json, write_text
from playserve_trainer.laws import rows
from playserve_trainer.laws.figures import figures_of, png, svg

__all__ = ["PAGE_NAME", "write_report"]

PAGE_NAME = "index.html"

_CAPTIONS = {
    "isoflop": "Held-out loss over parameters, one curve a budget; stars: vertices of parabolas in the window.",
    "optima": "Best size, data and loss over compute: optima, the law, its forecasts with 95% intervals, and what was "
    "trained beyond the fit.",
    "isoflop-return": "Mean return through the endpoint over parameters, one curve a budget.",
    "loss-return": "Return over held-out loss, one point a size and budget.",
    "loss-data": "Held-out loss of the best checkpoint over unique data, one curve a size.",
    "return-data": "Return of the best checkpoint over unique data, a curve a size; dashed: where nothing was learnt.",
}


def write_report(found: Mapping[str, Any], out: Path, *, title: str, cited: Sequence[str] = ()) -> Path:
    """Write the report of what :func:`playserve_trainer.laws.fitting.fit_laws` found; return the page."""
    drawn = [(group, figures_of(group)) for group in found["groups"]]
    out.mkdir(parents=True, exist_ok=True)
    sections = []
    for group, figures in drawn:
        for name, figure in figures.items():
            with replacing(out / f"{_slug(group)}{name}.png") as path:
                path.write_bytes(png(figure))
        sections.append(_group(group, {name: svg(figure) for name, figure in figures.items()}))
    write_json(out / "report.json", {"title": title, "cited": list(cited), **found})
    write_text(out / PAGE_NAME, _page(found, title, sections, cited))
    return out / PAGE_NAME


def _slug(group: Mapping[str, Any]) -> str:
    words = [word for word in (group["task"], group["variant"]) if word]
    return "".join(f"{''.join(c if c.isalnum() else '-' for c in word)}-" for word in words)


def _page(found: Mapping[str, Any], title: str, sections: Sequence[str], cited: Sequence[str]) -> str:
    css = files(__package__).joinpath("report.css").read_text(encoding="utf-8")
    body = "".join(
        (
            f"<header><h1>{escape(title)}</h1><p>{found['cells']} cells from {escape(found['source'])}.</p></header>",
            "<main>", *sections, _comparisons(found["comparisons"]), _cited(cited),
            _reproducibility(found["reproducibility"]), "</main>",
        )
    )  # fmt: skip
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">\n"
        f"<title>{escape(title)}</title>\n<style>\n{css}</style>\n</head>\n<body>\n{body}</body>\n</html>\n"
    )


def _group(group: Mapping[str, Any], figures: Mapping[str, str]) -> str:
    pictures = "".join(
        f'<figure role="img" aria-label="{escape(_CAPTIONS[key])}">{text}'
        f"<figcaption>{escape(_CAPTIONS[key])}</figcaption></figure>"
        for key, text in figures.items()
    )
    return "".join(
        (
            f"<section><h2>{escape(rows.group_name(group))}</h2>",
            f"<p>{group['cells']} cells, {group['held_out_cells']} of them held out from every fit"
            f"{rows.whole_data(group)}.</p>",
            pictures, _hold_out(group["hold_out"]), _forecasts(group["forecasts"]), _laws(group),
            _by_data(group["by_data"]), _constrained(group), _returns(group["returns"]), "</section>",
        )
    )  # fmt: skip


def _table(of: rows.Rows) -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in of.header)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in of.rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _list(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"


def _laws(group: Mapping[str, Any]) -> str:
    refused = rows.refusals(group)
    details = f"<details><summary>{len(refused)} refusals</summary>{_list(refused)}</details>" if refused else ""
    return f"<h3>Laws</h3>{_table(rows.laws(group))}{_list(rows.notes(group))}{details}"


def _hold_out(value: Any) -> str:
    parts = [f"<p>{escape(of.title)}.</p>{_table(of)}" for of in rows.hold_outs(value)]
    if not parts:
        return f"<h3>Hold-out</h3><p>None: {escape(value['why'])}</p>"
    return "<h3>Held out, predicted and got</h3>" + "".join(parts)


def _forecasts(value: Any) -> str:
    if not value:
        return ""
    table, refused = rows.forecasts(value)
    return "<h3>Forecasts</h3>" + (_table(table) if table.rows else "") + _list(refused)


def _by_data(value: Any) -> str:
    return f"<h3>By unique data</h3>{_table(rows.by_data(value))}" if value else ""


def _constrained(group: Mapping[str, Any]) -> str:
    """Say the law of repeated data, or why there is none, where a study has several amounts."""
    value = group["constrained"]
    numbers, judged = rows.constrained(value)
    if not numbers.rows:
        return f"<h3>Repeated data</h3><p>{escape(value['why'])}</p>" if group["by_data"] else ""
    shown = f"<h3>Repeated data</h3><p>{escape(numbers.title)}.</p>{_table(numbers)}"
    return shown + (_table(judged) if judged.rows else "")


def _returns(value: Any) -> str:
    lines = rows.returns(value)
    return "<h3>Returns</h3>" + "".join(f"<p>{escape(line)}</p>" for line in lines) if lines else ""


def _comparisons(value: Sequence[Mapping[str, Any]]) -> str:
    if not value:
        return ""
    return f"<section><h2>Variants, in pairs</h2>{_table(rows.comparisons(value))}</section>"


def _cited(cited: Sequence[str]) -> str:
    return f"<section><h2>Cited, not measured here</h2>{_list(cited)}</section>" if cited else ""


def _reproducibility(value: Mapping[str, Any]) -> str:
    return f"<section><h2>To reproduce</h2>{_table(rows.reproducibility(value))}</section>"
