"""Rows dealt out to devices keep their entries, each once, and every device about as many."""

import numpy as np
import pytest

from metamf_jax.factorization import dealt_rows
from metamf_jax.types import Entries

N, M = 12, 9


def _matrix():
    """Row 2 and column 4 have no entries, row 3 has nearly all."""
    rng = np.random.default_rng(0)
    observed = rng.random((N, M)) < 0.4
    observed[3] = True
    observed[2], observed[:, 4] = False, False
    rows, columns = np.nonzero(observed)
    values = rng.normal(size=len(rows))
    return Entries(rows.astype("i"), columns.astype("i"), values.astype("f"), (N, M))


@pytest.mark.parametrize("num_devices", [1, 3])
def test_runs_hold_every_entry_once(num_devices):
    entries = _matrix()
    listed = entries.rows, entries.columns, entries.values
    dealt = dealt_rows.deal_rows(*listed, entries.shape, num_devices)
    runs = dealt_rows.cut_into_runs(dealt, M, 1000)
    found = []
    for d, g, c in np.argwhere(runs.owners < runs.places.shape[2]):
        n = dealt.rows[d, runs.places[d, g, runs.owners[d, g, c]]]
        inside = runs.columns[d, g, c] < M
        found += [
            (n, m, x)
            for m, x in zip(runs.columns[d, g, c], runs.values[d, g, c], strict=True)
            if m < M
        ]
        assert inside.any()
    assert sorted(found) == sorted(zip(*listed, strict=True))
    sizes = dealt.starts[:, -1]
    assert sizes.sum() == len(entries.values)
    assert sizes.max() - sizes.min() <= M
