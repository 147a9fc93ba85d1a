"""What the fake server plays with: a spec and a handler that takes a step's inputs and gives an action."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from playserve.codec import Action, Array, DesktopAction
from playserve.settings import ActionSource, Extras, Sampling
from playserve.specs import Codec, DesktopActionSpec, DiscreteActionSpec, ImageFormat, PolicySpec, TensorSpec

__all__ = ["FakePolicy", "FakeReply", "Handler", "Reply", "StepContext", "default_spec", "desktop_spec", "script"]


@dataclass(slots=True, kw_only=True)
class StepContext:
    """What a handler may look at besides the inputs.

    Attributes:
        policy: Spec of the policy that plays.
        session_id: Public id of the session or rollout.
        episode_id: Episode of the step.
        step: Steps that entered this episode's memory before this one.
        state: Memory of the session: empty at the start of each episode, kept between its steps, yours to fill. What a
            handler put into it is undone when the handler raises.
        seed: Seed in force.
        sampling: Sampling settings in force.
        extras: Extras asked for.
        instruction: Instruction in force; in a rollout, of the episode.
        ticks: Game ticks since the step before.
        seq: Number of the step in a session; 0 in a rollout.
        env_id: Environment of a rollout; None in a session.
        executed: What was executed in answer to the step before, None where nobody knows.
        source: Who chose it.
        action: The action to apply, for policies of kind WORLD.
        observe_only: Whether nobody wants an answer.
    """

    policy: PolicySpec
    session_id: str
    episode_id: int
    step: int
    state: dict[str, Any]
    seed: int
    sampling: Sampling
    extras: Extras
    instruction: str = ""
    ticks: int = 1
    seq: int = 0
    env_id: int | None = None
    executed: Action | None = None
    source: ActionSource = ActionSource.UNKNOWN
    action: Action | None = None
    observe_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeReply:
    """An answer with more than one action in it.

    Attributes:
        actions: 1..chunk_length actions; empty for worlds.
        outputs: Output tensors by name.
        log_prob: Log-probability by head, sent when asked for.
        value: Value estimate, sent when asked for; None: unknown.
        action_period_us: Time between two actions.
    """

    actions: tuple[Action, ...] = ()
    outputs: Mapping[str, Array] = field(default_factory=dict)
    log_prob: tuple[float, ...] = (0.0,)
    value: float | None = None
    action_period_us: int = 0


Reply = Action | FakeReply
#: Plays one step.
Handler = Callable[[dict[str, Array], StepContext], Reply]


@dataclass(frozen=True, slots=True, kw_only=True)
class FakePolicy:
    """One policy version of the fake server.

    Attributes:
        spec: What it takes and gives; an empty version counts as "1".
        handler: Plays one step; a PlayserveError that it raises answers the step, any other exception is STEP_FAILED.
        aliases: Names that point at this version.
        slots: Sessions and rollout environments that it holds at once.
    """

    spec: PolicySpec
    handler: Handler
    aliases: tuple[str, ...] = ()
    slots: int = 16


def default_spec(name: str, *, num_actions: int = 18, shape: tuple[int, ...] = (-1, -1, 3)) -> PolicySpec:
    """Return the spec of a fake policy that takes any RGB frame and gives one of `num_actions`."""
    frame = TensorSpec(name="frame", dtype="uint8", shape=shape, codecs=(Codec.LZ4, Codec.JPEG))
    return PolicySpec(name=name, version="1", family="fake", inputs=(frame,), action=DiscreteActionSpec(n=num_actions))


def desktop_spec(
    name: str,
    *,
    keys: Sequence[str] = ("KeyW", "KeyA", "KeyS", "KeyD", "Space"),
    buttons: Sequence[int] = (0, 2, 1),
    max_mouse_px: float = 501.0,
    size: int = 192,
    rate_hz: float = 20.0,
    **fields: Any,
) -> PolicySpec:
    """Return the spec of a fake policy that plays keyboard and mouse by RGB frames of `size` x `size`.

    `fields` are further ones of the PolicySpec, such as `gap_rule`.
    """
    frame = TensorSpec(
        name="frame",
        dtype="uint8",
        shape=(size, size, 3),
        image_format=ImageFormat.RGB8,
        codecs=(Codec.LZ4, Codec.JPEG),
    )
    action = DesktopActionSpec(keys=tuple(keys), buttons=tuple(buttons), max_mouse_px=max_mouse_px)
    options = {"takes_instruction": True, "uses_executed_actions": True, "context_frames": 0, **fields}
    return PolicySpec(name=name, version="1", family="fake", inputs=(frame,), action=action, rate_hz=rate_hz, **options)


def script(actions: Sequence[Action]) -> Handler:
    """Return a handler that plays `actions` in each episode, and the last one for ever after."""
    if not actions:
        raise ValueError("a script has at least one action")
    return lambda _inputs, context: actions[min(context.step, len(actions) - 1)]


def as_reply(reply: Reply) -> FakeReply:
    """Return a handler's answer in its long form."""
    if isinstance(reply, FakeReply):
        return reply
    if isinstance(reply, int | np.integer | DesktopAction) and not isinstance(reply, bool):
        return FakeReply(actions=(reply if isinstance(reply, DesktopAction) else int(reply),))
    raise TypeError(f"a handler gave {reply!r}, wanted an action or a FakeReply")
