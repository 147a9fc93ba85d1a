"""What people see on the terminal of how a world was judged, what probes read, and how agents rank."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

__all__ = ["print_judged", "print_probes", "print_ranks"]

_SHOWN = {
    "dream": "the world", "reconstruction": "tokenizer alone", "repeat": "start repeated", "other": "another episode",
    "real": "real frames",
}  # fmt: skip
_MEASURES = (
    ("psnr", "PSNR, dB", ".1f"), ("ssim", "SSIM", ".2f"), ("tokens", "tokens right", ".1%"),
    ("probe_error", "probe error", ".2f"), ("probe_error_all", "probe error, all", ".2f"),
    ("frechet", "Fréchet distance", ".3f"),
)  # fmt: skip
_OUTCOMES = (
    ("uncertainty, nats", ("uncertainty",), ".2f"),
    ("rewards right", ("reward", "steps", "dream"), ".1%"),
    ("  were they 0", ("reward", "steps", "nothing"), ".1%"),
    ("error of their sum", ("reward", "sum_error", "dream"), ".2g"),
    ("  were they 0", ("reward", "sum_error", "nothing"), ".2g"),
    ("rewards found", ("reward", "found"), ".1%"),
    ("dreamed ones true", ("reward", "true"), ".1%"),
    ("over or not: right", ("end", "agree"), ".1%"),
    ("  never over", ("end", "never"), ".1%"),
)
_NAMED = 12


def print_judged(console: Console, found: Mapping[str, Any]) -> None:
    """Print a world's numbers: a row for each of what is shown, a column for each horizon."""
    at = {horizon: part for horizon, part in found["at"].items() if part is not None}
    table = Table(title="Shown against real frames", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("", no_wrap=True)
    for horizon in at:
        table.add_column(f"{horizon} step{'s' if horizon != '1' else ''}", justify="right", no_wrap=True)
    table.add_row("starts (episodes)", *(f"{part['starts']} ({part['episodes']})" for part in at.values()))
    for key, title, form in _MEASURES:
        if key == "probe_error_all" and found["probes"] and found["probes"]["readable"] == found["probes"]["all"]:
            continue
        named = [name for name in _SHOWN if any((part[key] or {}).get(name) for part in at.values())]
        if named:
            table.add_section()
            table.add_row(title)
        for name in named:
            table.add_row(f"  {_SHOWN[name]}", *(_cell(part[key], name, form) for part in at.values()))
    table.add_section()
    for title, path, form in _OUTCOMES:
        table.add_row(title, *(_short(_of(part, path), form) for part in at.values()))
    console.print(table)
    _print_about(console, found)


def _print_about(console: Console, found: Mapping[str, Any]) -> None:
    probes, features, settings = found["probes"], found["features"], found["settings"]
    lines = [
        "±: half of the 95% interval over episodes; *: better or worse than the start repeated, start by start, by "
        "an interval without 0",
        "no probes: nothing that changes is recorded beside the held-in frames"
        if probes is None
        else f"probes: {probes['readable']} of {probes['all']} can be read off the {probes['features']} "
        f"({probes['frames']:,} held-in frames); an error of 1 is as much as the value varies",
        f"Fréchet distance: {features['name']}, {features['axes']} axes with {features['variance_kept']:.0%} of the "
        "variance",
        f"{settings['given']} frames given, seed {settings['seed']}, temperature {settings['temperature']:g}",
        *found["notes"],
    ]
    for line in lines:
        console.print(f"- {line}", markup=False, soft_wrap=True)


def _of(part: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    value: Any = part
    for key in path:
        value = value[key]
    return value


def _cell(values: Mapping[str, Any] | None, name: str, form: str) -> str:
    if values is None or values.get(name) is None:
        return "-"
    versus = values.get("versus_repeat") if name == "dream" else None
    sure = versus is not None and versus["low"] is not None and (versus["low"] > 0 or versus["high"] < 0)
    return _short(values[name], form) + ("*" if sure else "")


def _short(value: Mapping[str, Any] | None, form: str) -> str:
    """Return a mean and half of its interval."""
    if value is None:
        return "-"
    if value["low"] is None:
        return f"{value['mean']:{form}}"
    half = f"{(value['high'] - value['low']) / 2:{form}}"
    return f"{value['mean']:{form}}±{half}"


def _interval(value: Mapping[str, Any], form: str) -> str:
    if value["low"] is None:
        return f"{value['mean']:{form}}"
    return f"{value['mean']:{form}} ({value['low']:{form}} to {value['high']:{form}})"


def print_probes(console: Console, probes: Mapping[str, Any]) -> None:
    """Print how well each probe reads real frames, the best first."""
    table = Table(title="Probes of real frames, error in spreads", title_justify="left")
    for name in ("probe", "left out of the fit", "held-out episodes", "spread"):
        table.add_column(name, justify="left" if name == "probe" else "right")
    each = sorted(probes["each"].items(), key=lambda item: float(item[1]["left_out_error"]))
    for name, of in each[:_NAMED]:
        held = of["held_out_error"]
        shown = "-" if held is None else f"{held:.3f}"
        table.add_row(name, f"{of['left_out_error']:.3f}", shown, f"{of['spread']:.4g}")
    console.print(table)
    if len(each) > _NAMED:
        console.print(f"and {len(each) - _NAMED} more")
    console.print(
        f"{probes['readable']} of {probes['all']} can be read (left-out error at most {probes['readable_below']:g}) "
        f"off the {probes['features']}; {probes['frames']:,} held-in frames",
        markup=False,
    )


def print_ranks(console: Console, found: Mapping[str, Any]) -> None:
    """Print both returns of each agent, and how well one ranks the other."""
    table = Table(title=f"{found['real']['title']} and {found['imagined']['title']}", title_justify="left")
    for name in ("agent", "version", "real return", "episodes", "imagined return", "episodes", "rank", "imagined"):
        table.add_column(name, justify="left" if name in ("agent", "version") else "right", overflow="fold")
    for agent in found["agents"]:
        of = (agent["real"], agent["imagined"])
        cells = [text for part in of for text in (_with_error(part), str(part["episodes"]))]
        ranks = (f"{agent['real_rank']:g}", f"{agent['imagined_rank']:g}")
        table.add_row(agent["policy"], agent["version"], *cells, *ranks)
    console.print(table)
    for key, title in (("spearman", "rank correlation (Spearman)"), ("pearson", "correlation (Pearson)")):
        of_both, of_episodes = found[key]["agents_and_episodes"], found[key]["episodes"]
        console.print(
            f"{title}: {_interval({**of_both, 'mean': found[key]['value']}, '.3f')} with agents and episodes drawn "
            f"anew; {_bounds(of_episodes)} with episodes alone",
            markup=False,
        )
    for note in found["notes"]:
        console.print(f"- {note}", markup=False, soft_wrap=True)


def _bounds(value: Mapping[str, Any]) -> str:
    return "no interval" if value["low"] is None else f"{value['low']:.3f} to {value['high']:.3f}"


def _with_error(part: Mapping[str, Any]) -> str:
    return f"{part['mean']:.4g}" + ("" if part["se"] is None else f" ± {part['se']:.2g}")
