"""The replay of a game on the demo's page: a film of Atari, a terminal of NetHack."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from playserve_trainer.demo.film import still_of
from playserve_trainer.demo.outcome import GameOutcome
from playserve_trainer.wording import number

__all__ = ["policy_of_scripts", "render_replay"]

_TERMINAL_FRAMES = 3000


def policy_of_scripts(outcomes: Sequence[GameOutcome]) -> str:
    """Return what the page's Content-Security-Policy says of scripts: none, but a terminal's own."""
    if not any(outcome.ttyrec for outcome in outcomes):
        return ""
    from playserve_client.terminal.html import script_source

    return f"; script-src {script_source()}"


def _terminal(outcome: GameOutcome) -> str:
    if outcome.ttyrec is None:
        return '<figure class="card"><h3>Replay</h3><p>No game was recorded.</p></figure>'
    from playserve_client.terminal.html import render_recording
    from playserve_client.terminal.open import open_game

    replay = render_recording(
        open_game(outcome.ttyrec),
        element_id=f"{outcome.plan.game}-replay",
        title="A game of the agent, as a terminal shows it",
        frames=_TERMINAL_FRAMES,
    )
    return f'<div class="card terminal">{replay}</div>'


def render_replay(outcome: GameOutcome) -> str:
    """Return the figure."""
    if outcome.plan.family == "nethack":
        return _terminal(outcome)
    video, game = outcome.video, escape(outcome.plan.game)
    if video is None or outcome.film is None:
        return '<figure class="card"><h3>Replay</h3><p>No game was filmed.</p></figure>'
    if outcome.plan.carried:
        return _film(outcome, video, outcome.film)
    cut = f", its first {video['shown_steps']:,} of {video['steps']:,} steps" if _is_cut(video) else ""
    alt = f"Replay of a game of {game} by the agent that ends with {number(video['score'])} points"
    return (
        f'<figure class="card replay"><h3>Best game of the agent: {number(video["score"])} points</h3>'
        f'<img class="still" alt="First picture. {alt}" src="{_data_uri(still_of(outcome.film))}">'
        f'<img class="moving" alt="{alt}" src="{_data_uri(outcome.film)}">'
        '<label class="control"><input type="checkbox"><span class="pause">Pause the replay</span>'
        '<span class="play">Play the replay</span></label>'
        f"<figcaption>Episode {video['number']} of {escape(video['row'])}{cut}, {video['seconds']:.0f} seconds, played "
        "again from its seed and its actions.</figcaption></figure>"
    )


def _film(outcome: GameOutcome, video: Mapping[str, Any], film: bytes) -> str:
    """Return a film that was made in real time, with keys, mouse, instruction and latency in the picture."""
    name, trip = escape(outcome.plan.title), video["round_trip_ms"]
    source = f"data:video/mp4;base64,{base64.b64encode(film).decode()}"
    return (
        f'<figure class="card"><h3>A game of the agent: {number(video["score"])} points</h3>'
        f'<video controls muted loop playsinline preload="metadata" style="width: 100%; border-radius: 8px" '
        f'aria-label="Film of a game of {name}" src="{source}"></video><figcaption>“{escape(video["instruction"])}”, '
        f"in real time over gRPC: round trip {trip['p50']:.1f} ms (p99 {trip['p99']:.1f}). Keys and mouse as the "
        "policy holds them.</figcaption></figure>"
    )


def _is_cut(video: Mapping[str, Any]) -> bool:
    return bool(video["shown_steps"] < video["steps"])


def _data_uri(film: bytes) -> str:
    return f"data:image/gif;base64,{base64.b64encode(film).decode()}"
