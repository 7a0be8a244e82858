"""The posterior by sampling: its test error, error bars and time beside MyFM and the imputer.

Claim: one matrix's posterior, with features of which entries are observed, is more accurate than
the imputer's weighted candidates, which know no draws, and than MyFM's Gibbs sampler, in a fraction
of the latter's time; a sweep takes at most one and a half times an exact one of ALS with biases.

    python -m experiments.benchmarks.posterior --dataset=ml100k --folds=u1,u2,u3,u4,u5 \
        --data_dir=DIR --peers_python=PYTHON_WITH_MYFM
    python -m experiments.benchmarks.posterior --dataset=ml1m --random_splits=10 --data_dir=DIR

`gibbs` are the defaults, `gibbs best` more factors, singular vectors and chains, and `gibbs like
myfm` has MyFM's rank and number of draws, one chain, and nothing of the pattern; `two chains like
myfm` divides the draws, `--draws` of them, among two. All see the same splits; MyFM's time is that
of its fit and prediction alone, ours too, compiled before. A sweep's time is that of all cores,
which other programs hardly change. On MovieLens-1M with two cores a split takes 40 s without MyFM.
"""

import dataclasses
import functools
import pathlib
import subprocess
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import flags

from experiments import common, shared_flags, splits
from metamf_jax.data import sources
from metamf_jax.factorization import als, objective, solver
from metamf_jax.imputation import completion, pipeline
from metamf_jax.imputation.candidates import CANDIDATES
from metamf_jax.imputation.prior import load_prior
from metamf_jax.metrics import mean_and_standard_error
from metamf_jax.posterior import chains, fit, gibbs, predictive
from metamf_jax.runs.run_log import RunLog
from metamf_jax.types import Entries

_DATASET = shared_flags.dataset()
_METHODS = shared_flags.methods()
_FOLDS = flags.DEFINE_list("folds", [], "Official folds of ml100k: u1 .. u5; else random splits.")
_RANDOM_SPLITS = shared_flags.random_splits()
_TEST_FRACTION = shared_flags.test_fraction()
_PEERS_PYTHON = shared_flags.peers_python()
_DRAWS = shared_flags.draws()

_MYFM_RANK, _MYFM_DRAWS, _MYFM_BURN_IN = 20, 200, 30
# Of one chain; of so many at once, of each its part of the draws.
_LIKE_MYFM = {"gibbs like myfm": 1, "two chains like myfm": 2}

# Run by --peers_python with: training file, test file, rank, draws, burn-in.
_MYFM = """
import sys, time
import myfm, numpy, scipy.sparse
rank, draws, burn_in = map(int, sys.argv[3:])
train, test = (numpy.load(path) for path in sys.argv[1:3])
sizes = [int(max(train[:, s].max(), test[:, s].max())) + 1 for s in (0, 1)]

def one_hot(table):
    count = len(table)
    ones, at = numpy.ones(2 * count), numpy.tile(numpy.arange(count), 2)
    ids = numpy.concatenate([table[:, 0], sizes[0] + table[:, 1]]).astype(int)
    return scipy.sparse.csr_matrix((ones, (at, ids)), shape=(count, sum(sizes)))

ended = []

def on_sweep(*_):
    ended.append(time.process_time())
    return False, None

start = time.perf_counter()
model = myfm.MyFMRegressor(rank=rank, random_seed=0).fit(
    one_hot(train), train[:, 2], n_iter=burn_in + draws, n_kept_samples=draws,
    group_shapes=sizes, callback=on_sweep,
)
found = model.predict(one_hot(test))
print(time.perf_counter() - start, numpy.diff(ended).mean())
found = numpy.clip(found, train[:, 2].min(), train[:, 2].max())
print(numpy.sqrt(((found - test[:, 2]) ** 2).mean()))
"""


@dataclasses.dataclass(frozen=True)
class Config:
    """What is compared; the names are those of the flags."""

    dataset: str
    preset: str
    methods: tuple[str, ...]
    folds: tuple[str, ...]
    random_splits: int
    test_fraction: float
    devices: int
    peers_python: str | None
    draws: int = _MYFM_DRAWS


# Arguments of `fit.fit`.
SETTINGS: dict[str, dict[str, Any]] = {
    "gibbs": {},
    "gibbs best": dict(
        config=gibbs.GibbsConfig(rank=48),
        lengths=chains.ChainsConfig(num_chains=4, num_draws=200),
        num_vectors=512,
    ),
}
_SMOKE: dict[str, Any] = dict(
    config=gibbs.GibbsConfig(rank=4),
    lengths=chains.ChainsConfig(burn_in=3, num_draws=6),
    num_vectors=4,
)
# What of the imputer may answer.
IMPUTERS = {"imputer": pipeline.PARTS, "imputer's candidates": tuple(CANDIDATES)}
METHODS = (*SETTINGS, *_LIKE_MYFM, *IMPUTERS, "myfm")


