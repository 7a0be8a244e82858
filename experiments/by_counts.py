"""Errors of test cells by how many training entries their row, and their column, has."""

from typing import Any

import numpy as np

from metamf_jax import metrics
from metamf_jax.factorization import pattern_prior
from metamf_jax.factorization.block_store import BlockStore
from metamf_jax.types import Entries


def errors(train: Entries | BlockStore, test: Entries, answers: np.ndarray) -> dict[str, Any]:
    """What ``summary.json`` holds of them; nothing where there are no test cells.

    Args:
      train: the training entries, or the store that has them.
      test: [T].
      answers: [T], for these.
    """
    if len(test.values) == 0:
        return {}
    if isinstance(train, BlockStore):
        of_rows, of_columns = np.asarray(train.row_count), np.asarray(train.column_count)
    else:
        of_rows, of_columns = pattern_prior.counts_of(train)
    squares = (np.asarray(answers, np.float64) - test.values) ** 2
    return {
        "test_rmse_by_row_count": metrics.by_count(of_rows[test.rows], squares),
        "test_rmse_by_column_count": metrics.by_count(of_columns[test.columns], squares),
    }


def told(found: dict[str, Any]) -> list[str]:
    """`errors` in lines for the log."""
    lines = []
    for side in ("row", "column"):
        parts = found.get(f"test_rmse_by_{side}_count", {})
        by_count = [f"{name}: {part['rmse']:.4f} ({part['cells']})" for name, part in parts.items()]
        if by_count:
            lines.append(f"test rmse by ratings of the {side} (cells): {', '.join(by_count)}")
    return lines
