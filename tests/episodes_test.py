"""Splits into parts, and episodes drawn from them. NumPy only: nothing here is compiled."""

import dataclasses
import functools

import numpy as np
import pytest
from absl.testing import parameterized

from metamf_jax.meta_learning import episodes, padding
from metamf_jax.meta_learning.episodes import EpisodeConfig, EpisodeSource
from metamf_jax.types import Entries


@functools.cache
def matrix(num_rows=60, num_columns=50, density=0.4, seed=0):
    """Entries whose values are all different, so that a value tells its cell."""
    rng = np.random.default_rng(seed)
    rows, columns = np.nonzero(rng.random((num_rows, num_columns)) < density)
    order = rng.permutation(len(rows))
    rows, columns = rows[order].astype(np.int32), columns[order].astype(np.int32)
    values = (rows * num_columns + columns).astype(np.float32)
    return Entries(rows, columns, values, (num_rows, num_columns))


def cells_of(entries):
    return set(zip(entries.rows.tolist(), entries.columns.tolist(), strict=True))


def source_cells(values, num_columns=50):
    """The cells of `matrix` that hold these values."""
    return np.divmod(values.astype(np.int64), num_columns)


def whole(episode, b):
    """All cells of the b-th matrix of a batch: (row, column, value, is support)."""
    parts = []
    for part, is_support in ((episode.support, True), (episode.query, False)):
        inside = part.rows[b] < part.shape[0]
        # A padding cell is padding on both axes.
        np.testing.assert_array_equal(inside, part.columns[b] < part.shape[1])
        count = inside.sum()
        parts.append(
            (
                part.rows[b][inside],
                part.columns[b][inside],
                part.values[b][inside],
                np.full(count, is_support),
            )
        )
    return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))


def assert_same(a, b):
    for x, y in zip(a, b, strict=True):
        assert x.shape == y.shape
        np.testing.assert_array_equal(x.rows, y.rows)
        np.testing.assert_array_equal(x.columns, y.columns)
        np.testing.assert_array_equal(x.values, y.values)


class PartsTest(parameterized.TestCase):
    def split(self, seed=0):
        # Values name rows and columns of the whole matrix; standardisation is undone.
        parts = episodes.split_parts(matrix(), seed)
        mean, deviation = parts.standardization
        found = []
        for part in parts[:3]:
            values = np.rint(part.values.astype(np.float64) * deviation + mean)
            found.append((part, *source_cells(values)))
        return parts, found

    def test_parts_share_neither_rows_nor_columns(self):
        _, found = self.split()
        for (_, rows_a, columns_a), (_, rows_b, columns_b) in (
            (found[0], found[1]),
            (found[0], found[2]),
            (found[1], found[2]),
        ):
            assert set(rows_a.tolist()).isdisjoint(rows_b.tolist())
            assert set(columns_a.tolist()).isdisjoint(columns_b.tolist())

    def test_sizes_are_70_10_20(self):
        parts, _ = self.split()
        assert [part.shape for part in parts[:3]] == [(42, 35), (6, 5), (12, 10)]

    def test_parts_hold_every_cell_of_their_rows_and_columns(self):
        _, found = self.split()
        there = cells_of(matrix())
        for part, rows, columns in found:
            # Each new number stands for one old one, and the part is the whole of its block.
            for new, old, size in (
                (part.rows, rows, part.shape[0]),
                (part.columns, columns, part.shape[1]),
            ):
                names = dict(zip(new.tolist(), old.tolist(), strict=True))
                assert [names[n] for n in new.tolist()] == old.tolist()
                assert len(set(names.values())) == len(names)
                assert max(names) < size
            block = {(n, m) for n in set(rows.tolist()) for m in set(columns.tolist())}
            got = list(zip(rows.tolist(), columns.tolist(), strict=True))
            assert set(got) == block & there
            assert len(got) == len(block & there)

    def test_meta_train_part_is_standardised(self):
        parts, _ = self.split()
        values = parts.train.values.astype(np.float64)
        assert parts.train.values.dtype == np.float32
        assert abs(values.mean()) < 1e-5
        assert abs(values.std() - 1) < 1e-5

    def test_the_seed_decides(self):
        (a, _), (b, _), (c, _) = self.split(), self.split(), self.split(1)
        assert_same(a[:3], b[:3])
        assert cells_of(a.train) != cells_of(c.train)

    def test_an_empty_part_is_named(self):
        small = Entries(
            np.arange(3, dtype=np.int32),
            np.arange(3, dtype=np.int32),
            np.arange(3, dtype=np.float32),
            (3, 3),
        )
        with pytest.raises(ValueError, match=r"part .* has no entry.*too\s+small or too"):
            episodes.split_parts(small, 0)

    def test_constant_values_are_refused(self):
        constant = dataclasses.replace(matrix(), values=np.full_like(matrix().values, 3.0))
        with pytest.raises(ValueError, match=r"values equal 3\.0"):
            episodes.split_parts(constant, 0)

    def test_standardisation_of_a_sample(self):
        mean, deviation = episodes.fit_standardization(np.float32([1, 2, 6]))
        np.testing.assert_allclose(mean, 3)
        np.testing.assert_allclose(deviation, np.sqrt(14 / 3))