def like_myfm(num_chains: int, num_draws: int) -> dict[str, Any]:
    """Arguments of `fit.fit`: MyFM's model."""
    return dict(
        config=gibbs.GibbsConfig(rank=_MYFM_RANK, row_noise=0.0, column_noise=0.0),
        lengths=chains.ChainsConfig(num_chains, _MYFM_BURN_IN, num_draws),
        num_vectors=0,
    )


def sampled(train: Entries, test: Entries, devices: int, setting: dict) -> dict[str, float]:
    """Error, cover and seconds of the posterior, and of the cores in a sweep of all chains."""
    ended, start = [], time.perf_counter()
    found = fit.fit(
        train,
        num_devices=devices,
        on_sweep=lambda *_: ended.append(time.process_time()),
        **setting,
    )
    said = predictive.predict(found.draws, found.scale, test.rows, test.columns, (0.05, 0.95))
    seconds = time.perf_counter() - start
    low, high = said.quantiles
    held = (low <= test.values) & (test.values <= high)
    return {
        "rmse": _rmse(said.mean, test),
        "cover": float(held.mean()),
        "seconds": seconds,
        "sweep": float(np.diff(ended).mean()),
    }


def imputed(train: Entries, test: Entries, allowed: tuple[str, ...]) -> dict[str, float]:
    """The same of the packaged imputer: as it comes, or of its weighted candidates alone."""
    prior, start = load_prior("general"), time.perf_counter()
    fitted = pipeline.complete(prior, train, allowed=allowed)
    values, errors = completion.predict(fitted, np.asarray(test.rows), np.asarray(test.columns))
    seconds = time.perf_counter() - start
    held = np.abs(values - test.values) <= 1.645 * errors
    return {"rmse": _rmse(values, test), "cover": float(held.mean()), "seconds": seconds}


def by_myfm(train: Entries, test: Entries, python: str, num_draws: int) -> dict[str, float]:
    """The same of MyFM, which uses one core, in a process of its own.

    Raises:
      ValueError: it cannot be run.
    """
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(pathlib.Path(folder) / f"{name}.npy") for name in ("train", "test")]
        for path, part in zip(paths, (train, test), strict=True):
            np.save(path, np.column_stack([part.rows, part.columns, part.values]))
        sizes = (str(n) for n in (_MYFM_RANK, num_draws, _MYFM_BURN_IN))
        command = [python, "-c", _MYFM, *paths, *sizes]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise ValueError(f"myfm in {python} ended with {ran.returncode}: {ran.stderr[-500:]}")
    seconds, sweep, rmse = map(float, ran.stdout.split())
    return {"rmse": rmse, "cover": float("nan"), "seconds": seconds, "sweep": sweep}


def _rmse(predicted: np.ndarray, test: Entries) -> float:
    return float(np.sqrt(((predicted - test.values) ** 2).mean(dtype=np.float64)))


def sweep_against_als(train: Entries, rank: int, rounds: int = 5) -> dict[str, float]:
    """Least milliseconds of a sweep of one chain and of exact ALS with biases, taken in turn."""
    bare = gibbs.GibbsConfig(rank=rank)
    standard = fit.standardised(train, fit.scale_of(train.values))
    data = fit.prepare(standard, bare, fit.features_of(train, 0))
    lengths = chains.ChainsConfig(num_chains=1, burn_in=0, num_draws=rounds + 2)
    drawing = chains.sweeps(chains.init(data, bare, lengths), data, bare, lengths)
    goal = objective.Objective("squared", "l2", 1.0, biases=True)
    method = als.make_solver(goal, standard, width=rank + 2)
    terms = objective.make_terms(goal, standard)
    state = method.init(
        solver.initial_factors(goal, standard, terms, rank, np.random.default_rng(0))
    )
    taken = {"sweep": [], "als": []}
    for _ in range(rounds + 1):
        start = time.perf_counter()
        next(drawing)
        middle = time.perf_counter()
        state = method.epoch(state, 1, 0.0)
        taken["sweep"].append(middle - start)
        taken["als"].append(time.perf_counter() - middle)
    # The first round compiles.
    return {name: 1e3 * min(times[1:]) for name, times in taken.items()}


