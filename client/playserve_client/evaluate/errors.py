"""Errors of the evaluator's own, which never travel."""

from __future__ import annotations

from playserve.errors import PlayserveError

__all__ = ["WorkerFailedError"]


class WorkerFailedError(PlayserveError):
    """An environment raised, or its worker process died too often."""
