"""What the Doom recipe does, decided before it does anything: scenarios, goals, sizes, limits, and why."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from playserve_trainer.models.p2p.text import MINILM

__all__ = ["DEMO_PLAN", "FULL_PLAN", "PLANS", "POLICY", "QUICK_PLAN", "DoomPlan", "Rollout"]

#: Name of the policy in the store.
POLICY = "doom"

_UNSEEN = "held_out"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One run of ``playserve rollout doom``.

    Attributes:
        scenario: What is played.
        goal: What is asked for, and counted.
        text: "right", "none" or "wrong", as the evaluator has it.
        phrasing: "held_out" (never trained on) or "training".
        episodes: Of the agent.
        baseline_episodes: Of the random player, of the idle one and of the expert; 0: they do not play.
    """

    scenario: str
    goal: str
    text: str = "right"
    phrasing: str = _UNSEEN
    episodes: int
    baseline_episodes: int = 0

    @property
    def key(self) -> str:
        """Return the name of its folder."""
        return f"{self.scenario}-{self.goal}-{self.text}-{self.phrasing}".replace("_", "-")


@dataclass(frozen=True, slots=True, kw_only=True)
class DoomPlan:
    """The whole recipe. Episodes of 0 leave a measurement out.

    Attributes:
        name: "full", "demo" or "quick".
        scores: Scenarios whose own score is measured, with their first goal.
        maps: Scenarios of two goals each that only the instruction tells apart, with those goals.
        frames: Recorded frames of each goal.
        record_flags: More flags of the recording.
        minutes: Minutes of training.
        train_flags: More flags of the training.
        continue_flags: More flags still where training goes on from the checkpoint that the package carries, if it
            carries one; None: it never does.
        score_episodes: Of the agent, on each scenario of `scores`.
        baseline_episodes: Of the random player, the idle one and the expert, on each scenario and goal.
        goal_episodes: Of the agent with unseen phrasings, for each goal of `maps`; the same seeds for both goals.
        control_episodes: Of each control: phrasings that were trained on, no text, the other goal's text.
        desktop_episodes: Played at a desktop, on each scenario of `scores`.
        desktop_at_once: Desktops at a time.
        desktop_screen: Size of the game's window.
        filmed: Scenario and goal of each film.
        film_s: Most seconds of a film.
        envs: Environments at a time.
        score_limit: Normalised score, headless, that says "it plays"; None: nothing is judged.
        desktop_limit: Of the normalised score at the desktop.
        goal_limit: Share of the episodes in which the right goal is met.
        minutes_limit: Recording and training together may take so long.
        workers: Processes that record or play.
        reasons: Why settings are what they are.
    """

    name: str
    scores: tuple[str, ...] = ("basic", "defend_the_center", "health_gathering")
    maps: tuple[tuple[str, tuple[str, str]], ...] = (
        ("health_gathering", ("collect", "avoid")),
        ("two_vests", ("green", "red")),
    )
    frames: int
    record_flags: tuple[str, ...] = ("--epsilon", "0.2", "--noise-length", "6", "--min-frames", "1000")
    minutes: float
    train_flags: tuple[str, ...]
    continue_flags: tuple[str, ...] | None = None
    score_episodes: int = 0
    baseline_episodes: int = 0
    goal_episodes: int = 0
    control_episodes: int = 0
    desktop_episodes: int = 0
    desktop_at_once: int = 1
    desktop_screen: str = "320x240"
    filmed: tuple[tuple[str, str], ...] = ()
    film_s: float = 30.0
    envs: int = 16
    score_limit: float | None = 0.7
    desktop_limit: float | None = 0.6
    goal_limit: float | None = 0.8
    minutes_limit: float = 60.0
    workers: int = 2
    reasons: Mapping[str, str] = field(default_factory=dict)

    @property
    def scenarios(self) -> tuple[str, ...]:
        """Scenarios that are recorded, with all their goals."""
        return tuple(dict.fromkeys((*self.scores, *(name for name, _ in self.maps))))

    def rollouts(self) -> tuple[Rollout, ...]:
        """Return what is played headless; where a score and a goal are the same games, they are played once."""
        found: dict[str, Rollout] = {}
        for rollout in (*self._score_rollouts(), *self._goal_rollouts()):
            same = found.get(rollout.key)
            if same is not None:
                rollout = dataclasses.replace(rollout, episodes=max(rollout.episodes, same.episodes))
            if rollout.episodes:
                found[rollout.key] = rollout
        return tuple(found.values())

    def score_rollout(self, scenario: str) -> Rollout:
        """Return what the score of a scenario is read from."""
        return self._find(scenario, first_goal(scenario))

    def goal_rollout(self, scenario: str, goal: str, *, text: str = "right", phrasing: str = _UNSEEN) -> Rollout:
        """Return what is said of a goal, or one of its controls."""
        return self._find(scenario, goal, text=text, phrasing=phrasing)

    def _find(self, scenario: str, goal: str, *, text: str = "right", phrasing: str = _UNSEEN) -> Rollout:
        wanted = Rollout(scenario=scenario, goal=goal, text=text, phrasing=phrasing, episodes=0)
        return next((rollout for rollout in self.rollouts() if rollout.key == wanted.key), wanted)

    def _score_rollouts(self) -> list[Rollout]:
        return [
            Rollout(
                scenario=scenario,
                goal=first_goal(scenario),
                episodes=self.score_episodes,
                baseline_episodes=self.baseline_episodes,
            )
            for scenario in self.scores
        ]

    def _goal_rollouts(self) -> list[Rollout]:
        found = []
        for scenario, goals in self.maps:
            for goal in goals:
                found.append(
                    Rollout(
                        scenario=scenario,
                        goal=goal,
                        episodes=self.goal_episodes,
                        baseline_episodes=self.baseline_episodes,
                    )
                )
                found += [
                    Rollout(scenario=scenario, goal=goal, text=text, phrasing=phrasing, episodes=self.control_episodes)
                    for text, phrasing in (("right", "training"), ("none", _UNSEEN), ("wrong", _UNSEEN))
                ]
        return found

    def to_json(self) -> dict[str, Any]:
        """Return a JSON value."""
        value: dict[str, Any] = _listed({**dataclasses.asdict(self), "scenarios_played": self.scenarios})
        return value


