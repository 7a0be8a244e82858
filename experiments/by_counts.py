"""Errors of test cells by how many training entries their row, and their column, has."""

from typing import Any

import numpy as np

from metamf_jax import metrics
from metamf_jax.types import Entries


def errors(
    row_counts: np.ndarray, column_counts: np.ndarray, test: Entries, answers: np.ndarray
) -> dict[str, Any]:
    """What ``summary.json`` holds of them; nothing where there are no test cells.

    Args:
      row_counts: [N], training entries of each row.
      column_counts: [M].
      test: [T].
      answers: [T], for these.
    """
    if len(test.values) == 0:
        return {}
    squares = (np.asarray(answers, np.float64) - test.values) ** 2
    return {
        "test_rmse_by_row_count": metrics.by_count(row_counts[test.rows], squares),
        "test_rmse_by_column_count": metrics.by_count(column_counts[test.columns], squares),
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
