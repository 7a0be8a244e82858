"""Further rows, columns and cells of a completed matrix, which become part of it.

Where draws answer too, their chains go on from their last states over the grown matrix, in the unit
that was fitted, with the share and the error bars that the held-out check gave them; and candidates
are found anew, in closed form. Otherwise, and where the matrix grew by more than half, all is.
"""

import dataclasses

import numpy as np

from metamf_jax.imputation import feature_tables, pipeline, sampled
from metamf_jax.imputation.candidates import CANDIDATES
from metamf_jax.imputation.completion import Completion
from metamf_jax.imputation.feature_tables import SideTable
from metamf_jax.imputation.places import require_valid
from metamf_jax.imputation.prior import load_prior
from metamf_jax.posterior.given import GivenFeatures
from metamf_jax.types import Entries

# As many cells as before, times this, are taken by chains that go on.
_MOST_GROWTH = 1.5


def update(
    completed: Completion,
    entries: Entries,
    *,
    standardize: str | None = None,
    missing: str = "at_random",
    seed: int = 0,
    tables: tuple[SideTable | None, SideTable | None] = (None, None),
) -> Completion:
    """The completed matrix with further cells; rows and columns keep their numbers.

    Args:
      completed: the matrix [N, M].
      entries: cells, new or given anew, in a shape (N', M') no smaller; perhaps none.
      standardize, missing, seed: as for `pipeline.complete`, where the matrix is completed anew.
      tables: features of the further rows and of the further columns, if those before had some.

    Raises:
      ValueError: a smaller shape, or cells that `pipeline.complete` would refuse.
    """
    merged = merge(completed.entries, entries)
    given = _given(completed, merged.shape, tables)
    few = len(merged.rows) <= _MOST_GROWTH * len(completed.entries.rows)
    if completed.sampled is None or not few:
        # It may no longer be small, or like ratings.
        rated = pipeline.is_packaged(completed.prior, "ratings")
        return pipeline.complete(
            load_prior("general") if rated else completed.prior,
            merged,
            standardize=standardize,
            missing=missing,
            seed=seed,
            given=given,
        )
    again = pipeline.complete(
        completed.prior, merged, standardize="matrix", allowed=tuple(CANDIDATES), seed=seed
    )
    features = completed.features
    if features is not None and given is not None:
        features = features._replace(given=given)
    used = given if features is not None and features.used else None
    drawn = sampled.go_on(completed.sampled, merged, given=used)
    return dataclasses.replace(
        again,
        sampled=drawn,
        draws_share=completed.draws_share,
        fitted_rows=drawn.fitted_rows,
        features=features,
    )


def _given(
    completed: Completion,
    shape: tuple[int, int],
    tables: tuple[SideTable | None, SideTable | None],
) -> tuple[GivenFeatures, GivenFeatures] | None:
    """Features of all rows and columns of the grown matrix."""
    for side, table in enumerate(tables):
        feature_tables.of_further(completed.features, side, table)
    if completed.features is None:
        return None
    rows, columns = map(feature_tables.grown, completed.features.given, shape, tables)
    return rows, columns


def merge(entries: Entries, further: Entries) -> Entries:
    """The cells of both, in the shape of the latter; what it gives anew replaces what was there.

    Raises:
      ValueError: a smaller shape, or `further` has a cell twice, outside or not finite.
    """
    if min(np.subtract(further.shape, entries.shape)) < 0:
        raise ValueError(
            f"expected further cells of a matrix of {entries.shape} at least, got the shape "
            f"{further.shape}"
        )
    if len(further.rows):
        require_valid(further)
    rows, columns, values = (
        np.concatenate([np.asarray(getattr(each, name)) for each in (entries, further)])
        for name in ("rows", "columns", "values")
    )
    cells = rows.astype(np.int64) * further.shape[1] + columns
    _, last = np.unique(cells[::-1], return_index=True)
    kept = np.sort(len(cells) - 1 - last)
    return Entries(rows[kept], columns[kept], values[kept], further.shape)
