"""What is printed of a fit."""

import numpy as np

from metamf_jax.imputation.completion import Completion
from metamf_jax.imputation.feature_tables import Features
from metamf_jax.types import Table

# Above it the worst columns are not named.
_FEW_COLUMNS = 100


def tell(completed: Completion, table: Table, weights: str) -> None:
    """Prints the error to expect, and how values were standardised."""
    check, by = completed.check, completed.standardized_by
    if not check.cells:
        print("too few observed cells to hold some out: the error is not known")
    elif by == "matrix":
        print(
            f"held-out error on {check.cells} of the observed cells: {check.rmse:.4g} (root mean "
            f"square), {check.bias_rmse:.4g} by row and column effects alone"
        )
    else:
        side, ids = by.removesuffix("s"), table.column_ids if by == "columns" else table.row_ids
        print(
            f"held-out error on {check.cells} of the observed cells: {check.relative:.4g} of a "
            f"{side}'s deviation (root mean square), {check.mean_relative:.4g} by the {side}s' "
            "means"
        )
        known = np.flatnonzero(~np.isnan(check.by_column))
        if len(known) <= _FEW_COLUMNS:
            worst = known[np.argsort(-check.by_column[known])][:3]
            listed = ", ".join(f"{ids[m]} {check.by_column[m]:.3g}" for m in worst)
            print(f"largest errors of {side}s: {listed}")
    unit = {
        "matrix": "one unit for all cells",
        "columns": "each column in its own unit",
        "rows": "each row in its own unit",
    }
    print(f"standardised with {unit[by]}; weights {weights}")
    if completed.features is not None:
        _tell_of_features(completed.features)


def _tell_of_features(features: Features) -> None:
    """Prints how many there are, and what they are worth."""
    counts = [of_side.features.shape for of_side in features.given]
    told = [int(of_side.features.any(axis=1).sum()) for of_side in features.given]
    sides = [
        f"{width} of {known} of {size} {side}s"
        for side, known, (size, width) in zip(("row", "column"), told, counts, strict=True)
        if width
    ]
    ending = "" if features.used else ": they are not used"
    print(
        f"features: {', '.join(sides)}; held-out error of draws {features.rmse:.4g} with them, "
        f"{features.rmse_without:.4g} without{ending}"
    )