MIXED = EpisodeConfig(rows=(5, 25), columns=(3, 20), support_fraction=(0.2, 0.8))


class EpisodeSourceTest(parameterized.TestCase):
    @parameterized.named_parameters(
        ("fixed", EpisodeConfig(rows=(12, 12), columns=(10, 10))),
        ("mixed", MIXED),
        ("most_of_the_matrix", EpisodeConfig(rows=(59, 60), columns=(50, 50))),
        ("more_than_there_are", EpisodeConfig(rows=(70, 90), columns=(10, 90))),
        ("the_fuller", EpisodeConfig((5, 25), (3, 20), (0.2, 0.8), count_power=(0.0, 3.0))),
    )
    def test_a_draw_is_a_cut_of_the_matrix(self, config):
        episode = EpisodeSource(matrix(), config, 0).draw_batch(3, 6)
        there = cells_of(matrix())
        for b in range(6):
            rows, columns, values, _ = whole(episode, b)
            old_rows, old_columns = source_cells(values)
            cut = set(zip(rows.tolist(), columns.tolist(), strict=True))
            # Support and query share no cell.
            assert len(rows) == len(cut)
            names = {}
            for axis, new, old in ((0, rows, old_rows), (1, columns, old_columns)):
                names[axis] = dict(zip(new.tolist(), old.tolist(), strict=True))
                # Values are those of the source: one place of the cut is one row of the matrix.
                assert [names[axis][n] for n in new.tolist()] == old.tolist()
                assert len(set(names[axis].values())) == len(names[axis])
            # Together they are all observed cells between the rows and columns.
            expected = {
                (n, m)
                for n, old_n in names[0].items()
                for m, old_m in names[1].items()
                if (old_n, old_m) in there
            }
            assert cut == expected
            most = [min(config.rows[1], 60), min(config.columns[1], 50)]
            assert rows.max() < most[0]
            assert columns.max() < most[1]

    def test_layout_of_a_batch(self):
        episode = EpisodeSource(matrix(), MIXED, 0).draw_batch(0, 5)
        for part in episode:
            # Sides are rounded up to tens, lists to buckets, so that few shapes are compiled.
            assert part.shape == (30, 20)
            assert part.rows.shape == (5, padding.bucket_size(part.rows.shape[1]))
            assert part.rows.dtype == np.int32
            assert part.columns.dtype == np.int32
            assert part.values.dtype == np.float32
            np.testing.assert_array_equal(part.values[part.rows == 30], 0)
            np.testing.assert_array_equal(part.columns[part.rows == 30], 20)

    def test_sides_are_mixed(self):
        episode = EpisodeSource(matrix(density=0.9), MIXED, 0).draw_batch(0, 300)
        sides = np.array([[x.max() + 1 for x in whole(episode, b)[:2]] for b in range(300)])
        for axis, (low, high) in enumerate((MIXED.rows, MIXED.columns)):
            assert low - 2 <= sides[:, axis].min() <= low
            assert sides[:, axis].max() == high
            # A uniform draw of that many has this mean to four standard errors.
            error = 4 * (high - low) / np.sqrt(12 * 300)
            assert abs(sides[:, axis].mean() - (low + high) / 2) < error + 0.1

    def test_support_fraction(self):
        config = EpisodeConfig(rows=(20, 20), columns=(20, 20), support_fraction=(0.25, 0.25))
        episode = EpisodeSource(matrix(), config, 0).draw_batch(0, 20)
        for b in range(20):
            is_support = whole(episode, b)[3]
            assert is_support.sum() == len(is_support) // 4

    def test_half_of_an_even_count_is_half(self):
        full = matrix(10, 10, 1.1)
        config = EpisodeConfig(rows=(4, 4), columns=(5, 5))
        episode = EpisodeSource(full, config, 0).draw_batch(0, 8)
        np.testing.assert_array_equal((episode.support.rows < 10).sum(axis=1), 10)

    def test_each_cell_is_as_often_support_as_query(self):
        full = matrix(10, 10, 1.1)
        config = EpisodeConfig(rows=(10, 10), columns=(10, 10))
        episode = EpisodeSource(full, config, 0).draw_batch(0, 400)
        cells = source_cells(episode.support.values[episode.support.rows < 10], 10)
        times = np.zeros((10, 10))
        np.add.at(times, cells, 1)
        # Binomial(400, 1/2): deviation 10; 100 cells stay within 4.5 of them.
        assert np.abs(times - 200).max() < 45

    def test_rows_and_columns_are_drawn_uniformly(self):
        full = matrix(40, 30, 1.1)
        source = EpisodeSource(full, EpisodeConfig(rows=(5, 5), columns=(5, 5)), 0)
        times = [np.zeros(40), np.zeros(30)]
        pairs = np.zeros((40, 30))
        for step in range(20):
            episode = source.draw_batch(step, 200)
            for b in range(200):
                rows, columns = source_cells(whole(episode, b)[2], 30)
                rows, columns = np.unique(rows), np.unique(columns)
                times[0][rows] += 1
                times[1][columns] += 1
                pairs[np.ix_(rows, columns)] += 1
        for count, probability in zip(times, (5 / 40, 5 / 30), strict=True):
            deviation = np.sqrt(4000 * probability * (1 - probability))
            assert np.abs(count - 4000 * probability).max() < 4.5 * deviation
        probability = 25 / 1200
        deviation = np.sqrt(4000 * probability)
        assert np.abs(pairs - 4000 * probability).max() < 4.5 * deviation

    def test_rows_and_columns_with_more_entries_are_drawn_more_often(self):
        # Row n has 4 (n + 1) entries, so weights of 4 n + 5 or, by the power 0, equal ones.
        rows, columns = np.nonzero(np.arange(40)[None] < 4 * np.arange(1, 11)[:, None])
        values = (rows * 40 + columns).astype(np.float32)
        stairs = Entries(rows.astype(np.int32), columns.astype(np.int32), values, (10, 40))
        config = EpisodeConfig(rows=(1, 1), columns=(40, 40), minimum_cells=1)
        for powers in ((0.0, 0.0), (1.0, 1.0), (0.0, 2.0)):
            source = EpisodeSource(stairs, dataclasses.replace(config, count_power=powers), 0)
            episode = source.draw_batch(0, 4000)
            drawn = np.bincount(episode.support.values.max(axis=1).astype(int) // 40, minlength=10)
            weights = (4.0 * np.arange(10) + 5)[:, None] ** np.linspace(*powers, 200)
            chances = (weights / weights.sum(axis=0)).mean(axis=1)
            deviation = np.sqrt(4000 * chances * (1 - chances))
            assert (np.abs(drawn - 4000 * chances) < 4.5 * deviation).all()

    @parameterized.parameters((2000, 3), (50, 40), (7, 7), (5, 1))
    def test_distinct(self, population, size):
        # The first draws by rejection, the others by partial sorting.
        picked = episodes._distinct(np.random.default_rng(0), population, size, 500)
        assert picked.shape == (500, size)
        assert (np.diff(np.sort(picked, axis=1), axis=1) > 0).all()
        assert 0 <= picked.min() <= population - 1
        assert picked.max() < population
        # Every place of the list is uniform, so the order is random too.
        error = 5 * population / np.sqrt(12 * 500)
        np.testing.assert_allclose(picked.mean(axis=0), (population - 1) / 2, atol=error)

    def test_same_seed_and_step_same_batch(self):
        def draw(seed, step):
            return EpisodeSource(matrix(), MIXED, seed).draw_batch(step, 4)

        source = EpisodeSource(matrix(), MIXED, 7)
        source.draw_batch(1, 4)
        # Whatever was drawn before: a resumed run draws the same.
        assert_same(source.draw_batch(2, 4), draw(7, 2))
        for other in (draw(7, 3), draw(8, 2)):
            assert not np.array_equal(draw(7, 2).support.values, other.support.values)

    def test_binary_search_equals_the_table(self):
        expected = EpisodeSource(matrix(), MIXED, 0)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(episodes, "_MAX_TABLE_CELLS", 0)
            searched = EpisodeSource(matrix(), MIXED, 0)
        assert searched._table is None
        for step in range(5):
            assert_same(searched.draw_batch(step, 8), expected.draw_batch(step, 8))

    def test_poor_draws_are_made_again(self):
        # One tenth of cuts of a matrix this sparse has so many cells.
        sparse = matrix(density=0.03, seed=1)
        config = EpisodeConfig(rows=(15, 15), columns=(15, 15), minimum_cells=10)
        once = EpisodeSource(sparse, dataclasses.replace(config, attempts=1), 0)

        def counts(episode):
            return np.array([len(whole(episode, b)[0]) for b in range(50)])

        assert (counts(once.draw_batch(0, 50)) >= 10).mean() < 0.5
        assert counts(EpisodeSource(sparse, config, 0).draw_batch(0, 50)).min() >= 10

    def test_the_fullest_is_taken_when_attempts_run_out(self):
        sparse = matrix(density=0.03, seed=1)
        config = EpisodeConfig(rows=(15, 15), columns=(15, 15), minimum_cells=1000, attempts=30)
        source = EpisodeSource(sparse, config, 0)
        seen = []

        def find(rows, columns):
            found = EpisodeSource._find(source, rows, columns)
            seen.append((found >= 0).sum(axis=(1, 2)))
            return found

        source._find = find
        episode = source.draw_batch(0, 5)
        assert len(seen) == 30
        got = [len(whole(episode, b)[0]) for b in range(5)]
        np.testing.assert_array_equal(got, np.max(seen, axis=0))

    def test_a_lone_cell_is_support(self):
        lone = Entries(np.int32([2]), np.int32([1]), np.float32([5]), (4, 4))
        episode = EpisodeSource(lone, EpisodeConfig(rows=(4, 4), columns=(4, 4)), 0).draw_batch(
            0, 2
        )
        assert (episode.support.rows < 10).sum() == 2
        assert (episode.query.rows < 10).sum() == 0

    def test_no_cell_is_refused(self):
        none = Entries(
            np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.float32), (4, 4)
        )
        with pytest.raises(ValueError, match="no observed entry"):
            EpisodeSource(none, EpisodeConfig(), 0)

    @parameterized.parameters(
        ({"rows": (5, 4)}, "rows"),
        ({"columns": (0, 4)}, "columns"),
        ({"support_fraction": (0.0, 0.5)}, "support_fraction"),
        ({"support_fraction": (0.6, 0.5)}, "support_fraction"),
        ({"support_fraction": (0.5, 1.0)}, "support_fraction"),
        ({"count_power": (-1.0, 1.0)}, "count_power"),
        ({"count_power": (2.0, 1.0)}, "count_power"),
        ({"attempts": 0}, "attempts"),
    )
    def test_bad_configurations_are_refused(self, bad, name):
        with pytest.raises(ValueError, match=name):
            EpisodeConfig(**bad)
