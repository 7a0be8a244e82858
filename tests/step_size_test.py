"""Step sizes against hand traces."""

import math

import numpy as np
import pytest
from absl.testing import parameterized

from metamf_jax.factorization import step_size
from metamf_jax.types import Entries


def _trace(rule, objectives):
    values, previous = [rule.first()], objectives[0]
    for epoch, objective in enumerate(objectives[1:], 1):
        values.append(rule.after(epoch, values[-1], previous, objective))
        previous = objective if math.isfinite(objective) else previous
    return values


class StepSizeTest(parameterized.TestCase):
    def test_bold_driver_by_hand(self):
        rule = step_size.parse("bold_driver:0.1")
        # Falls, falls, stays, rises, overflows, is not a number, falls below the last finite one.
        trace = _trace(rule, [10.0, 8.0, 7.0, 7.0, 9.0, math.inf, math.nan, 8.5])
        expected = [0.1, 0.105, 0.11025, 0.055125, 0.0275625, 0.01378125, 0.006890625]
        np.testing.assert_allclose(trace, [*expected, 0.006890625 * 1.05], rtol=1e-12)

    def test_decay_counts_epochs_from_one(self):
        trace = _trace(step_size.parse("decay:0.5:1"), [1.0] * 4)
        np.testing.assert_allclose(trace, [0.5, 0.25, 0.5 / 3, 0.125])

    @parameterized.parameters("constant:0.3", "adagrad:0.3")
    def test_constant(self, text):
        assert _trace(step_size.parse(text), [1.0, 2.0, math.nan]) == [0.3, 0.3, 0.3]

    def test_only_adagrad_is_per_row(self):
        assert [step_size.parse(name).per_row for name in step_size.STEP_SIZES] == [0, 0, 0, 1]

    @parameterized.parameters("fast:1", "constant:x", "constant:1:2", "constant:0", "decay:1:2:3")
    def test_mistakes(self, text):
        with pytest.raises(ValueError, match="expected a"):
            step_size.parse(text)

    def test_sample_is_a_sub_matrix(self):
        rng = np.random.default_rng(0)
        cells = rng.choice(40 * 30, 600, replace=False)
        entries = Entries(*map(np.int32, np.divmod(cells, 30)), np.float32(cells), (40, 30))
        sample = step_size.sample_entries(entries, rng, at_least=100)
        assert 100 <= len(sample.values) <= 130
        original = Entries(*np.divmod(np.int32(sample.values), 30), sample.values, (40, 30))
        for side, ids, shape in (
            (original.rows, sample.rows, sample.shape[0]),
            (original.columns, sample.columns, sample.shape[1]),
        ):
            # Renumbered one to one, in order.
            pairs = np.unique(np.stack([side, ids], 1), axis=0)
            assert len(np.unique(pairs[:, 0])) == len(np.unique(pairs[:, 1])) == len(pairs)
            assert pairs[:, 1].max() < shape
        # All entries of the rows and columns kept are there.
        kept = np.isin(entries.rows, original.rows) & np.isin(entries.columns, original.columns)
        assert kept.sum() == len(sample.values)
        assert step_size.sample_entries(entries, rng, at_least=600) is entries

    def test_sample_is_no_larger_than_it_must_be(self):
        """With one entry in a row and in a column, none comes with another."""
        rng = np.random.default_rng(0)
        columns = rng.permutation(5003)[:5001].astype(np.int32)
        entries = Entries(np.arange(5001, dtype=np.int32), columns, np.zeros(5001), (5001, 5003))
        for wanted in (1, 40, 777, 2000, 5000):
            sample = step_size.sample_entries(entries, rng, at_least=wanted)
            assert len(sample.values) == wanted

    def test_choice_takes_the_lowest_finite_objective(self):
        objectives = {0.5: math.nan, 0.25: 3.0, 0.125: 2.0, 0.0625: 2.5}
        assert step_size.choose(objectives.__getitem__, list(objectives)) == 0.125
        with pytest.raises(ValueError, match=r"0\.5, 0\.25"):
            step_size.choose(lambda value: math.inf, [0.5, 0.25])