def run(
    config: Config, workdir: str | pathlib.Path | None = None, data_dir: str | None = None
) -> dict[str, Any]:
    """Compares on each split, prints each line as it comes, and then the means.

    Raises:
      ValueError: an unknown method, or data that cannot be read or split.
    """
    unknown = set(config.methods) - set(METHODS)
    if unknown:
        raise ValueError(f"unknown methods {sorted(unknown)}; there are {', '.join(METHODS)}")
    log = RunLog(workdir, "benchmarks.posterior", config) if workdir else None
    table = sources.load(config.dataset, data_dir)
    methods = _methods(config)
    parts = [
        *(splits.Split(config.dataset, "official", fold) for fold in config.folds),
        *(
            splits.Split(config.dataset, "random", "", config.test_fraction, None, seed)
            for seed in range(0 if config.folds else config.random_splits)
        ),
    ]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in methods}
    for number, part in enumerate(parts):
        training, test = splits.split_entries(table, part, data_dir)
        for name, method in methods.items():
            if not number and name != "myfm":
                # Compiles, for shapes that the others have too.
                method(training.entries, test)
            of_method = method(training.entries, test)
            found[name].append(of_method)
            line = (
                f"{part.fold or part.seed:<4}{name:<21}rmse {of_method['rmse']:.4f}  90% intervals "
                f"hold {of_method['cover']:.1%}  {of_method['seconds']:6.1f} s"
            )
            if "sweep" in of_method:
                line += f", {1e3 * of_method['sweep']:.1f} core-ms a sweep"
            print(line, flush=True)
    results = {"rows": found, "means": _print_means(found)}
    if len(parts):
        training, _ = splits.split_entries(table, parts[0], data_dir)
        results["sweep"] = sweep_against_als(training.entries, 32)
        ratio = results["sweep"]["sweep"] / results["sweep"]["als"]
        print(
            f"a sweep of rank 32 on one core {results['sweep']['sweep']:.1f} ms, of exact ALS with "
            f"biases {results['sweep']['als']:.1f} ms: {ratio:.2f} times"
        )
    if log:
        log.finish(results)
    return results


def _methods(config: Config) -> dict[str, Callable[[Entries, Entries], dict[str, float]]]:
    """What finds error, cover and seconds, by the methods' names."""
    methods: dict[str, Callable[[Entries, Entries], dict[str, float]]] = {}
    settings = SETTINGS | {
        name: like_myfm(num_chains, config.draws) for name, num_chains in _LIKE_MYFM.items()
    }
    for name in config.methods:
        if name in settings:
            setting = _SMOKE if config.preset == "smoke" else settings[name]
            methods[name] = functools.partial(sampled, devices=config.devices, setting=setting)
        elif name in IMPUTERS:
            methods[name] = functools.partial(imputed, allowed=IMPUTERS[name])
        elif config.peers_python:
            methods[name] = functools.partial(
                by_myfm, python=config.peers_python, num_draws=config.draws
            )
    return methods


def _print_means(found: dict[str, list[dict[str, float]]]) -> dict[str, float]:
    """Prints means over splits, each method's difference to the imputer's candidates, paired, and
    MyFM's time to that of a chain with as many sweeps.
    """
    means = {}
    for name, rows in found.items():
        errors = np.array([row["rmse"] for row in rows])
        mean, stderr = mean_and_standard_error(errors) if len(errors) > 1 else (errors[0], np.nan)
        line = f"{name:<21}rmse {mean:.4f} +- {stderr:.4f}"
        others = [row["rmse"] for row in found.get("imputer's candidates", [])]
        if others and name != "imputer's candidates":
            line += f", {100 * (errors / others - 1).mean():+.2f}% of the candidates'"
        print(f"{line}, {np.mean([row['seconds'] for row in rows]):.1f} s")
        means[name] = float(mean)
    if "myfm" in found:
        for name in set(_LIKE_MYFM) & set(found):
            whole, sweep = (
                sum(row[of] for row in found["myfm"]) / sum(row[of] for row in found[name])
                for of in ("seconds", "sweep")
            )
            print(f"myfm takes {whole:.2f} times as long as {name}, {sweep:.2f} times a sweep")
    return means


def main() -> None:
    config = Config(
        dataset=_DATASET.value,
        preset=common.PRESET.value,
        methods=METHODS if _METHODS.value == ["all"] else tuple(_METHODS.value),
        folds=tuple(_FOLDS.value),
        random_splits=_RANDOM_SPLITS.value,
        test_fraction=_TEST_FRACTION.value,
        devices=common.DEVICES.value or 1,
        peers_python=_PEERS_PYTHON.value,
        draws=_DRAWS.value or _MYFM_DRAWS,
    )
    run(config, common.WORKDIR.value, common.DATA_DIR.value)


if __name__ == "__main__":
    common.run_main(main)
