"""Cells go missing as often as asked for, and by what the kind says."""

import numpy as np
import pytest

from experiments.missing import KINDS, missing_cells

SHARE = 0.3


@pytest.fixture(scope="module")
def values():
    rng = np.random.default_rng(0)
    # A factor in common, and very different units.
    factor = rng.normal(size=(2000, 1))
    return (factor + rng.normal(size=(2000, 9))) * 10.0 ** np.arange(-4, 5) + 7


def differences(values, missing):
    """Of each column, mean of the missing cells less that of the observed, in deviations."""
    standard = (values - values.mean(axis=0)) / values.std(axis=0)
    return np.array(
        [z[gone].mean() - z[~gone].mean() for z, gone in zip(standard.T, missing.T, strict=True)]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_share_and_seed(values, kind):
    missing = missing_cells(values, kind, SHARE, 3)
    may = missing.any(axis=0)
    assert missing[:, may].mean() == pytest.approx(SHARE, abs=0.01)
    np.testing.assert_array_equal(missing, missing_cells(values, kind, SHARE, 3))
    assert (missing != missing_cells(values, kind, SHARE, 4)).any()
    stay = {"mar": 3, "mar_blocks": 1}.get(kind, 0)
    assert (~may).sum() == stay


def test_at_random(values):
    assert np.abs(differences(values, missing_cells(values, "mcar", SHARE, 0))).max() < 0.2


def test_by_other_columns(values):
    missing = missing_cells(values, "mar", SHARE, 0)
    causes = ~missing.any(axis=0)
    standard = (values - values.mean(axis=0)) / values.std(axis=0)
    for column in np.flatnonzero(~causes):
        gone = missing[:, column].astype(float)
        # What explains a gap are the causes; given them, not the value itself.
        known = np.column_stack([standard[:, causes], np.ones(len(values))])
        slopes, left, *_ = np.linalg.lstsq(known, gone, rcond=None)
        assert 1 - left[0] / ((gone - gone.mean()) ** 2).sum() > 0.02
        rest = gone - known @ slopes
        own = standard[:, column] - known @ np.linalg.lstsq(known, standard[:, column])[0]
        assert abs(np.corrcoef(rest, own)[0, 1]) < 0.08


def test_blocks_go_together(values):
    missing = missing_cells(values, "mar_blocks", SHARE, 0)
    cause = np.flatnonzero(~missing.any(axis=0))[0]
    blocks = {column.tobytes() for column in np.delete(missing, cause, axis=1).T}
    assert len(blocks) == 2
    for column in range(9):
        if column != cause:
            low, high = (
                values[where, cause].mean() for where in (missing[:, column], ~missing[:, column])
            )
            assert abs(low - high) > 0.3 * values[:, cause].std()


def test_by_their_own_values(values):
    high, low, mixed = (
        differences(values, missing_cells(values, f"self_{way}", SHARE, 0))
        for way in ("high", "low", "mixed")
    )
    assert high.min() > 0.8
    assert low.max() < -0.8
    assert np.abs(mixed).min() > 0.8
    assert set(np.sign(mixed)) == {-1, 1}
    missing = missing_cells(values, "tails", SHARE, 0)
    assert np.abs(differences(values, missing)).max() < 0.3
    assert differences(np.abs(values - values.mean(axis=0)), missing).min() > 0.8


@pytest.mark.parametrize("kind", KINDS)
def test_something_stays(kind):
    missing = missing_cells(np.random.default_rng(0).normal(size=(12, 3)), kind, 0.95, 0)
    assert (~missing).any(axis=1).all()
    assert ((~missing).sum(axis=0) >= 5).all()


@pytest.mark.parametrize(
    ("kind", "share", "message"),
    [
        ("mnar", 0.3, "a kind among mcar, mar"),
        ("mar", 1.0, "a share between"),
        ("mar", 0.3, "gaps"),
    ],
)
def test_mistakes(kind, share, message):
    with pytest.raises(ValueError, match=message):
        missing_cells(np.full((20, 4), np.nan), kind, share, 0)


def test_constant_columns():
    assert missing_cells(np.ones((50, 4)), "self_high", 0.3, 0).mean() == pytest.approx(
        0.3, abs=0.02
    )
