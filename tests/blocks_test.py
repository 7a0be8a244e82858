"""Blocks hold every entry once, where it belongs."""

import itertools

import numpy as np
import pytest
from absl.testing import parameterized

from metamf_jax.factorization import blocks
from metamf_jax.types import Entries

N, M, E = 23, 17, 150


def _matrix(seed=0):
    rng = np.random.default_rng(seed)
    cells = rng.choice(N * M, E, replace=False)
    return Entries(*map(np.int32, np.divmod(cells, M)), rng.normal(size=E).astype("f"), (N, M))


def _rng(seed):
    return lambda i, j: np.random.default_rng((seed, i, j))


def _by_sub_block(cut):
    """{(i, j, q): [(row, column, value), ..]} in the matrix's own numbers."""
    place = [
        {(b, p): n for n, (b, p) in enumerate(zip(side.block, side.place, strict=True))}
        for side in (cut.u, cut.v)
    ]
    found = {}
    for i, j, q in np.ndindex(*cut.offsets.shape[:2], cut.offsets.shape[2] - 1):
        span = slice(cut.offsets[i, j, q], cut.offsets[i, j, q + 1])
        found[i, j, q] = [
            (place[0][i, n], place[1][j, m], x)
            for n, m, x in zip(*(x[i, span] for x in cut.entries), strict=True)
        ]
    return found


class BlocksTest(parameterized.TestCase):
    @parameterized.parameters((1, (1, 1)), (1, (3, 2)), (3, (1, 2)), (8, (1, 1)), (17, (1, 1)))
    def test_every_entry_once(self, num_blocks, cuts):
        entries = _matrix()
        cut = blocks.make_blocks(entries, num_blocks, cuts, np.random.default_rng(1), _rng(1))
        expected = sorted(zip(entries.rows, entries.columns, entries.values, strict=True))
        for version in (cut, cut.shuffled(_rng(2))):
            found = _by_sub_block(version)
            assert sorted(itertools.chain(*found.values())) == expected
            sizes = np.bincount(version.u.block)
            assert sizes.max() - sizes.min() <= 1
        assert cut.offsets.shape == (num_blocks, num_blocks, cuts[0] * cuts[1] + 1)

    def test_shuffle_stays_within_sub_blocks(self):
        cut = blocks.make_blocks(_matrix(), 2, (2, 2), np.random.default_rng(1), _rng(1))
        before, after = _by_sub_block(cut), _by_sub_block(cut.shuffled(_rng(2)))
        assert before != after
        assert {k: sorted(v) for k, v in before.items()} == {k: sorted(v) for k, v in after.items()}

    def test_sub_blocks_cut_both_sides(self):
        cut = blocks.make_blocks(_matrix(), 2, (3, 2), np.random.default_rng(1), _rng(1))
        for inside in _by_sub_block(cut).values():
            assert len({cut.u.place[n] * 3 // cut.u.shape[1] for n, _, _ in inside}) <= 1
            assert len({cut.v.place[m] * 2 // cut.v.shape[1] for _, m, _ in inside}) <= 1

    def test_split_and_join(self):
        side = blocks.make_blocks(_matrix(), 3, (1, 1), np.random.default_rng(1), _rng(1)).u
        x = np.random.default_rng(0).normal(size=(N, 2))
        split = side.split(x)
        assert split.shape == (3, 8, 2)
        np.testing.assert_array_equal(side.join(split), x)
        np.testing.assert_allclose(split.sum(), x.sum())

    def test_cuts_fit_the_cache_but_keep_entries_together(self):
        # 1,000,209 ratings of 6040 x 3706, rank 32: 1.25 MB of factors.
        assert blocks.cuts_for_cache((6040, 3706), 1, 32, 1_000_209) == (7, 4)
        # Of a block that the caches hold, eight parts all the same.
        assert blocks.cuts_for_cache((6040, 3706), 4, 32, 1_000_209) == (4, 2)
        assert blocks.cuts_for_cache((6040, 3706), 64, 32, 1_000_209) == (1, 1)
        assert blocks.cuts_for_cache((10**6, 10**6), 1, 32, 6400) == (10, 10)
        # 100 columns leave room for more rows.
        assert blocks.cuts_for_cache((19_000, 100), 1, 32, 10**6) == (11, 1)

    def test_cuts_for_strata(self):
        assert blocks.cuts_for_strata((10**6, 10**5), 8, 10**8) == (220, 220)
        assert blocks.cuts_for_strata((10**7, 10**7), 1, 10**9) == (1024, 1024)
        assert blocks.cuts_for_strata((10**6, 40), 8, 10**8) == (5, 5)
        assert blocks.cuts_for_strata((40, 40), 2, 10) == (1, 1)

    @parameterized.parameters((1, 1, 5), (47, 3, 4), (1000, 2, 16), (1000, 1, 7))
    def test_rows_dealt_out_evenly(self, size, num_blocks, parts):
        rng = np.random.default_rng(0)
        counts = (100 / rng.uniform(0.01, 1, size)).astype(int)
        ranks = blocks.even_ranks(counts, num_blocks, parts, rng)
        assert sorted(ranks) == list(range(size))
        side = blocks.side_of_ranks(ranks, num_blocks)
        part = side.place * parts // side.shape[1]
        sums = np.bincount(side.block * parts + part, counts)
        assert np.ptp(sums) <= counts.max()

    def test_more_blocks_than_columns(self):
        with pytest.raises(ValueError, match=r"from 1 to 17, .* \(23, 17\), got 18"):
            blocks.make_blocks(_matrix(), 18, (1, 1), np.random.default_rng(1), _rng(1))