def first_goal(scenario: str) -> str:
    """Return the goal that a scenario's own score asks for."""
    from playserve_client.doom.scenarios import scenario_of

    return scenario_of(scenario).goal(None).name


def _listed(value: Any) -> Any:
    """Return the value with lists instead of tuples, as it comes back from a file."""
    if isinstance(value, tuple | list):
        return [_listed(item) for item in value]
    return {key: _listed(item) for key, item in value.items()} if isinstance(value, dict) else value


_NET = (
    "--size", "1m", "--history", "16", "--no-past-actions", "--sequence-length", "32", "--batch-size", "16",
    "--dropout", "0", "--no-augment", "--text-encoder", MINILM, "--text-dropout", "0.1", "--mouse-decode", "mean",
    "--lr", "0.001", "--warmup-steps", "200", "--precision", "fp32",
)  # fmt: skip

# Two processes of a thread each make 1.5 times the frames/s of one with two threads.
_PROCESSES = ("--processes", "2", "--threads", "1")

_REASONS = {
    "scores": "three controls: sideways and shoot (basic), turn and shoot (defend_the_center), turn and walk "
    "(health_gathering)",
    "maps": "health_gathering shows the same room for both goals; in two_vests both vests stand in every map, and a "
    "seed of the evaluation makes a map that was never recorded",
    "frames": "45,000 frames a goal, the same for each goal: 270,000 in all take two cores about 6 minutes",
    "epsilon": "a fifth of the frames is random and no target: a learner meets what its own mistakes lead to, and its "
    "past actions do not foretell the next ones",
    "min_frames": "several short episodes a recording: fewer files to open",
    "size": "1.7 M parameters in 6.8 MB: what two cores train in under an hour, and what a package can carry",
    "history": "0.8 s in each of three layers: the tasks need no more, and longer clips cost attention",
    "past_actions": "not seen: experts repeat themselves, and a small policy that sees what it did learns to repeat "
    "that; 4 tokens a step instead of 12 also make training 1.5 times faster",
    "augment": "off: the desktop shows the same pixels as the recordings, and jittered colours would blur green and "
    "red",
    "text_encoder": "a sentence encoder that a package brings, so nothing is downloaded; with hashed words avoid was "
    "met in 76% of the episodes: 'walk but touch no medkit' shares too few words with those that were trained on",
    "text_dropout": "a tenth of the clips has no instruction: the null vector of the no-text control is learnt",
    "mouse_decode": "the expert's motions are the centres of the bins, so the centre gives them back",
    "precision": "fp32: processors without bfloat16 units compute it ten times slower",
    "processes": "two, of a thread each: 1.5 times the frames/s of one with two threads",
    "desktop": "one game at a time, as a player has: with two on two cores an action came 41 ms after its frame on "
    "defend_the_center, nearly a step late, and the score was 0.52 [0.39, 0.65] of the way",
    "minutes": "32 minutes of training and 7 of recording: held-out loss hardly falls any more; at most 60 were given",
}

