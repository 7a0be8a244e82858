"""The share of draws in the answers for small rating matrices."""

import numpy as np

from experiments import learn_share


def test_the_share_grows_where_draws_are_better():
    """Independent errors of 1 and 1 call for a half, of 1 and 3 for three quarters."""
    cells = np.repeat([500.0, 500 * np.e], 2)
    errors = np.array([cells, np.ones(4), np.zeros(4), np.repeat([1.0, 3.0], 2)]).T
    found = learn_share.best_share(errors)
    np.testing.assert_allclose(found, [0, np.log(3)], atol=1e-3)


def test_the_binary_completes_synthetic_matrices(tmp_path):
    config = learn_share.PRESETS["smoke"]
    results = learn_share.run(config, tmp_path)["results"]
    assert results["matrices"] <= config.count
    assert np.isfinite(results["share_by_cells"]).all()
