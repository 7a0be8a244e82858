"""The draws that experiments share."""

import dataclasses

import jax
import numpy as np

from experiments import figures, protocol, train
from metamf_jax.meta_learning import padding
from metamf_jax.meta_learning.episodes import EpisodeConfig
from metamf_jax.meta_learning.meta_loss import ModelConfig
from metamf_jax.meta_learning.training import TrainingConfig
from metamf_jax.runs import run_log
from metamf_jax.types import Entries

CONFIG = protocol.ProtocolConfig(
    dataset="world",
    preset="smoke",
    seed=0,
    model=ModelConfig(),
    episodes=EpisodeConfig(rows=(9, 9), columns=(9, 9), minimum_cells=12),
    training=TrainingConfig(),
    scored_matrices=7,
)


def world(density=0.6):
    rng = np.random.default_rng(0)
    rows, columns = np.nonzero(rng.random((60, 60)) < density)
    values = rng.normal(size=len(rows)).astype(np.float32)
    return Entries(rows.astype(np.int32), columns.astype(np.int32), values, (60, 60))


def cells_of(entries):
    return set(zip(entries.rows.tolist(), entries.columns.tolist(), strict=True))


def test_the_names_in_config_json_stay():
    """A workdir with other names could not be resumed."""
    names = {
        *("dataset", "preset", "seed", "model", "episodes", "training"),
        *("scored_matrices", "training_episodes"),
    }
    assert run_log.plain(CONFIG).keys() == names
    fields = dict(vars(CONFIG))
    trained = train.Config(split_seed=1, **fields)
    assert run_log.plain(trained).keys() == names | {"split_seed"}
    sizes = {"fractions": (), "sides": (), "matrices": (), "steps": ()}
    drawn = figures.Config(transfer_datasets=(), **sizes, **fields)
    assert run_log.plain(drawn).keys() == names | {"transfer_datasets", "methods"} | sizes.keys()


def test_a_split_is_fixed_by_its_seeds():
    first, again = (protocol.draw_split(world(), CONFIG, 3, 5) for _ in range(2))
    other = protocol.draw_split(world(), CONFIG, 3, 6)
    for got, expected in ((again.test, first.test), (other.test, first.test)):
        np.testing.assert_array_equal(got.support.values, expected.support.values)
    drawn = [split.source.draw_batch(2, 4).support.values for split in (first, again, other)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert drawn[0].shape != drawn[2].shape or (drawn[0] != drawn[2]).any()


def test_lengthened_batches_hold_the_same_cells():
    split = protocol.draw_split(world(), CONFIG, 0, 0)
    assert [side.rows.shape for side in split.validation] == [
        side.rows.shape for side in split.test
    ]
    short = split.source.draw_batch(0, 2)
    got = protocol.lengthened(short, (200, 1))
    assert got.support.rows.shape == (2, 200)
    assert got.query.rows.shape == short.query.rows.shape
    for side in ("support", "query"):
        for a, b in zip(
            padding.unstack_entries(getattr(got, side)),
            padding.unstack_entries(getattr(short, side)),
            strict=True,
        ):
            np.testing.assert_array_equal(a.rows, b.rows)
            np.testing.assert_array_equal(a.columns, b.columns)
            np.testing.assert_array_equal(a.values, b.values)


def test_joined_batches_hold_the_cells_of_each():
    """Of other shapes and lengths."""
    parts = []
    for density, episodes in ((0.6, EpisodeConfig((9, 9), (4, 4))), (0.9, EpisodeConfig())):
        config = dataclasses.replace(CONFIG, episodes=episodes)
        parts.append(protocol.draw_split(world(density), config, 0, 0).source.draw_batch(3, 3))
    got = protocol.joined_batch(parts)
    assert parts[0].support.shape != got.support.shape == (30, 30)
    for side in ("support", "query"):
        expected = [x for part in parts for x in padding.unstack_entries(getattr(part, side))]
        found = padding.unstack_entries(getattr(got, side))
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_array_equal(a.rows, b.rows)
            np.testing.assert_array_equal(a.columns, b.columns)
            np.testing.assert_array_equal(a.values, b.values)
    padding_rows = got.support.rows[got.support.columns == 30]
    assert len(padding_rows)
    assert (padding_rows == 30).all()


def test_teaching_has_equal_shares_of_each_data_set():
    alone = [protocol.draw_split(entries, CONFIG, 0, 0) for entries in (world(), world(0.2))]
    teaching = protocol.joined(alone)
    drawn = teaching.source.draw_batch(3, 5)
    shares = [split.source.draw_batch(3, share) for split, share in zip(alone, (3, 2), strict=True)]
    expected = protocol.joined_batch(shares)
    for got, wanted in zip(jax.tree.leaves(drawn), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(got, wanted)
    first = padding.unstack_entries(alone[0].validation.query)
    both = padding.unstack_entries(teaching.validation.query)
    assert len(both) == 2 * CONFIG.scored_matrices
    for got, wanted in zip(both, first, strict=False):
        np.testing.assert_array_equal(got.values, wanted.values)


def test_supports_are_nested_and_the_query_is_fixed():
    test = protocol.draw_split(world(), CONFIG, 0, 0).test
    fractions = (0.05, 0.3, 0.9)
    cuts = protocol.nested_supports(test, fractions)
    observed = [
        len(support.rows) + len(query.rows)
        for support, query in zip(*map(padding.unstack_entries, test), strict=True)
    ]
    supports = [padding.unstack_entries(cut.support) for cut in cuts]
    for matrix, count in enumerate(observed):
        query = padding.unstack_entries(cuts[0].query)[matrix]
        assert len(query.rows) == max(5, round(0.1 * count))
        seen = [cells_of(support[matrix]) for support in supports]
        assert seen[0] < seen[1] < seen[2]
        assert not seen[2] & cells_of(query)
        for fraction, some in zip(fractions[:2], seen, strict=False):
            assert len(some) == max(1, round(fraction * count))
        assert len(seen[2]) == min(round(0.9 * count), count - len(query.rows))
    for cut in cuts:
        np.testing.assert_array_equal(cut.query.values, cuts[0].query.values)
        assert cut.support.rows.shape == cuts[0].support.rows.shape
