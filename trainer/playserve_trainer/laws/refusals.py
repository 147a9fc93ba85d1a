"""What a table of cells cannot carry: each refusal says what is missing, and none of them is replaced by a number.

::

    RefusedError             FAILED_PRECONDITION
    ├── TooFewCellsError         fewer cells, budgets or sizes than a law has parameters to find
    ├── NoInteriorMinimumError   the best size of a budget is the smallest or the largest that was trained
    ├── NotConvexError           a parabola or a surface that opens downwards has no optimum
    ├── NotPositiveError         a law in logarithms met a value of 0 or below
    └── TooFarError              a forecast further beyond the data than may be asked for
"""

from __future__ import annotations

from playserve.errors import StateError

__all__ = [
    "NoInteriorMinimumError",
    "NotConvexError",
    "NotDeterminedError",
    "NotPositiveError",
    "RefusedError",
    "TooFarError",
    "TooFewCellsError",
]


class RefusedError(StateError):
    """The cells cannot carry what was asked of them."""


class TooFewCellsError(RefusedError):
    """There are fewer cells, budgets or sizes than the law needs."""


class NoInteriorMinimumError(RefusedError):
    """The best size is at the edge of those that were trained: the optimum may lie beyond it."""


class NotConvexError(RefusedError):
    """What was fitted has no minimum."""


class NotDeterminedError(RefusedError):
    """The cells do not pin the parameters of the law down."""


class NotPositiveError(RefusedError):
    """A law in logarithms met a value that has none."""


class TooFarError(RefusedError):
    """The forecast lies further beyond the data than is allowed without being asked for."""
