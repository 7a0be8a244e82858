"""What a user says of the columns of a table: their types, bounds and levels.

    {"age": "integer",
     "income": {"low": 0},
     "visits": {"type": "integer", "low": 0, "high": 120},
     "grade": {"type": "ordinal", "levels": ["low", "middle", "high"]}}

The same as a file of JSON is what ``metamf impute --types`` takes. What is not said is found out.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

TYPES = ("numeric", "integer", "binary", "ordinal", "nominal")
NUMBERS, LEVELS = TYPES[:2], TYPES[2:]


class Declared(NamedTuple):
    """What is known of a column beforehand.

    Attributes:
      type: one of `TYPES`, or None.
      low, high: the least and the largest number that a cell may hold, both included, or None; of
        dates and times such, or ISO text.
      levels: all that a cell may hold, in their order, or None.
    """

    type: str | None = None
    low: Any = None
    high: Any = None
    levels: tuple[Any, ...] | None = None


NOTHING = Declared()
Types = Mapping[Any, str | Mapping[str, Any] | Declared]


def of_columns(types: Types | None, names: Sequence[Any]) -> list[Declared]:
    """What is declared of each of the columns, in their order.

    Raises:
      ValueError: of a column that is not there, or something that cannot be.
    """
    if types is not None and not isinstance(types, Mapping):
        raise ValueError(f'expected types by column, such as {{"age": "integer"}}, got {types!r}')
    known = types or {}
    unknown = [name for name in known if name not in names]
    if unknown:
        raise ValueError(
            f"types are given for {', '.join(map(repr, unknown))}, but the columns are "
            f"{', '.join(map(str, names[:20]))}{', ..' if len(names) > 20 else ''}"
        )
    return [_of_column(name, known[name]) if name in known else NOTHING for name in names]


def read(path: str) -> Types:
    """Types from a file of JSON.

    Raises:
      ValueError: it is not JSON, or no object.
      FileNotFoundError: there is none.
    """
    try:
        found = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f'{path}: expected an object such as {{"age": "integer"}}')
    return found


def _of_column(name: Any, given: Any) -> Declared:
    if isinstance(given, Declared):
        given = given._asdict()
    if isinstance(given, str):
        given = {"type": given}
    if not isinstance(given, Mapping) or set(given) - set(Declared._fields):
        raise ValueError(
            f"column {name!r}: expected a type, or some of {', '.join(Declared._fields)}, such as "
            f'{{"type": "integer", "low": 0, "high": 120}}, got {given!r}'
        )
    declared = Declared(**given)
    type_, bounded = declared.type, declared.low is not None or declared.high is not None
    if type_ is not None and type_ not in TYPES:
        raise ValueError(
            f"column {name!r}: expected a type among {', '.join(TYPES)}, got {type_!r}"
        )
    if bounded and (type_ in LEVELS or declared.levels is not None):
        raise ValueError(
            f"column {name!r}: low and high are those of numbers: declare it numeric or integer, "
            "or all its levels without them"
        )
    if declared.levels is None:
        return declared
    if type_ in NUMBERS:
        raise ValueError(
            f"column {name!r} is {type_}, but levels are declared: make it binary, ordinal or "
            "nominal, or give low and high instead"
        )
    if isinstance(declared.levels, str) or not isinstance(declared.levels, Sequence | np.ndarray):
        raise ValueError(f"column {name!r}: expected a list of levels, got {declared.levels!r}")
    levels = tuple(declared.levels)
    if not levels or len(set(levels)) < len(levels):
        raise ValueError(
            f"column {name!r}: expected levels that are there once each, got {list(levels)}"
        )
    return declared._replace(levels=levels)
