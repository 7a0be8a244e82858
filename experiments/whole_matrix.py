"""Two baselines on one whole matrix, beside what their papers report.

Claim: our ``eml`` and ``autorec_item``, which the comparison runs on small matrices, are the
methods that their papers mean. On the official fold u1 of MovieLens-100K the exchangeable
autoencoder has an RMSE of 0.920 (Hartford et al. 2018, with 220 channels, rating classes and
dropout); item AutoRec reports 0.831 on random 90/10 splits of MovieLens-1M (Sedhain et al. 2015),
another and an easier set. ``experiments/RESULTS.md`` has ours.

    python -m experiments.whole_matrix --method=eml --dataset=ml100k --fold=u1 --preset=best \\
        --data_dir=DIR --workdir=runs/eml-u1
    python -m experiments.whole_matrix --method=autorec_item --dataset=ml1m --preset=best \\
        --data_dir=DIR --workdir=runs/autorec-ml1m

Other data sets than MovieLens-100K are split 90/10 at random. Matrix factorization has a binary of
its own: ``experiments.factorize --split=official --fold=u1``. A twentieth of the training cells is
held out for early stopping. ``eml`` learns by predicting a random part of the training cells from
the rest (self-supervision, as in the paper's second model).
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

from experiments import common, shared_flags, splits
from metamf_jax.baselines import autorec_item
from metamf_jax.baselines.dense import to_dense
from metamf_jax.baselines.eml import ExchangeableNetwork
from metamf_jax.data import sources
from metamf_jax.meta_learning.episodes import fit_standardization, standardize
from metamf_jax.runs.run_log import RunLog
from metamf_jax.types import Entries, PaddedMatrices

_DATASET = shared_flags.dataset()
_FOLD = shared_flags.fold()
_METHOD = flags.DEFINE_enum("method", "eml", ["eml", "autorec_item"], "The method.")


@dataclasses.dataclass(frozen=True)
class Config:
    """One run.

    Attributes:
      method: ``eml`` or ``autorec_item``.
      dataset: a name of `metamf_jax.data.sources`, or a path.
      fold: the official one of MovieLens-100K; of other data sets a random tenth is test.
      seed: of the held-out cells, the initial parameters and the masks.
      hidden: channels of eml's layers, or hidden units of the autoencoder.
      layers: of eml.
      steps: of Adam, each on the whole matrix.
      learning_rate: Adam's, falling to a hundredth along a cosine.
      decay: weight of the squared parameters, with the sum over cells of the squared errors.
      masked: share of the cells that a step of eml predicts from the others.
      evaluate_every: steps between looks at the held-out cells.
    """

    method: str
    dataset: str
    fold: str
    seed: int
    hidden: int
    layers: int
    steps: int
    learning_rate: float
    decay: float
    masked: float
    evaluate_every: int


_EML = {"layers": 3, "learning_rate": 3e-3, "decay": 0.0, "masked": 0.2, "evaluate_every": 20}
_AUTOREC = {"layers": 1, "learning_rate": 3e-3, "decay": 40.0, "masked": 0.0, "evaluate_every": 20}
_PRESETS = {
    "smoke": {
        "eml": {**_EML, "hidden": 4, "steps": 2, "evaluate_every": 2},
        "autorec_item": {**_AUTOREC, "hidden": 4, "steps": 2, "evaluate_every": 2},
    },
    "tiny": {
        "eml": {**_EML, "hidden": 16, "steps": 100},
        "autorec_item": {**_AUTOREC, "hidden": 50, "steps": 200},
    },
    "paper": {
        "eml": {**_EML, "hidden": 64, "steps": 400},
        "autorec_item": {**_AUTOREC, "hidden": 300, "steps": 400},
    },
}
# Three times as many steps of eml; the decay for MovieLens-1M, with ten times as many ratings.
_PRESETS["best"] = {
    "eml": {**_PRESETS["paper"]["eml"], "steps": 1200, "evaluate_every": 50},
    "autorec_item": {**_PRESETS["paper"]["autorec_item"], "steps": 300, "decay": 150.0},
}


def _eml(config: Config, train: Entries) -> tuple[Any, Callable, Callable]:
    network = ExchangeableNetwork(config.hidden, config.layers)
    index = jnp.zeros((1,), jnp.int32)
    cell = Entries(index, index, jnp.zeros((1,)), (1, 1))
    params = network.init(jax.random.key(config.seed), cell, cell)
    shape = train.shape
    masked = round(config.masked * len(train.rows))

    def take(order):
        return Entries(train.rows[order], train.columns[order], train.values[order], shape)

    def loss(params, key):
        order = jax.random.permutation(key, len(train.rows))
        asked = take(order[:masked])
        predicted = network.apply(params, take(order[masked:]), asked)
        assert isinstance(predicted, jax.Array)
        return jnp.mean((asked.values - predicted) ** 2)

    def predict(params, query):
        return network.apply(params, train, query)

    return params, loss, predict


def _autorec(config: Config, train: Entries) -> tuple[Any, Callable, Callable]:
    values, observed = to_dense(train)
    matrix = PaddedMatrices(values.T, observed.T)
    key = jax.random.key(config.seed)
    params = autorec_item.init(key, train.shape[0], config.hidden)

    def loss(params, key):
        del key
        weights = (params.encode**2).sum() + (params.decode**2).sum()
        return (autorec_item.error(params, matrix) + config.decay * weights) / len(train.rows)

    def predict(params, query):
        return autorec_item.reconstruct(params, matrix.values)[query.columns, query.rows]

    return params, loss, predict


def run(config: Config, workdir: pathlib.Path, data_dir: str | None = None) -> dict[str, Any]:
    """Trains on one part and returns what ``summary.json`` holds.

    Raises:
      FileNotFoundError, ValueError: the data cannot be read; or the workdir holds another run.
    """
    split = splits.Split(
        dataset=config.dataset,
        kind="official" if config.dataset == "ml100k" else "random",
        fold=config.fold,
        seed=config.seed,
    )
    table = sources.load(config.dataset, data_dir, config.seed)
    table, test = splits.split_entries(table, split, data_dir)
    log = RunLog(workdir, "whole_matrix", config)
    scale = fit_standardization(np.asarray(table.entries.values))
    everything, test = (standardize(entries, scale) for entries in (table.entries, test))
    order = np.random.default_rng(config.seed).permutation(len(everything.rows))
    cut = len(order) // 20

    def part(chosen):
        return Entries(
            everything.rows[chosen],
            everything.columns[chosen],
            everything.values[chosen],
            everything.shape,
        )

    held_out, train = part(order[:cut]), part(np.sort(order[cut:]))
    train = jax.tree.map(jnp.asarray, train)
    params, loss, predict = {"eml": _eml, "autorec_item": _autorec}[config.method](config, train)
    rate = optax.cosine_decay_schedule(config.learning_rate, config.steps, alpha=0.01)
    optimizer = optax.adam(rate)
    state = optimizer.init(params)
    root = jax.random.key(config.seed + 1)

    @jax.jit
    def update(params, state, step):
        value, gradient = jax.value_and_grad(loss)(params, jax.random.fold_in(root, step))
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, value

    low, high = float(table.entries.values.min()), float(table.entries.values.max())

    @functools.partial(jax.jit, static_argnums=2)
    def rmse(params, query, clip):
        predicted = scale.mean + scale.deviation * predict(params, query)
        predicted = jnp.clip(predicted, low, high) if clip else predicted
        truth = scale.mean + scale.deviation * query.values
        return jnp.sqrt(jnp.mean((predicted - truth) ** 2))

    log.resume_at(0)
    best = (np.inf, 0, params)
    for step in range(1, config.steps + 1):
        params, state, value = update(params, state, step)
        if step % config.evaluate_every == 0 or step == config.steps:
            error = float(rmse(params, held_out, True))
            log.metrics(step, {"train_loss": float(value), "validation_rmse": error})
            if error < best[0]:
                best = (error, step, params)
    results = {
        "test_rmse": float(rmse(best[2], test, True)),
        "validation_rmse": best[0],
        "best_step": best[1],
    }
    log.print(f"{config.method} on {config.dataset}: test RMSE {results['test_rmse']:.4f}")
    return log.finish(results)


def main() -> None:
    if common.WORKDIR.value is None:
        raise ValueError("--workdir is needed: the folder for the run's files")
    method = _METHOD.value
    sizes = _PRESETS[common.PRESET.value][method]
    config = Config(
        method=method,
        dataset=_DATASET.value,
        fold=_FOLD.value,
        seed=common.SEED.value,
        **sizes,
    )
    run(config, pathlib.Path(common.WORKDIR.value), common.DATA_DIR.value)


if __name__ == "__main__":
    common.run_main(main)
