"""The demo's page: one HTML file without a single request, readable on a phone, by keyboard and by a screen reader."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from playserve_trainer.demo.charts import curve_chart, score_chart, time_chart
from playserve_trainer.demo.outcome import GameOutcome
from playserve_trainer.demo.replays import policy_of_scripts, render_replay
from playserve_trainer.demo.table import protocol_lines, verdict_line
from playserve_trainer.wording import duration, number

__all__ = ["render_page"]

_COLUMNS = ("player", "stickiness", "episodes", "mean", "95% interval", "median", "10% to 90%", "steps", "cut")
# Frontier of the released results, 6ND; scaling.md section 1.4 of the project's references.
_TUYLS = (
    "Tuyls et al. 2023 (human monk, compute-optimal, about 1,000 games a point): mean return 43 at 1e14 FLOPs, 228 at "
    "5e14, 476 at 1e15"
)
_INTERVAL_NOTE = "95% percentile bootstrap of the mean over episodes"


def render_page(outcomes: Sequence[GameOutcome], log: Mapping[str, Any]) -> str:
    """Return the page.

    Args:
        outcomes: Of each game, in the order of the page.
        log: The JSON value of demo.json, with its outcome.
    """
    css = files(__package__).joinpath("page.css").read_text(encoding="utf-8")
    games = _listed([outcome.plan.title for outcome in outcomes])
    body = "".join((
        _header(outcomes, log, games),
        "<main>",
        *(_game_section(outcome) for outcome in outcomes),
        _protocol_section(outcomes),
        _time_section(log),
        _command_section(log),
        "</main>",
        _footer(outcomes, log),
    ))  # fmt: skip
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # Nothing may be fetched, whatever should ever get into the page.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; media-src data:; '
        f"style-src 'unsafe-inline'{policy_of_scripts(outcomes)}\">\n"
        f"<title>playserve demo: {escape(games)}</title>\n<style>\n{css}</style>\n</head>\n"
        f"<body>\n{body}</body>\n</html>\n"
    )


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def _header(outcomes: Sequence[GameOutcome], log: Mapping[str, Any], games: str) -> str:
    machine, took = log["machine"], duration(log["total_seconds"])
    title = {
        True: f"From nothing to agents that play, in {took}",
        False: f"From nothing to agents in {took}, but a goal was missed",
        None: f"Every part once, in {took}: too short to learn",
    }[log["goals_met"]]
    tiles = "".join(_tile(outcome) for outcome in outcomes)
    cpu = f" of {escape(machine['cpu'])}" if machine["cpu"] else ""
    lead = (
        f"{escape(games)}: expert games recorded, an agent trained on them, published to a store, served over gRPC and "
        f"played through that endpoint, on {machine['cores']} cores{cpu}."
    )
    return f'<header><h1>{title}</h1><p class="lead">{lead}</p><ul class="tiles">{tiles}</ul></header>'


def _tile(outcome: GameOutcome) -> str:
    verdict = outcome.judge()
    interval = verdict["interval"]
    bounds = f"95% interval {number(interval['low'])} to {number(interval['high'])}, " if interval else ""
    return (
        f'<li><div class="name">{escape(outcome.plan.title)}, agent\'s mean score</div>'
        f'<div class="big">{number(verdict["mean"])}</div>'
        f'<div class="small">{bounds}{verdict["episodes"]} episodes</div>'
        f'<div class="state">{_badge(verdict)}</div></li>'
    )


def _badge(verdict: Mapping[str, Any]) -> str:
    if verdict["goal"] is None:
        return '<span class="badge none">quick run, nothing judged</span>'
    kind, word = ("met", "met") if verdict["met"] else ("missed", "missed")
    return f'<span class="badge {kind}">goal {number(verdict["goal"])} {word}</span>'


def _game_section(outcome: GameOutcome) -> str:
    game, name = escape(outcome.plan.game), escape(outcome.plan.title)
    values = sorted({row["stickiness"] for row in outcome.rows}, key=lambda value: -1 if value is None else value)
    charts = "".join(
        f'<figure class="card"><h3>{_sticky_title(value)}</h3>{score_chart(outcome, value)}'
        "<figcaption>Line and number: mean. Bracket: its 95% interval. Dot: an episode.</figcaption></figure>"
        for value in values
    )
    return (
        f'<section aria-labelledby="{game}"><div class="heading"><h2 id="{game}">{name}</h2>{_badge(outcome.judge())}'
        f"</div><p>{escape(_sentence(verdict_line(outcome.judge())))}</p>"
        f'<div class="game">{render_replay(outcome)}{charts}{_curves(outcome)}{_facts(outcome)}</div>'
        f"<details><summary>All numbers of {name}</summary>{_score_table(outcome)}</details></section>"
    )


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _sticky_title(value: float | None) -> str:
    if value is None:
        return "Scores"
    return f"Scores, stickiness {value:g}" + ("" if value else " (as trained)")


def _curves(outcome: GameOutcome) -> str:
    if outcome.plan.carried:
        return ""  # it was not trained here
    game, held_out, learning = outcome.plan.game, outcome.held_out, outcome.learning
    loss = curve_chart(f"Loss of {game}", learning, held_out, lambda curve: curve.loss, percent=False)
    accuracy = curve_chart(f"Accuracy of {game}", learning, held_out, lambda curve: curve.accuracy, percent=True)
    caption = "<figcaption>Strong: episodes held out; faint: training batches.</figcaption>"
    return (
        f'<figure class="card"><h3>Loss, nats a label</h3>{loss}{caption}</figure>'
        f'<figure class="card"><h3>Agreement with the expert</h3>{accuracy}{caption}</figure>'
    )


def _facts(outcome: GameOutcome) -> str:
    facts = _carried_facts(outcome) if outcome.plan.carried else _trained_facts(outcome)
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in facts)
    return f'<div class="card facts"><h3>The checkpoint</h3><dl>{items}</dl></div>'


def _carried_facts(outcome: GameOutcome) -> list[tuple[str, Any]]:
    """Return what the manifest of a checkpoint that was made elsewhere says."""
    manifest = outcome.manifest
    origin = manifest.get("origin", {})
    facts: list[tuple[str, Any]] = [
        ("model", f"{manifest['family']}, {manifest['config'].get('size', '')}"),
        ("parameters N", f"{manifest['num_params']:,}"),
        ("frames D", f"{manifest['samples_seen']:,}"),
        ("training FLOPs", f"{manifest['flops']:.3g} counted; 6ND {manifest['flops_6nd']:.3g}"),
        ("made by", f"{origin.get('made_by', 'nobody said')}; the package carries it"),
        ("data digest", manifest["data_digest"]),
        ("weights digest", manifest["weights_sha256"]),
        ("code", manifest["code_version"]),
        ("trained at", manifest["created_at"]),
    ]
    return facts + [
        ("then", f"{item['name']}: {item['value']:.2f}")
        for item in origin.get("verdicts", ())
        if item.get("value") is not None
    ]


def _trained_facts(outcome: GameOutcome) -> list[tuple[str, Any]]:
    summary, manifest = outcome.summary, outcome.manifest
    data, config = summary["data"], summary["config"]
    speed = summary["samples_per_s"]
    model = ", ".join(f"{key} {value}" for key, value in config["model"].items())
    facts: list[tuple[str, Any]] = [
        ("model", f"{summary['family']}, {model}"),
        ("parameters N", f"{summary['num_params']:,}"),
        ("frames D", f"{summary['samples_seen']:,} ({summary['epochs']:.2f} epochs)"),
        ("training FLOPs", f"{summary['flops']:.3g} counted; 6ND {summary['flops_6nd']:.3g}"),
        ("counted", summary["flops_convention"]),
        ("training", f"{summary['elapsed_s']:.0f} s" + (f", {speed:,.0f} frames/s" if speed else "")
         + f", {summary['precision']}, {summary['threads']} threads, seed {config['seed']}"),
        ("expert's games", outcome.recorded),
        ("held out", f"{data['held_out_episodes']} episodes, {data['held_out_samples']:,} steps"),
        ("data digest", manifest["data_digest"]),
        ("weights digest", manifest["weights_sha256"]),
        ("published", f"{summary['published']['name']} version {summary['published']['version']}"),
        ("code", manifest["code_version"]),
        ("trained at", manifest["created_at"]),
    ]  # fmt: skip
    if outcome.plan.family == "nethack":
        facts.insert(4, ("for comparison", f"this run spent {summary['flops_6nd']:.2g} in 6ND; {_TUYLS}"))
    if data["damaged"]:
        facts.append(("damaged files", f"{len(data['damaged'])}, left out"))
    return facts


def _score_table(outcome: GameOutcome) -> str:
    head = "".join(f'<th scope="col">{name}</th>' for name in _COLUMNS)
    rows = "".join(
        "<tr>" + "".join(
            f'<th scope="row">{escape(cell)}</th>' if index == 0 else f"<td>{escape(cell)}</td>"
            for index, cell in enumerate(_cells(outcome, row))
        ) + "</tr>"
        for row in outcome.rows
    )  # fmt: skip
    game = escape(outcome.plan.game)
    notes = "".join(f"<p>{escape(_sentence(note))}</p>" for note in outcome.results["notes"])
    return (
        f'<div class="scroll" role="region" aria-label="Scores of {game}" tabindex="0"><table>'
        f"<caption>Scores of {game}; intervals: {_INTERVAL_NOTE}</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>{notes}"
    )


def _cells(outcome: GameOutcome, row: Mapping[str, Any]) -> list[str]:
    interval, tenths = row["mean_interval"], row["deciles"]
    return [
        outcome.name_of(row),
        "-" if row["stickiness"] is None else f"{row['stickiness']:g}",
        f"{row['episodes']}" + ("" if row["distinct"] == row["episodes"] else f" ({row['distinct']} distinct)"),
        number(row["mean"]),
        f"{number(interval['low'])} to {number(interval['high'])}" if interval else "-",
        number(row["median"]),
        f"{number(tenths[0])} to {number(tenths[-1])}" if tenths else "-",
        "-" if row["mean_steps"] is None else f"{row['mean_steps']:,.0f}",
        f"{row['truncated']}",
    ]


def _protocol_section(outcomes: Sequence[GameOutcome]) -> str:
    rules = "".join(f"<li>{escape(line)}</li>" for line in protocol_lines(outcomes))
    return (
        f'{_section_head("protocol", "Protocol")}<div class="card"><ul class="rules">{rules}<li>intervals: '
        f"{_INTERVAL_NOTE}, 10,000 resamples; of few episodes they are rough</li><li>the goal is about the sampled "
        "agent at stickiness 0, the protocol that it was trained in</li></ul></div></section>"
    )


def _section_head(name: str, title: str) -> str:
    heading = f'<h2 id="{name}">{escape(title)}</h2>'
    return f'<section aria-labelledby="{name}"><div class="heading">{heading}</div>'


def _time_section(log: Mapping[str, Any]) -> str:
    seconds = list(log["stage_seconds"].items())
    loads = [attempt["load_before"] for stage in log["stages"] for attempt in stage["attempts"]]
    known = [load[0] for load in loads if load]
    load = f" The machine's load before the stages was {min(known):g} to {max(known):g}." if known else ""
    again = any(len(stage["attempts"]) > 1 for stage in log["stages"])
    note = " Stages that were broken off count with all their attempts." if again else ""
    return (
        f'{_section_head("time", "Where the time went")}<figure class="card narrow">{time_chart(seconds)}<figcaption>'
        f"{duration(log['total_seconds'])} in all.{load}{note}</figcaption></figure></section>"
    )


def _command_section(log: Mapping[str, Any]) -> str:
    steps = "".join(
        f"<li>{escape(stage['title'])}<pre><code>{escape(' '.join(stage['command']))}</code></pre></li>"
        for stage in log["stages"]
    )
    return (
        f"{_section_head('commands', 'The same by hand')}<p>The whole is <code>make demo</code>. These are the "
        "commands that it ran, in order; the server stays up while the games are played, and its port is the one that "
        f'it prints.</p><ol class="steps">{steps}</ol></section>'
    )


def _footer(outcomes: Sequence[GameOutcome], log: Mapping[str, Any]) -> str:
    machine = log["machine"]
    packages = {**machine["packages"], **(outcomes[0].results["packages"] if outcomes else {})}
    shown = ", ".join(f"{name} {value}" for name, value in sorted(packages.items()))
    versions = ", ".join(sorted({outcome.manifest["code_version"] for outcome in outcomes}))
    return (
        f"<footer><p>Made {escape(log['finished_at'])} by playserve {escape(versions)}; Python "
        f"{escape(machine['python'])} on {escape(machine['system'])}; {escape(shown)}. All numbers are in demo.json, "
        "train/*/metrics.jsonl and rollout/*/results.json beside this page.</p></footer>"
    )
