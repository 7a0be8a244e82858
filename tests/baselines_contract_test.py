"""What every method of the comparison must do, whatever it is: one set of checks for the table."""

import dataclasses
import functools

import jax
import numpy as np
import optax
import pytest

from experiments import protocol
from metamf_jax import sums
from metamf_jax.baselines import METHODS, make_method
from metamf_jax.baselines.method import episode_loss
from metamf_jax.meta_learning import episodes, padding
from metamf_jax.meta_learning.encoder import EncoderConfig
from metamf_jax.meta_learning.map_estimation import MapConfig
from metamf_jax.meta_learning.meta_loss import ModelConfig
from metamf_jax.meta_learning.training import TrainingConfig
from metamf_jax.types import Entries
from tests.compilation import FAST

SIDE = 10
CONFIG = ModelConfig(EncoderConfig(channels=8, layers=1, rank=3), MapConfig(steps=2))
EPISODES = episodes.EpisodeConfig(rows=(SIDE, SIDE), columns=(SIDE, SIDE), minimum_cells=1)
# Their starts are random for each row and column, or they go through the columns in order.
ORDER_MATTERS = {
    "bayes",
    "bayes_learned",
    "mf",
    "autorec_user",
    "autorec_item",
    "deep_mf",
    "neural_mf",
    "iterative",
}
# Those that are meta-trained here; the variants are the same program with other sizes, and
# compiling their gradients would take a minute, that of `maml` two.
LEARNING = [
    name
    for name in METHODS
    if not (make_method(name).init or make_method(name).parts)
    or make_method(name).learn
    or name in ("metamf", "eml")
]


@functools.cache
def split():
    """Row plus column effects: an easy family of rank 2."""
    rng = np.random.default_rng(0)
    shape = (60, 60)
    rows, columns = (axis.ravel().astype(np.int32) for axis in np.indices(shape))
    values = rng.normal(size=60)[rows] + rng.normal(size=60)[columns]
    seen = rng.random(len(rows)) < 0.8
    entries = Entries(rows[seen], columns[seen], values[seen].astype(np.float32), shape)
    config = protocol.ProtocolConfig(
        dataset="effects",
        preset="smoke",
        seed=0,
        model=CONFIG,
        episodes=EPISODES,
        training=TrainingConfig(),
        scored_matrices=12,
    )
    return protocol.draw_split(entries, config, 0, 0)


def matrices(part):
    """Pairs (support, query) of a batch, every array of the same shape."""
    batch = len(part.support.rows)
    return [jax.tree.map(lambda leaf, b=b: leaf[b], part) for b in range(batch)]


@functools.cache
def untrained(name):
    method = make_method(name, CONFIG)
    if method.parts:
        return {part: untrained(part) for part in method.parts}
    return None if method.init is None else method.init(jax.random.key(3))


@functools.cache
def predictor(name):
    """``(params, support, query, setting) -> [Q]``, compiled once for all checks."""
    method = make_method(name, CONFIG)
    if not method.on_host:
        # The variants' forward passes share most of their compiled operations.
        return method.predict if method.init else jax.jit(method.predict, compiler_options=FAST)

    def predict(params, support, query, setting):
        def inside(part):
            batch = jax.tree.map(lambda leaf: np.asarray(leaf)[None], part)
            return padding.unstack_entries(batch)[0]

        found = np.zeros(len(query.rows), np.float32)
        where = np.asarray(query.rows) < query.shape[0]
        found[where] = method.predict(params, inside(support), inside(query), setting)
        return found

    return predict


@functools.cache
def trained(name):
    """The loop of `training` in small, compiled in a third of the time."""
    learn = make_method(name, CONFIG).learn
    if learn is not None:
        return learn(split().alike.draw_batch(0, 40))
    loss = episode_loss(make_method(name, CONFIG).predict)
    optimizer = optax.adam(1e-2)

    def total(params, batch):
        return jax.vmap(lambda episode: loss(params, episode)[0])(batch).mean()

    @functools.partial(jax.jit, compiler_options=FAST)
    def update(params, state, batch):
        updates, state = optimizer.update(jax.grad(total)(params, batch), state)
        return optax.apply_updates(params, updates), state

    params = untrained(name)
    state = optimizer.init(params)
    for step in range(150):
        batch = protocol.lengthened(split().source.draw_batch(step, 8), (64, 64))
        params, state = update(params, state, batch)
    return params


@pytest.fixture(autouse=True)
def _xla():
    with sums.using_backend("xla"):
        yield


def predictions(name, support, query):
    """Predictions for the query cells that are no padding."""
    setting = make_method(name, CONFIG).grid[0]
    found = predictor(name)(untrained(name), support, query, setting)
    return np.asarray(found)[np.asarray(query.rows) < query.shape[0]]


def error(name, params, setting, part):
    squares = []
    for support, query in matrices(part):
        found = predictor(name)(params, support, query, setting)
        inside = query.rows < query.shape[0]
        squares.append(((np.asarray(found) - query.values)[inside] ** 2).mean())
    return float(np.mean(squares))


@pytest.mark.parametrize("name", [name for name in LEARNING if name != "mean"])
def test_learns_an_easy_family(name):
    method, params = make_method(name, CONFIG), None
    of_mean = error("mean", None, {}, split().test)
    if method.init is not None:
        params = trained(name)
    if method.init is not None and method.learn is None:
        assert error(name, untrained(name), method.grid[0], split().test) > 0.9 * of_mean
    # Not the validation matrices: their part is smaller than a matrix of the test.
    test = split().test
    lengths = test.support.rows.shape[1], test.query.rows.shape[1]
    few = protocol.lengthened(split().source.draw_batch(0, 6), lengths)
    # Some settings: those of a sampler take seconds each.
    some = method.grid[:: -(-len(method.grid) // 3)]
    setting = min(some, key=lambda setting: error(name, params, setting, few))
    assert error(name, params, setting, test) < 0.8 * of_mean


@pytest.mark.parametrize("name", METHODS)
def test_padding_order_and_repetition(name):
    support, query = matrices(split().test)[0]
    found = predictions(name, support, query)
    assert np.isfinite(found).all()
    assert found.std() > 0 or name == "mean"
    np.testing.assert_array_equal(predictions(name, support, query), found)

    poisoned = dataclasses.replace(
        support, values=np.where(support.rows < SIDE, support.values, np.nan)
    )
    assert np.isnan(poisoned.values).any()
    np.testing.assert_array_equal(predictions(name, poisoned, query), found)

    if name not in ORDER_MATTERS:
        rng = np.random.default_rng(1)
        rows, columns = (np.append(rng.permutation(SIDE), SIDE).astype(np.int32) for _ in range(2))
        support, query = (
            dataclasses.replace(part, rows=rows[part.rows], columns=columns[part.columns])
            for part in (support, query)
        )
        np.testing.assert_allclose(predictions(name, support, query), found, atol=2e-5)


@pytest.mark.parametrize("name", [name for name in METHODS if make_method(name).init])
def test_the_start_depends_on_the_seed_alone(name):
    init = make_method(name, CONFIG).init
    again, other = init(jax.random.key(3)), init(jax.random.key(4))
    jax.tree.map(np.testing.assert_array_equal, untrained(name), again)
    differ = jax.tree.map(lambda a, b: bool((a != b).any()), again, other)
    assert any(jax.tree.leaves(differ))
