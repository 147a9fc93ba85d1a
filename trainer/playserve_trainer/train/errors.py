"""Errors of a training run that are no wrong setting."""

from __future__ import annotations

import grpc

from playserve.errors import PlayserveError, StateError

__all__ = ["DataChangedError", "TrainingDivergedError"]


class TrainingDivergedError(PlayserveError):
    """The loss, or the gradient, is not a finite number any more.

    Attributes:
        step: The step (from 1) in which it was found.
    """

    code = grpc.StatusCode.INTERNAL

    def __init__(self, step: int, loss: float, hint: str) -> None:
        super().__init__(f"the loss of step {step} is {loss}; {hint}")
        self.step = step


class DataChangedError(StateError):
    """A run cannot be resumed on other data than it began with."""
