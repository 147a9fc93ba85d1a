"""A table of cells: one row a checkpoint, whoever trained it.

Columns that the laws read, with the names that other tables use for them in :data:`ALIASES`. Of N (parameters), D
(samples seen) and C (training FLOPs) one may be missing: then C = 6ND, and the table says so.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from playserve.errors import BadSettingError
from playserve_trainer.laws.refusals import TooFewCellsError

__all__ = ["ALIASES", "NUMBERS", "WORDS", "CellTable", "Clusters", "Floats", "joined"]

Floats = NDArray[np.float64]

#: Columns of numbers; NaN where nothing was measured. `unique` is the share of a data set that a run learns from,
#: `transfer_` the return where nothing was learnt.
NUMBERS = (
    "flops", "params", "params_non_embedding", "samples", "unique_samples", "unique", "budget", "seed", "loss",
    "loss_se", "return_mean", "return_se", "return_n", "transfer_mean", "transfer_se", "transfer_n", "held_out",
)  # fmt: skip

#: Columns of words; "" where nothing is said.
WORDS = ("cell", "run", "study", "family", "task", "variant", "size", "held_out_digest")

#: Other names of the columns, in small letters.
ALIASES: Mapping[str, str] = {
    "c": "flops", "compute": "flops", "training_flops": "flops", "training flop": "flops",
    "n": "params", "num_params": "params", "parameters": "params", "model size": "params", "n_total": "params",
    "n_non_embedding": "params_non_embedding",
    "d": "samples", "tokens": "samples", "num_samples": "samples", "training tokens": "samples", "data": "samples",
    "u": "unique_samples", "unique_d": "unique_samples", "unique_data": "unique_samples",
    "eval_loss": "loss", "dev_loss": "loss", "test_loss": "loss", "val_loss": "loss", "eval_se": "loss_se",
    "return": "return_mean", "score": "return_mean", "reward": "return_mean",
    "run_id": "run", "run id": "run", "game": "task",
}  # fmt: skip

# C of a table counts as 6ND where every cell is as near to it as this: then a + b = 1 is no finding.
_NEAR_6ND = 0.01


@dataclass(frozen=True, slots=True)
class Clusters:
    """Held-out loss of one cell by episode (or game, or recording).

    Attributes:
        ids: Of the E episodes.
        loss_sum: Sum of the loss over an episode's labels, nats [E].
        labels: How many labels it has [E].
    """

    ids: tuple[str, ...]
    loss_sum: Floats
    labels: Floats

    def same_episodes(self, other: Clusters) -> bool:
        """Return whether both are losses on the same labels of the same episodes."""
        return self.ids == other.ids and np.array_equal(self.labels, other.labels)


@dataclass(frozen=True, slots=True, kw_only=True)
class CellTable:
    """Columns of K cells.

    Attributes:
        numbers: See :data:`NUMBERS`; float64 [K] each.
        words: See :data:`WORDS`; K strings each.
        clusters: Held-out loss by episode of each cell, or None; K of them.
        convention: How C was counted.
        source: Where the table came from.
        notes: What was filled in.
    """

    numbers: Mapping[str, Floats]
    words: Mapping[str, tuple[str, ...]]
    clusters: tuple[Clusters | None, ...] = ()
    convention: str = "not stated"
    source: str = ""
    notes: tuple[str, ...] = ()

    @classmethod
    def from_columns(
        cls,
        columns: Mapping[str, Sequence[object]],
        *,
        clusters: Sequence[Clusters | None] = (),
        convention: str = "",
        source: str = "",
    ) -> CellTable:
        """Return the table of columns under their own or other names; unknown columns are left alone.

        Raises:
            BadSettingError: Two columns mean the same, a number is none, N, D or C is not positive, or two of them are
                missing.
            TooFewCellsError: There is no row.
        """
        named = _renamed(columns)
        length = max((len(values) for values in named.values()), default=0)
        if not length:
            raise TooFewCellsError(f"{source or 'the table'} holds no cell")
        numbers = {name: _numbers(name, named[name]) if name in named else np.full(length, np.nan) for name in NUMBERS}
        words = {name: tuple(_word(value) for value in named.get(name, [""] * length)) for name in WORDS}
        notes = _complete(numbers)
        if not any(words["run"]):
            words["run"] = tuple(words["cell"][i] or str(i) for i in range(length))
        convention = convention or ("6ND" if notes else "not stated")
        table = cls(
            numbers=numbers,
            words=words,
            clusters=tuple(clusters) or (None,) * length,
            convention=convention,
            source=source,
            notes=notes,
        )
        table._check()
        return table

    def __len__(self) -> int:
        return len(self.numbers["flops"])

    @property
    def flops(self) -> Floats:
        """C, training FLOPs [K]."""
        return self.numbers["flops"]

    @property
    def params(self) -> Floats:
        """N [K]."""
        return self.numbers["params"]

    @property
    def samples(self) -> Floats:
        """D, repeats counted [K]."""
        return self.numbers["samples"]

    @property
    def loss(self) -> Floats:
        """Held-out loss, nats a label [K]."""
        return self.numbers["loss"]

    @property
    def is_6nd(self) -> bool:
        """Whether C = 6ND in every cell: then the exponents of N and D add up to 1 by definition."""
        return bool(np.all(np.abs(self.flops / (6 * self.params * self.samples) - 1) < _NEAR_6ND))

    @property
    def held_out(self) -> NDArray[np.bool_]:
        """Cells that are kept from every fit [K]."""
        return np.nan_to_num(self.numbers["held_out"]) > 0

    def has(self, name: str) -> bool:
        """Return whether any cell has this number."""
        return bool(np.isfinite(self.numbers[name]).any())

    def episode_losses(self) -> tuple[Floats, Floats] | None:
        """Return loss sums [K, E] and labels [E] if all cells were judged on the same episodes, else None."""
        known = [of for of in self.clusters if of is not None]
        if not known or len(known) < len(self) or not all(known[0].same_episodes(of) for of in known):
            return None
        return np.stack([of.loss_sum for of in known]), known[0].labels

    def take(self, rows: NDArray[np.intp] | NDArray[np.bool_]) -> CellTable:
        """Return the table of some rows, in their order; a row may come twice."""
        index = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows.astype(np.intp)
        return dataclasses.replace(
            self,
            numbers={name: values[index] for name, values in self.numbers.items()},
            words={name: tuple(values[i] for i in index) for name, values in self.words.items()},
            clusters=tuple(self.clusters[i] for i in index),
        )

    def with_numbers(self, **changed: Floats) -> CellTable:
        """Return the table with other numbers in some columns."""
        return dataclasses.replace(self, numbers={**self.numbers, **changed})

    def only(self, name: str, word: str) -> CellTable:
        """Return the rows with this word in a column.

        Raises:
            TooFewCellsError: There is none.
        """
        rows = np.array([other == word for other in self.words[name]])
        if not rows.any():
            known = ", ".join(dict.fromkeys(self.words[name]))
            raise TooFewCellsError(f"{self.source or 'the table'} has no cell with {name} {word!r}; it has: {known}")
        return self.take(rows)

    def groups(self, *names: str) -> Iterator[tuple[tuple[str, ...], CellTable]]:
        """Yield the parts of the table that agree in some columns of words, in order."""
        keys = list(zip(*(self.words[name] for name in names), strict=True))
        for key in dict.fromkeys(keys):
            yield key, self.take(np.array([other == key for other in keys]))

    def whole_data(self) -> CellTable:
        """Return the cells that learn from all the data: those of the largest share, and those that name none."""
        shares = self.numbers["unique"]
        known = shares[np.isfinite(shares)]
        return self.take(~(shares < known.max())) if len(known) else self

    def digest(self) -> str:
        """Return the SHA-256 of the numbers and words, in hex."""
        state = hashlib.sha256()
        for name in NUMBERS:
            state.update(f"{name}:".encode() + np.ascontiguousarray(self.numbers[name]).tobytes())
        for name in WORDS:
            state.update(f"{name}:{'|'.join(self.words[name])}".encode())
        return state.hexdigest()

    def _check(self) -> None:
        for name in ("flops", "params", "samples"):
            values = self.numbers[name]
            bad = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
            if len(bad):
                raise BadSettingError(
                    f"{self.source or 'the table'}, row {bad[0] + 1}: {name} is {values[bad[0]]}; a finite number "
                    "above 0 is wanted"
                )
        if not self.has("loss") and not self.has("return_mean"):
            raise BadSettingError(f"{self.source or 'the table'} has neither a loss nor a return in any row")


def joined(tables: Sequence[CellTable]) -> CellTable:
    """Return the rows of all tables, in their order; there is at least one table."""
    return CellTable(
        numbers={name: np.concatenate([table.numbers[name] for table in tables]) for name in NUMBERS},
        words={name: tuple(word for table in tables for word in table.words[name]) for name in WORDS},
        clusters=tuple(of for table in tables for of in table.clusters),
        convention=tables[0].convention,
        source=", ".join(table.source for table in tables),
        notes=tuple(dict.fromkeys(note for table in tables for note in table.notes)),
    )


def _renamed(columns: Mapping[str, Sequence[object]]) -> dict[str, Sequence[object]]:
    known, named = {*NUMBERS, *WORDS}, dict[str, Sequence[object]]()
    for name, values in columns.items():
        small = name.strip().lower()
        means = small if small in known else ALIASES.get(small, "")
        if not means:
            continue
        if means in named:
            raise BadSettingError(f"two columns mean {means!r}, one of them is {name!r}: drop one")
        named[means] = values
    return named


def _numbers(name: str, values: Sequence[object]) -> Floats:
    found = np.full(len(values), np.nan)
    for row, value in enumerate(values):
        if value is None or value == "":
            continue
        try:
            found[row] = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError) as error:
            raise BadSettingError(f"column {name!r}, row {row + 1}: {value!r} is no number") from error
    return found


def _word(value: object) -> str:
    return "" if value is None else str(value)


def _complete(numbers: dict[str, Floats]) -> tuple[str, ...]:
    """Fill in the one of N, D and C that is missing altogether; return what is to be said of it."""
    missing = [name for name in ("flops", "params", "samples") if np.isnan(numbers[name]).all()]
    if len(missing) > 1:
        raise BadSettingError(f"the table lacks {' and '.join(missing)}; of flops, params and samples two are wanted")
    if not missing:
        return ()
    flops, params, samples = numbers["flops"], numbers["params"], numbers["samples"]
    if missing == ["flops"]:
        numbers["flops"] = 6 * params * samples
    elif missing == ["params"]:
        numbers["params"] = flops / (6 * samples)
    else:
        numbers["samples"] = flops / (6 * params)
    return (f"{missing[0]} is not in the table: it follows from C = 6ND",)