FULL_PLAN = DoomPlan(
    name="full",
    frames=45_000,
    minutes=32.0,
    train_flags=(*_NET, *_PROCESSES, "--eval-every-steps", "1000", "--eval-samples", "4096"),
    score_episodes=100,
    baseline_episodes=50,
    goal_episodes=50,
    control_episodes=50,
    desktop_episodes=30,
    filmed=(
        ("defend_the_center", "defend_center"),
        ("health_gathering", "collect"),
        ("two_vests", "green"),
        ("two_vests", "red"),
    ),
    reasons=_REASONS,
)

# Sized for two cores and fifteen minutes: it shows every part. Six minutes teach little; so it goes on from the
# checkpoint that the full recipe made, where the package carries one.
DEMO_PLAN = DoomPlan(
    name="demo",
    scores=("basic", "defend_the_center"),
    maps=(("two_vests", ("green", "red")),),
    frames=8_000,
    minutes=6.0,
    train_flags=(*_NET, *_PROCESSES, "--eval-every-steps", "500", "--eval-samples", "2048"),
    continue_flags=("--lr", "0.0003"),  # what was learnt in an hour is not to be forgotten in minutes
    score_episodes=20,
    baseline_episodes=10,
    goal_episodes=20,
    control_episodes=12,
    filmed=(("defend_the_center", "defend_center"), ("two_vests", "green"), ("two_vests", "red")),
    film_s=15.0,
    score_limit=None,
    goal_limit=None,
    desktop_limit=None,
    minutes_limit=15.0,
    reasons=_REASONS,
)

# Shows that every part works; far too short to learn anything.
QUICK_PLAN = DoomPlan(
    name="quick",
    scores=("basic",),
    maps=(("two_vests", ("green", "red")),),
    frames=300,
    record_flags=("--min-frames", "100", "--max-steps", "40"),
    minutes=0.05,
    train_flags=(*_NET, "--eval-every-steps", "5", "--eval-samples", "64", "--held-out", "0.3", "--threads", "1"),
    score_episodes=2,
    baseline_episodes=2,
    goal_episodes=2,
    control_episodes=2,
    filmed=(("basic", "shoot_monster"),),
    film_s=2.0,
    envs=2,
    score_limit=None,
    goal_limit=None,
    desktop_limit=None,
    reasons=_REASONS,
)

#: Every plan by name.
PLANS: Mapping[str, DoomPlan] = {plan.name: plan for plan in (FULL_PLAN, DEMO_PLAN, QUICK_PLAN)}
