"""The report: one self-contained HTML page, a PNG a figure, and a JSON of everything that they show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from playserve.files import replacing, write_json, write_text
from playserve_trainer.laws.figures import figures_of, png, svg
from playserve_trainer.laws.tables import interval_text, number_text

__all__ = ["PAGE_NAME", "write_report"]

PAGE_NAME = "index.html"

_CAPTIONS = {
    "isoflop": "Held-out loss over parameters, one curve a budget; stars: vertices of parabolas in the window.",
    "optima": "Best size, data and loss over compute: optima, the law, its forecasts with 95% intervals, and what was "
    "trained beyond the fit.",
    "isoflop-return": "Mean return through the endpoint over parameters, one curve a budget.",
    "loss-return": "Return over held-out loss, one point a size and budget.",
}
_MEANINGS = {
    "n_exponent": "a: N_opt ~ C^a",
    "d_exponent": "b: D_opt ~ C^b",
    "loss_slope": "L_opt ~ C^k, no offset",
    "loss_exponent": "g: L_opt = k C^-g + b",
    "loss_offset": "b: what is left of the loss",
    "E": "E", "A": "A", "B": "B", "alpha": "alpha (of N)", "beta": "beta (of D)",
}  # fmt: skip


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
    name = " ".join(filter(None, (group["task"], group["variant"]))) or "All cells"
    pictures = "".join(
        f'<figure role="img" aria-label="{escape(_CAPTIONS[key])}">{text}'
        f"<figcaption>{escape(_CAPTIONS[key])}</figcaption></figure>"
        for key, text in figures.items()
    )
    return "".join(
        (
            f"<section><h2>{escape(name)}</h2>",
            f"<p>{group['cells']} cells, {group['held_out_cells']} of them held out from every fit.</p>",
            pictures, _hold_out(group["hold_out"]), _forecasts(group["forecasts"]), _laws(group),
            _returns(group["returns"]), "</section>",
        )
    )  # fmt: skip


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _laws(group: Mapping[str, Any]) -> str:
    rows, refused = [], []
    for name, law in group["laws"].items():
        if "refused" in law:
            refused.append(f"<li><b>{escape(name)}</b> refused ({escape(law['refused'])}): {escape(law['why'])}</li>")
            continue
        for key, of in law["numbers"].items():
            if key == "d_exponent" and group["is_6nd"]:
                continue
            without = of["without_one_budget"]
            rows.append(
                [name, _MEANINGS.get(key, key), number_text(of["value"]) + interval_text(of["interval"]),
                 f"{number_text(without[0])} to {number_text(without[1])}" if without else ""]
            )  # fmt: skip
        refused += [
            f"<li>{escape(name)}, budget {of['budget']:.3g}, left out ({of['refused']}): {escape(of['why'])}</li>"
            for of in law.get("refused_budgets", [])
        ]
    notes = list(group["intervals_hold"])
    if group["is_6nd"]:
        notes.append("C = 6ND in every cell: a + b = 1 by definition, so b is not listed")
    return "".join(
        (
            "<h3>Laws</h3>", _table(("law", "number", "value [95% interval]", "one budget left out"), rows),
            f"<ul>{''.join(f'<li>{escape(note)}</li>' for note in notes)}</ul>",
            f"<details><summary>{len(refused)} refusals</summary><ul>{''.join(refused)}</ul></details>"
            if refused else "",
        )
    )  # fmt: skip


def _hold_out(value: Any) -> str:
    if not isinstance(value, list):
        return f"<h3>Hold-out</h3><p>None: {escape(value['why'])}</p>"
    parts = ["<h3>Held out, predicted and got</h3>"]
    for of in value:
        edge = ", an edge of those trained" if of["params_edge"] else ""
        parts.append(
            f"<p>C = {of['budget']:.3g}, {of['beyond']:.1f} times beyond the fit: measured loss "
            f"<b>{of['loss']:.4f}</b> at N = {number_text(of['params'])} (best of {of['sizes']} sizes{edge}).</p>"
        )
        rows = [
            [name, f"{one['loss']:.4f}", f"{one['loss_error']:+.2%}",
             f"{one['params_ratio']:.2f}" if one["params_ratio"] else "-"]
            for name, one in of["predictions"].items()
        ]  # fmt: skip
        parts.append(_table(("law", "predicted loss", "error", "predicted N / measured N"), rows))
    return "".join(parts)


def _forecasts(value: Any) -> str:
    if not value:
        return ""
    if "forecasts" not in value:
        return f"<h3>Forecasts</h3><p>Refused: {escape(value['why'])}</p>"
    rows = [
        [f"{of['flops']:.3g}", f"{of['beyond']:.1f}x", of["estimator"]]
        + [
            number_text(of["values"][key]) + interval_text(of["intervals"].get(key))
            for key in ("params", "samples", "loss")
        ]
        for of in value["forecasts"]
    ]
    header = ("C", "beyond", "law", "N", "D", "loss of the one agent that is trained")
    return "<h3>Forecasts</h3>" + _table(header, rows)


def _returns(value: Any) -> str:
    if not value:
        return ""
    if "why" in value:
        return f"<h3>Returns</h3><p>{escape(value['why'])}</p>"
    lines = [
        f"Rank correlation of loss and return over {value['cells']} cells: "
        f"{number_text(value['rank_correlation_with_loss'], 3)}."
    ]
    of = value["from_loss"]
    lines.append(
        f"From loss: {of['why']}" if "why" in of else f"log R = c + {of['exponent']:.3g} log(1/L), R2 {of['r2']:.3f}."
    )
    law = value.get("saturating")
    if law:
        offset = law["inverse"]["offset"] if "inverse" in law else None
        end = f"ends at {number_text(1 / offset)}" if offset else "shows no end"
        lines.append(f"Saturating law of C: {law.get('why', end)}.")
    return "<h3>Returns</h3>" + "".join(f"<p>{escape(line)}</p>" for line in lines)


def _comparisons(comparisons: Sequence[Mapping[str, Any]]) -> str:
    if not comparisons:
        return ""
    rows = [
        [of["task"], of["first"], of["second"], f"{of['difference']:+.4f} [{of['low']:+.4f}, {of['high']:+.4f}]",
         f"{of['pairs']}", of["verdict"]]
        for of in comparisons
    ]  # fmt: skip
    header = ("task", "first", "second", "loss, first less second [95%]", "pairs", "verdict")
    return "<section><h2>Variants, in pairs</h2>" + _table(header, rows) + "</section>"


def _cited(cited: Sequence[str]) -> str:
    if not cited:
        return ""
    return (
        "<section><h2>Cited, not measured here</h2><ul>"
        + "".join(f"<li>{escape(of)}</li>" for of in cited)
        + "</ul></section>"
    )


def _reproducibility(value: Mapping[str, Any]) -> str:
    rows = [
        [name.replace("_", " "), ", ".join(map(str, of)) if isinstance(of, list) else str(of)]
        for name, of in value.items()
    ]
    return "<section><h2>To reproduce</h2>" + _table(("", ""), rows) + "</section>"
