"""How many digits an imputed number is given: hardly more than the observed ones have."""

from typing import NamedTuple

import numpy as np
import pyarrow as pa

from metamf_jax.data.tables import arrow

# Decimals beyond the observed ones.
_MORE = 2
# Whole numbers that vary less than this are imputed with decimals: rounding adds an error of 0.29.
_WHOLE_FROM = 10
# Of so many decimals a double says nothing more.
_ALL = 17
# Numbers that a text would rather write with an exponent.
_LARGE, _SMALL = 1e16, 1e-4


class Digits(NamedTuple):
    """The digits of the imputed numbers of a column.

    Attributes:
      decimals: at most; `_ALL` leaves them as they are.
      significant: digits of numbers with an exponent, or None where all are written without.
    """

    decimals: int
    significant: int | None = None


def of_observed(values: np.ndarray, *, whole: bool = False, scientific: bool = False) -> Digits:
    """What goes with the observed values [E] of a column.

    Args:
      values: finite numbers.
      whole: whether the column can hold integers only.
      scientific: whether observed numbers are written with an exponent.
    """
    values = np.asarray(values)
    significant = None
    if scientific:
        texts = (np.format_float_scientific(x, trim="-") for x in values)
        significant = max(sum(map(str.isdigit, text.split("e")[0])) for text in texts) + _MORE
    if whole or not len(values):
        return Digits(0 if whole else _ALL, significant)
    decimals = next((n for n in range(_ALL - _MORE) if _round_trip(values, n)), _ALL - _MORE)
    if decimals == 0:
        largest = float(np.abs(values).max()) or 1.0
        deviation = np.std(values.astype(np.float64) / largest) * largest
        return Digits(0 if deviation > _WHOLE_FROM else _MORE, significant)
    return Digits(decimals + _MORE, significant)


def _round_trip(values: np.ndarray, decimals: int) -> bool:
    """Whether no value has more decimals, in its own precision."""
    # Beyond it every double is whole, and the product may overflow.
    small = values[np.abs(values) < 2.0**53].astype(np.float64)
    return bool((np.round(small, decimals).astype(values.dtype) == small).all())


def rounded(values: np.ndarray, digits: Digits) -> np.ndarray:
    """Values [P] with no more digits than these, float64; never a negative zero."""
    values = np.array(values, np.float64)
    if digits.decimals < _ALL:
        small = np.abs(values) < 2.0**53
        values[small] = np.round(values[small], digits.decimals)
    if digits.significant is not None:
        for place in np.flatnonzero(extreme(values)):
            values[place] = float(f"{values[place]:.{digits.significant - 1}e}")
    return values + 0.0


def significant(values: np.ndarray, digits: int = 4) -> np.ndarray:
    """Values with so many significant digits, as errors are given."""
    values = np.asarray(values, np.float64)
    flat = [float(f"{x:.{digits - 1}e}") for x in values.ravel().tolist()]
    return np.array(flat).reshape(values.shape)


def extreme(values: np.ndarray) -> np.ndarray:
    """Which numbers a text would rather write with an exponent."""
    size = np.abs(values)
    return (size >= _LARGE) | ((size < _SMALL) & (size > 0))


def texts(values: np.ndarray, scientific: bool = False) -> list[str]:
    """The shortest text of each value [P] that reads back as the same number; NaN is ``nan``.

    With an exponent only if ``scientific``, and if very large or small.
    """
    # In bulk.
    found = arrow.from_numpy(values).cast(pa.string()).to_pylist()
    unlike = np.array(["e" in text for text in found], bool)
    if scientific:
        unlike &= ~extreme(values)
    for place in np.flatnonzero(unlike):
        found[place] = np.format_float_positional(values[place], trim="-")
    return found
