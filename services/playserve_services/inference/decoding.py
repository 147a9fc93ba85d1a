"""Between the numbers that heads draw and the actions that a desktop policy plays. Engine thread only.

A policy's answer is decoded once, where it was drawn, and encoded again at once: what a lockstep session is told of its
own answer is what it would be told of the same action by an `Executed` (held keys have an order and no repeats then).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol

from playserve.actions import Action, DesktopAction
from playserve.errors import NotImplementedHereError
from playserve.specs import DiscreteActionSpec, PolicyKind, PolicySpec
from playserve_services.inference.sampling import uniforms
from playserve_trainer.models.policy import Policy

__all__ = ["DesktopDecoder", "Drawn", "Executed", "num_executed", "num_heads", "refuse_world"]

_log = logging.getLogger(__name__)

#: What was executed before a frame: one number a head, a desktop action that is not encoded yet, or None: unknown.
Executed = tuple[int, ...] | DesktopAction | None


class Drawn(Protocol):
    """What decoding needs of a row: its place in its random stream, and how its session wants motion decoded."""

    seed: int
    counter: int
    decode: str


def num_heads(spec: PolicySpec, policy: Policy) -> int:
    """Return the most numbers that a step draws: one a head; of a world one more, by which an episode begins.

    Raises:
        NotImplementedHereError: It does not say its heads.
    """
    try:
        return len(policy.heads()) + (spec.kind is PolicyKind.WORLD)
    except NotImplementedError as error:
        raise NotImplementedHereError(f"policy {spec.name!r}: {error}") from error


def num_executed(spec: PolicySpec, policy: Policy) -> int:
    """Return how many numbers a step is told of an action.

    Raises:
        NotImplementedHereError: It does not say its heads.
    """
    try:
        return policy.executed_size()
    except NotImplementedError as error:
        raise NotImplementedHereError(f"policy {spec.name!r}: {error}") from error


def refuse_world(spec: PolicySpec, how: str) -> None:
    """Raise NotImplementedHereError where a policy is a world; `how` says what cannot be done with it."""
    if spec.kind is PolicyKind.WORLD:
        raise NotImplementedHereError(f"policy {spec.name!r} is a world, and {how}; it is played by PolicyService.Play")


class DesktopDecoder:
    """Decodes what the heads of one policy drew.

    Args:
        policy: Has the vocabulary.
        num_heads: H. The draws within a bin are those of heads H and H + 1, so that no batch mate changes them.
    """

    def __init__(self, policy: Policy, num_heads: int) -> None:
        self._policy = policy
        self._heads = num_heads

    @classmethod
    def of(cls, spec: PolicySpec, policy: Policy, num_heads: int) -> DesktopDecoder | None:
        """Return the decoder of a policy; None: its actions are indices, and need none."""
        return None if isinstance(spec.action, DiscreteActionSpec) else cls(policy, num_heads)

    def decode(
        self, rows: Sequence[Drawn], drawn: Sequence[Sequence[int]]
    ) -> tuple[list[Action], list[tuple[int, ...]]]:
        """Return the action of each row, and what the policy is told if that is executed."""
        heads = self._heads
        within = uniforms([r.seed for r in rows], [r.counter for r in rows], heads + 2)[:, heads:].tolist()
        actions = [
            self._policy.decode_action(values, pair, row.decode)
            for row, values, pair in zip(rows, drawn, within, strict=True)
        ]
        return actions, [self._policy.encode_action(action) for action in actions]

    def encoded(self, executed: Executed) -> tuple[int, ...] | None:
        """Return what the policy is told of what was executed, one number a head; None: unknown."""
        if not isinstance(executed, DesktopAction):
            return executed
        try:
            return self._policy.encode_action(executed)
        except Exception:  # noqa: BLE001 - a bug of one policy must not stop the sessions of others
            _log.exception("an executed action could not be encoded; it counts as unknown")
            return None
