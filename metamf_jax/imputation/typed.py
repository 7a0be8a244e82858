"""Data frames as they are: fitted, completed, and given back of the same types.

`frames` makes numbers of a frame and a frame of numbers, `mixed` completes the numbers.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from metamf_jax.imputation import frames, mixed
from metamf_jax.imputation.declared import Types
from metamf_jax.imputation.mixed import Mixed, MixedConfig


def suits(table: Any, types: Types | str | None) -> bool:
    """Whether a table is to be taken as a frame of typed columns.

    Args:
      table: anything.
      types: ``auto`` or declared types say that it is; None, a frame that holds more than numbers
        is.

    Raises:
      ValueError: types for something that is no frame.
    """
    if frames.is_frame(table):
        return types is not None or frames.has_levels(table)
    if types is not None:
        raise ValueError(
            "types are those of a data frame's columns: expected one of pandas or polars, or a "
            f"table of pyarrow, got {type(table).__name__}"
        )
    return False


def fit(frame: Any, types: Types | str | None, seed: int) -> Mixed:
    """Finds out what the columns are, and draws from their posterior.

    Raises:
      ValueError: see `frames.describe`, `frames.encode` and `mixed.fit`.
    """
    described = frames.describe(frame, _declared(types))
    return mixed.fit(frames.encode(frame, described), described, MixedConfig(seed=seed))


def grow(fitted: Mixed, frame: Any, types: Types | str | None, seed: int) -> Mixed:
    """The fitted frame with the rows of a further one, fitted anew.

    Raises:
      ValueError: other columns, or cells that the columns cannot hold; see `columns.extend`.
    """
    described = frames.extend(frame, fitted.columns, _declared(types))
    values = frames.encode(frame, described)
    return mixed.grow(fitted, values, described, MixedConfig(seed=seed))


def _declared(types: Types | str | None) -> Types | None:
    if isinstance(types, str) and types != "auto":
        raise ValueError(f"expected types by column, or auto, got {types!r}")
    return None if isinstance(types, str) else types


def complete(fitted: Mixed, frame: Any) -> tuple[Any, np.ndarray]:
    """The frame without missing cells, and errors [N, M]; see `mixed.Answers`."""
    found = mixed.answer(fitted, frames.encode(frame, fitted.columns))
    return frames.decode(frame, fitted.columns, found.values), found.errors


def impute(fitted: Mixed, frame: Any, imputations: int) -> list[Any]:
    """The frame completed several times; see `mixed.impute`."""
    several = mixed.impute(fitted, frames.encode(frame, fitted.columns), imputations)
    return [frames.decode(frame, fitted.columns, values) for values in several]


def quantiles(fitted: Mixed, frame: Any, probabilities: Sequence[float]) -> np.ndarray:
    """Quantiles [Q, N, M] of numbers, at observed cells these; NaN of levels.

    Raises:
      ValueError: a probability is not between 0 and 1.
    """
    if not all(0 < p < 1 for p in probabilities):
        raise ValueError(f"expected probabilities between 0 and 1, got {list(probabilities)}")
    values = frames.encode(frame, fitted.columns)
    found = mixed.answer(fitted, values, tuple(probabilities)).quantiles
    found[..., [column.levels is not None for column in fitted.columns]] = np.nan
    return found


def chances(fitted: Mixed, frame: Any) -> dict[str, dict[Any, np.ndarray]]:
    """By column and level, how likely the level is in each row, [N]; 0 or 1 where observed."""
    found = mixed.answer(fitted, frames.encode(frame, fitted.columns)).chances
    told = {}
    for m, of_rows in found.items():
        column = fitted.columns[m]
        assert column.levels is not None
        told[column.name] = dict(zip(column.levels.to_pylist(), of_rows.T, strict=True))
    return told
