"""Factorizes one large matrix with the loss, penalty and solver of choice.

Claim: the first command, which names the data and nothing else, comes within 1% of the test RMSE
that any strength, rank and number of epochs reach. It holds out training cells to choose strength
and epochs, factorizes all of them anew, and takes 3 to 5 s on MovieLens-1M (two cores).

    python -m experiments.factorize --input=ratings.csv

Claim: DSGD reaches the objective of serial SGD after as many epochs, on any number of devices, to
the last bit the same; parameter mixing lags behind.

    python -m experiments.factorize --dataset=ml1m --data_dir=DIR --solver=dsgd --blocks=8 \
        --devices=2 --workdir=runs/factorize

    python -m experiments.factorize --flagfile=experiments/flagfiles/factorize_ml100k.txt \
        --data_dir=DIR --workdir=runs/best

    python -m experiments.factorize --dataset=ml100k --split=official --data_dir=DIR \
        --solver=gibbs --workdir=runs/gibbs

The workdir (``runs/factorize-NAME`` unless given) receives the factors with the names of rows and
columns (``factors.safetensors``; the sampler's draws: ``draws.safetensors``) and ``summary.json``;
started again, a run that was cut short goes on from its last checkpoint.
"""

import dataclasses
import json
import math
import os
import pathlib
import time
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from experiments import by_counts, common, sample, shared_flags, splits, stores
from metamf_jax import parallel, processes, sums
from metamf_jax.data import sources
from metamf_jax.factorization import (
    block_update,
    dsgd,
    held_out_choice,
    measures,
    pattern_prior,
    sgd,
    solver,
    solvers,
    step_size,
    strata,
)
from metamf_jax.factorization import objective as objectives
from metamf_jax.factorization.block_store import BlockStore
from metamf_jax.factorization.blocks import number_of_blocks
from metamf_jax.factorization.factor_file import save_factors
from metamf_jax.factorization.losses import RECORDS
from metamf_jax.factorization.objective import Objective
from metamf_jax.factorization.pattern_prior import PatternPrior
from metamf_jax.factorization.solver import Progress
from metamf_jax.factorization.solvers import SOLVERS, SolverConfig
from metamf_jax.posterior import gibbs
from metamf_jax.runs.checkpoint import Checkpointer
from metamf_jax.runs.files import write_text
from metamf_jax.runs.run_log import RunLog, open_run_log, read_metrics
from metamf_jax.types import Entries, FactorPrior, Factors

# A run in which nothing is chosen from the data but the first step size.
_PLAIN = {
    "penalty": "weighted_l2",
    "regularization": 0.05,
    "biases": False,
    "init": "uniform",
    "step_size": "bold_driver:auto",
}
# What a preset sets where no flag does.
_PRESETS = {
    "smoke": {
        **_PLAIN,
        "rank": 4,
        "epochs": 3,
        "evaluate_every": 1,
        "checkpoint_seconds": 0.0,
    },
    "tiny": {},
    # The settings of the DSGD authors; their step size 0.01 counts twice.
    "paper": {
        **_PLAIN,
        "rank": 50,
        "epochs": 60,
        "penalty": "weighted_l2",
        "regularization": 0.05,
        "init": "uniform:0.5",
        "step_size": "bold_driver:0.02",
    },
    # Sizes tuned on a tenth of MovieLens-1M's training cells; penalty and start on another split.
    # Those of MovieLens-100K are in `flagfiles/factorize_ml100k.txt`.
    "best": {
        "rank": 128,
        "epochs": 24,
        "biases": True,
        "penalty": "root_l2",
        "regularization": 0.95,
        "init": "positive:0.093",
        "step_size": "adagrad:0.05",
    },
}
# None is chosen from the data. On inner splits of MovieLens-100K and FilmTrust ranks of 32 to 128
# differ by 0.4% of the RMSE, and `positive` is 0.7% and 0.2% better than `uniform`.
_DEFAULTS = {
    "loss": "squared",
    "penalty": None,
    "regularization": None,
    "biases": True,
    "rank": 64,
    "epochs": None,
    "init": "positive",
    "step_size": None,
    "evaluate_every": None,
    "checkpoint_seconds": 30.0,
}
# Under a loss of all cells most of the fit is the zeros', and AdaGrad's first steps are theirs.
_DEFAULTS_OF_ALL_CELLS = {"biases": False, "init": "uniform", "step_size": "bold_driver:auto"}
# Multiplicative updates need no step size.
_DEFAULTS_OF_BOUNDED = {**_DEFAULTS_OF_ALL_CELLS, "step_size": "constant:1"}

# Of AdaGrad, by the root of the values' root mean square, with which factors scale: on MovieLens-
# 100K and FilmTrust 0.05 and 0.08 reach the same RMSE, the larger in half the epochs; with 0.12 it
# is 0.4% higher.
_ADAGRAD_STEP = 0.07

# An evaluation reads all entries, as an epoch does: every tenth makes it a tenth of the time.
_EVALUATE_SGD_EVERY = 10

_SAMPLERS = {
    "gibbs": "the posterior, by Gibbs sampling: predictions with error bars",
    "dsgld": "the posterior, by Langevin dynamics on the strata of dsgd: without row solves",
}

# Of `--als_solver=cg`.
_CONJUGATE_STEPS = 3

_DATASET = shared_flags.dataset()
_INPUT = shared_flags.input_table()
_FOLD = shared_flags.fold()
_REGULARIZATION = shared_flags.regularization()
_BIASES = shared_flags.biases()
_TEST_INPUT = flags.DEFINE_string("test_input", None, "A table of test cells; then no split.")
_SPLIT = flags.DEFINE_enum(
    "split",
    "random",
    splits.SPLITS,
    "Test cells: drawn at random, the latest, those of the official --fold (ml100k), or all but 0"
    " to 5 cells of a --test_fraction of the rows (few_rows), or of the columns (few_columns).",
)
_TEST_FRACTION = shared_flags.test_fraction()
_SOLVER = flags.DEFINE_enum(
    "solver",
    "dsgd",
    [*SOLVERS, *_SAMPLERS],
    str({name: kind.told for name, kind in SOLVERS.items()} | _SAMPLERS),
)
_LOSS = flags.DEFINE_enum(
    "loss", None, [*objectives.LOSSES, *objectives.ALIASES], "Loss, or a name for loss and penalty."
)
_PENALTY = flags.DEFINE_enum(
    "penalty",
    None,
    objectives.PENALTIES,
    "Penalty. Default: the alias's, else root_l2; weighted_l2 where --regularization is a number;"
    " prior with --prior.",
)
_RANK = flags.DEFINE_integer("rank", None, "K, number of factors.", lower_bound=1)
_EPOCHS = flags.DEFINE_integer(
    "epochs",
    None,
    "Passes over the cells. Default: chosen by the error on held-out training cells.",
    lower_bound=0,
)
_EARLY_STOPPING = flags.DEFINE_float(
    "early_stopping",
    None,
    "Ends the run after an epoch in which the objective fell by less than this part of itself.",
)
_EVALUATE_EVERY = flags.DEFINE_integer(
    "evaluate_every",
    None,
    "Epochs (sweeps of a sampler) between two evaluations of objective and errors; 0 for the last"
    " alone. --early_stopping compares two evaluations. Default: 10 under SGD without"
    " --early_stopping, else 1.",
    lower_bound=0,
)
_CHECKPOINT_SECONDS = flags.DEFINE_float(
    "checkpoint_seconds",
    None,
    "Seconds between two checkpoints (30); 0 for one with each evaluation. The last is always"
    " written, and one when the run is asked to end.",
    lower_bound=0,
)
_INIT = flags.DEFINE_string(
    "init", None, "Start: uniform[:HALF_WIDTH], positive[:WIDTH] or normal[:DEVIATION]."
)
_STEP_SIZE = flags.DEFINE_string(
    "step_size",
    None,
    "constant:E, decay:E:POWER, bold_driver:E or adagrad:E; E may be `auto`, chosen on a sample."
    " Default: adagrad, by the spread of the values; bold_driver:auto of psgd and squared_all,"
    " constant:1 of gkl."
    " dsgld: constant:E or decay:E:POWER, E up to 1 (constant:1).",
)
_SCHEDULE = flags.DEFINE_enum("schedule", "wor", strata.SCHEDULES, "Order of the strata.")
_POINT_ORDER = flags.DEFINE_enum(
    "point_order", "blocks", sgd.POINT_ORDERS, "How far the order of points is drawn anew."
)
_BLOCKS = flags.DEFINE_integer(
    "blocks",
    None,
    "Blocks per side, a multiple of --devices. Default: from the number of cells; of psgd and of a"
    " block store the devices; of dsgld 8.",
    lower_bound=1,
)
_BLOCK_STORE = flags.DEFINE_string(
    "block_store",
    None,
    "dsgd, dsgld: folder of the matrix cut into blocks on disk; made if missing. Then the points of"
    " two strata at a time are in memory (dsgld: for each chain). --dataset may be"
    " synthetic:ROWSxCOLUMNSxCELLS_PER_ROW.",
)
_ALS_SOLVER = flags.DEFINE_string(
    "als_solver",
    None,
    "How --solver=als solves a row: cholesky (the default), exactly, or cg[:STEPS], by so many (3)"
    " steps of conjugate gradients from the factors before, through XLA.",
)
_BACKEND = flags.DEFINE_enum("backend", "auto", block_update.BACKENDS, "How blocks are updated.")
_DRAWS = shared_flags.draws()
_BURN_IN = flags.DEFINE_integer(
    "burn_in",
    None,
    "Samplers: sweeps of each chain before its first kept draw (gibbs: 30, dsgld: 120).",
    lower_bound=0,
)
_THIN = flags.DEFINE_integer(
    "thin",
    None,
    "Samplers: sweeps from one kept draw to the next (gibbs: 1, dsgld: 3).",
    lower_bound=1,
)
_CHAINS = flags.DEFINE_integer(
    "chains", None, "Samplers: independent chains (2), which part the draws.", lower_bound=1
)
_PATTERN_FEATURES = flags.DEFINE_integer(
    "pattern_features",
    None,
    "Samplers: singular vectors of the pattern of observed cells, as features of rows and columns."
    " Default: 64, from 300,000 cells on 256; of a block store none, as they are found in memory.",
    lower_bound=0,
)
_START = shared_flags.start()
_ROW_FEATURES = shared_flags.row_features()
_COLUMN_FEATURES = shared_flags.column_features()
_ROW_NOISE = flags.DEFINE_float(
    "row_noise",
    None,
    "Samplers: shape a of the Gamma(a, a) prior of each row's share in the noise's precision (2); 0"
    " for rows all alike.",
    lower_bound=0,
)
_COLUMN_NOISE = flags.DEFINE_float(
    "column_noise", None, "Samplers: the same of the columns (3).", lower_bound=0
)
_PRIOR = flags.DEFINE_string(
    "prior",
    None,
    "Learned prior, a file or the workdir that learned it: of effects and precisions"
    " (experiments.learn_prior), the penalty `prior`; of samplers, of their hyperparameters"
    " (experiments.learn_hyperprior).",
)
_LIKELIHOOD = flags.DEFINE_enum(
    "likelihood",
    None,
    gibbs.LIKELIHOODS,
    "gibbs: Gaussian values, or (ordinal) at most 20 distinct ones, a latent Gaussian cut at"
    " thresholds that are drawn.",
)
_ENTRY_FEATURES = flags.DEFINE_list(
    "entry_features",
    None,
    "gibbs: columns of the input beside ids and value, such as time, each with effects of its own:"
    " alone, by row and by column.",
)

_OF_SAMPLERS = (
    *(_DRAWS, _BURN_IN, _THIN, _CHAINS, _PATTERN_FEATURES, _ROW_FEATURES, _COLUMN_FEATURES),
    *(_ROW_NOISE, _COLUMN_NOISE, _LIKELIHOOD, _ENTRY_FEATURES, _START),
)
_OF_DSGLD = _STEP_SIZE, _BLOCKS, _BLOCK_STORE
# What means nothing to a sampler.
_NOT_OF_SAMPLERS = (
    *(_PENALTY, _REGULARIZATION, _BIASES, _EPOCHS, _EARLY_STOPPING, _INIT),
    *(_SCHEDULE, _POINT_ORDER, _ALS_SOLVER, _CHECKPOINT_SECONDS),
)


@dataclasses.dataclass(frozen=True)
class Config:
    """One factorization; the names are those of the flags.

    `blocks` decides the result, the number of devices does not, so that it is no part of it.
    `regularization`, `epochs`, `step_size` and `blocks` are None where the data are to tell them.
    """

    dataset: str = "synthetic"
    test_input: str | None = None
    split: str = "random"
    fold: str = "u1"
    test_fraction: float = 0.1
    solver: str = "dsgd"
    loss: str = "squared"
    penalty: str = "weighted_l2"
    prior: str | None = None
    regularization: float | None = 0.05
    biases: bool = False
    rank: int = 32
    epochs: int | None = 20
    early_stopping: float | None = None
    evaluate_every: int = 1
    init: str = "uniform"
    step_size: str | None = "bold_driver:auto"
    schedule: str = "wor"
    point_order: str = "blocks"
    blocks: int | None = 1
    backend: str = "auto"
    block_store: str | None = None
    als_solver: str | None = None
    seed: int = 0


def _parse_init(text: str) -> tuple[str, float | None]:
    name, _, scale = text.partition(":")
    try:
        return name, float(scale) if scale else None
    except ValueError:
        raise ValueError(f"expected an init as NAME[:SCALE], got {text!r}") from None


def _conjugate_steps(text: str | None) -> int:
    """Of --als_solver; 0 for Cholesky."""
    if text in (None, "cholesky"):
        return 0
    name, _, steps = text.partition(":")
    steps = steps or str(_CONJUGATE_STEPS)
    if name != "cg" or not steps.isdecimal() or int(steps) == 0:
        raise ValueError(f"expected an ALS solver as cholesky or cg[:STEPS], got {text!r}")
    return int(steps)


class _Prior(NamedTuple):
    """A learned prior, and what it says of a matrix.

    Attributes:
      learned: the prior.
      unit: of the matrix's values.
      offsets: what it expects of rows' and columns' effects.
    """

    learned: PatternPrior
    unit: float
    offsets: tuple[np.ndarray, np.ndarray]

    def factors(self, entries: Entries, rank: int, strength: float) -> FactorPrior:
        """Of the matrix, or of a part of it."""
        return self.learned.factors(entries, rank, strength, self.unit)


class _Matrix(NamedTuple):
    """The points to factorize, and all that does not depend on how.

    Attributes:
      train: the points, centred; or the store that has them.
      mean: to give to `solver.add_mean`.
      scale: of the initial factors; None for the default.
      test: held-out cells, as they are.
      ids: names of rows and columns.
      prior: a learned one; the points are what its expectations leave.
    """

    train: Entries | BlockStore
    mean: float
    scale: float | None
    test: Entries
    ids: tuple[np.ndarray, np.ndarray]
    prior: _Prior | None = None

    @property
    def num_points(self) -> int:
        train = self.train
        return train.num_entries if isinstance(train, BlockStore) else len(train.values)

    @property
    def in_memory(self) -> Entries:
        """The points; none of a store's."""
        if not isinstance(self.train, BlockStore):
            return self.train
        nothing = np.zeros(0, np.int32)
        return Entries(nothing, nothing, np.zeros(0, np.float32), self.train.shape)

    def sample(self, at_least: int) -> Entries:
        """A sub-matrix of the store's points; all of those in memory."""
        return self.train.sample(at_least) if isinstance(self.train, BlockStore) else self.train

    @property
    def spread(self) -> float:
        """Root mean square of the points' values; one where they are zero."""
        if not isinstance(self.train, BlockStore):
            return held_out_choice.root_mean_square(self.train)
        count, _, squares = self.train.moments
        return math.sqrt(squares / max(1, count)) or 1.0

    def factor_prior(self, rank: int, strength: float) -> FactorPrior | None:
        """The learned prior's, with this strength."""
        return self.prior and self.prior.factors(self.in_memory, rank, strength)

    def whole(self, objective: Objective, factors: Factors) -> Factors:
        """Factors of the matrix as it was, its mean and what the prior expects included."""
        factors = solver.add_mean(objective, factors, self.mean)
        return factors if self.prior is None else pattern_prior.add(factors, self.prior.offsets)

    def counts(self) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of points of the rows and of the columns."""
        if isinstance(self.train, BlockStore):
            return np.asarray(self.train.row_count), np.asarray(self.train.column_count)
        return pattern_prior.counts_of(self.train)

    def terms(self, objective: Objective, prior: FactorPrior | None = None) -> objectives.Terms:
        """Of the objective."""
        if isinstance(self.train, BlockStore):
            counts = self.train.row_count, self.train.column_count
            return objectives.terms_of_counts(objective, *counts)
        return objectives.make_terms(objective, self.train, prior)


def _read_table(config: Config, objective: Objective, data_dir: str | None) -> _Matrix:
    table = sources.load(config.dataset, data_dir, config.seed)
    train, test = splits.split_entries(
        table,
        splits.Split(
            config.dataset,
            config.split,
            config.fold,
            config.test_fraction,
            config.test_input,
            config.seed,
        ),
        data_dir,
    )
    for points in (train.entries, test):
        objectives.check_values(objective, points, train.row_ids, train.column_ids)
    entries, mean = solver.centre(objective, train.entries)
    _, scale = _parse_init(config.init)
    matrix = _Matrix(entries, mean, scale, test, (train.row_ids, train.column_ids))
    if config.prior is None:
        return matrix
    learned, unit = pattern_prior.load(config.prior), held_out_choice.root_mean_square(entries)
    offsets = learned.offsets(pattern_prior.pattern_of(entries), unit)
    left = pattern_prior.subtract(entries, offsets)
    return matrix._replace(train=left, prior=_Prior(learned, unit, offsets))


def _read_store(
    config: Config, objective: Objective, work: SolverConfig, data_dir: str | None
) -> _Matrix:
    """Opens or builds the block store."""
    assert config.block_store is not None
    width = config.rank + 2 * config.biases if config.point_order == "blocks" else None
    store = stores.opened(
        config.block_store, config.dataset, data_dir, config.test_fraction, work, width
    )
    store.check_values(objective)
    mean = store.mean if objective.record.centred else 0.0
    store = dataclasses.replace(store, shift=mean)
    init, scale = _parse_init(config.init)
    if scale is None:
        scale = solver.default_scale(objective, store.shape, store.moments, config.rank, init)
    return _Matrix(store, mean, scale, store.test, store.ids())


def _read_matrix(
    config: Config, objective: Objective, num_devices: int | None, data_dir: str | None
) -> tuple[Config, SolverConfig, _Matrix]:
    """The matrix, the configuration with a number of blocks, and how the solver works."""
    kind = SOLVERS[config.solver]
    if config.block_store is None:
        matrix = _read_table(config, objective, data_dir)
        config = _with_blocks(config, matrix, num_devices)
        return config, _work(config, num_devices), matrix
    if config.prior is not None:
        raise ValueError("--prior reads all counts of the matrix: leave out it or --block_store")
    if kind.from_store and config.split == "random" and config.test_input is None:
        config = _with_blocks(config, None, num_devices)
        work = _work(config, num_devices)
        return config, work, _read_store(config, objective, work, data_dir)
    raise ValueError(
        "a block store serves --solver=dsgd or dsgld with the random split, got"
        f" {config.solver!r}, split {config.split!r} and test input {config.test_input}"
    )


def _with_blocks(config: Config, matrix: _Matrix | None, num_devices: int | None) -> Config:
    """Settles the number of blocks; a matrix that is not read yet gets one for each device."""
    if config.blocks is not None:
        return config
    devices = num_devices or 1
    blocks = devices
    if matrix is not None and SOLVERS[config.solver].takes_all_devices:
        blocks = number_of_blocks(matrix.num_points, matrix.in_memory.shape)
        blocks += -blocks % devices
    return dataclasses.replace(config, blocks=blocks)


def _work(config: Config, num_devices: int | None) -> SolverConfig:
    """How the solver works; where the devices are free, as many as divide the blocks."""
    assert config.blocks is not None
    if num_devices is None:
        there = len(parallel.devices()) if SOLVERS[config.solver].takes_all_devices else 1
        num_devices = max(d for d in range(1, there + 1) if config.blocks % d == 0)
    return SolverConfig(
        config.blocks,
        num_devices,
        config.schedule,
        _conjugate_steps(config.als_solver),
        point_order=config.point_order,
        backend=config.backend,
        per_row=_rule(config).per_row,
        seed=config.seed,
    )


class _Job(NamedTuple):
    """What stays the same from epoch to epoch."""

    config: Config
    objective: Objective
    matrix: _Matrix
    method: solver.Solver
    rule: step_size.StepSize
    log: RunLog

    @property
    def kind(self) -> solvers.Kind:
        return SOLVERS[self.config.solver]


def _rule(config: Config) -> step_size.StepSize:
    """The rule for the step size, whose value may be chosen later."""
    text = "adagrad" if config.step_size is None else config.step_size
    rule = step_size.parse(text.replace(":auto", ""))
    if not SOLVERS[config.solver].reads_step_size:
        # A bold driver would want the objective after every epoch.
        return step_size.StepSize("constant")
    return rule


def _with_value(
    config: Config, objective: Objective, matrix: _Matrix, work: SolverConfig
) -> step_size.StepSize:
    """The rule with its first step size: from the values, on a sample (`auto`) or as given."""
    rule = _rule(config)
    if not SOLVERS[config.solver].reads_step_size:
        return rule
    if config.step_size is None:
        return dataclasses.replace(rule, value=_ADAGRAD_STEP * matrix.spread**0.5)
    if ":auto" not in config.step_size:
        return rule
    init, _ = _parse_init(config.init)
    return solvers.choose_step_size(
        objective, matrix.sample(50_000), config.rank, rule, work, init, matrix.scale
    )


class _Choice(NamedTuple):
    """What the data told; goes into the workdir, so that a run that goes on need not ask again.

    Attributes:
      step_size: the first.
      trials: of strength and epochs, the best first; none where both were given.
    """

    step_size: float
    trials: list[held_out_choice.Trial]

    def settled(self, config: Config) -> Config:
        """The configuration with the best trial's strength, and its epochs where none are given."""
        if not self.trials:
            return config
        best = self.trials[0]
        epochs = best.epochs if config.epochs is None else config.epochs
        return dataclasses.replace(config, regularization=best.regularization, epochs=epochs)

    def told(self, config: Config) -> list[str]:
        """In lines for the log, what was not given."""
        lines = []
        if SOLVERS[config.solver].reads_step_size and ":auto" in (config.step_size or ":auto"):
            lines.append(f"step size {self.step_size:g}, chosen from the data")
        if self.trials:
            strength, epochs, error = self.trials[0]
            epochs = epochs if config.epochs is None else config.epochs
            measure = measures.decisive(config.loss)
            how = f"by held-out {measure} ({abs(error):.4f}), of {len(self.trials)} trials"
            if not math.isfinite(error):
                why = (
                    "too few cells to hold some out" if math.isnan(error) else "all trials diverged"
                )
                how = f"not chosen, {why}"
            lines.append(f"regularization {strength:.4g}, epochs {epochs}: {how}")
        return lines


def _choose(
    config: Config,
    objective: Objective,
    matrix: _Matrix,
    work: SolverConfig,
    workdir: pathlib.Path,
) -> _Choice:
    """What an earlier start of this run chose, or what the data tell now, in the first process."""
    choice = None
    if processes.is_first():
        path = workdir / "chosen.json"
        if path.exists():
            choice = json.loads(path.read_text(encoding="utf-8"))
        else:
            rule = _with_value(config, objective, matrix, work)
            choice = rule.value, _trials(config, objective, matrix, work, rule)
    step, trials = processes.from_first(choice)
    return _Choice(step, [held_out_choice.Trial(*trial) for trial in trials])


def _trials(
    config: Config,
    objective: Objective,
    matrix: _Matrix,
    work: SolverConfig,
    rule: step_size.StepSize,
) -> list[held_out_choice.Trial]:
    """Of strength and number of epochs, where one of them is not given."""
    if None not in (config.regularization, config.epochs):
        return []
    init, _ = _parse_init(config.init)
    return held_out_choice.choose(
        held_out_choice.Setting(
            *(objective, config.solver, work, rule, config.rank, init, matrix.scale),
            matrix.prior and matrix.prior.factors,
        ),
        matrix.sample(held_out_choice.SAMPLE),
        config.regularization,
        config.epochs,
        matrix.num_points,
    )


def _measured(job: _Job, state: Any) -> dict[str, float]:
    """The loss's measures: ``train_rmse``, and in the first process ``test_rmse``, and so on."""
    method, matrix, loss = job.method, job.matrix, job.objective.loss
    factors = method.factors(state)
    if loss == "squared" and method.squared_error is not None:
        mean = method.squared_error(state) / matrix.num_points
        training = {"rmse": float(np.sqrt(mean))}
    else:
        training = measures.of_entries(loss, factors, matrix.in_memory)
    measured = {f"train_{name}": value for name, value in training.items()}
    if processes.is_first():
        whole = matrix.whole(job.objective, factors)
        known = None if isinstance(matrix.train, BlockStore) else matrix.in_memory
        tests = measures.of_entries(loss, whole, matrix.test, known)
        measured.update((f"test_{name}", value) for name, value in tests.items())
    return measured


def _restored(checkpointer: Checkpointer, progress: Progress) -> Progress:
    """Where a run that was cut short stands, or the start."""
    restored = checkpointer.restore(progress)
    if restored is None:
        return progress
    return restored._replace(
        epoch=int(restored.epoch),
        step_size=float(restored.step_size),
        objective=float(restored.objective),
        finite_objective=float(restored.finite_objective),
        seconds=float(restored.seconds),
    )


def _train(
    job: _Job, progress: Progress, checkpointer: Checkpointer, checkpoint_seconds: float
) -> Progress:
    """Runs the epochs that are left, with an evaluation every few and checkpoints in between."""
    config, rule, log = job.config, job.rule, job.log
    last = config.epochs or 0
    every = config.evaluate_every or last
    before, seconds, saved = progress.finite_objective, [], time.monotonic()
    with common.until_checkpoint() as leave_if_asked:
        while progress.epoch < last:
            used, done = progress.step_size, progress.epoch
            due = min(done - done % every + every, last)
            progress = solver.advance(job.method, rule, progress, due)
            seconds += [progress.seconds] * (progress.epoch - done)
            log.advance(progress.epoch - done)
            evaluated = progress.epoch == due
            if evaluated:
                if not rule.reads_objective:
                    used = rule.after(progress.epoch - 1, used, 0.0, 0.0)
                log.metrics(progress.epoch, _metrics(job, progress, used, seconds))
                fall = before - progress.objective
                before, seconds = progress.finite_objective, []
                if config.early_stopping is not None and 0 <= fall < config.early_stopping * (
                    progress.objective + fall
                ):
                    last = progress.epoch
            wanted = (evaluated or checkpoint_seconds > 0) and processes.from_first(
                time.monotonic() - saved >= checkpoint_seconds
            )
            if wanted or progress.epoch == last or common.asked_to_end():
                checkpointer.save(progress.epoch, progress)
                saved = time.monotonic()
                leave_if_asked()
    return progress


def _metrics(
    job: _Job, progress: Progress, step_size_used: float, seconds: list[float]
) -> dict[str, float]:
    """A line of ``metrics.jsonl``; `seconds` are those of the epochs since the last."""
    return {
        "objective": progress.objective,
        **_measured(job, progress.state),
        **({"step_size": step_size_used} if job.kind.reads_step_size else {}),
        "epoch_seconds": sum(seconds) / len(seconds),
        "epochs": len(seconds),
        "updates_per_second": job.matrix.num_points / max(min(seconds), 1e-9),
    }


def _finish(job: _Job, progress: Progress, choice: _Choice) -> dict[str, Any]:
    """Writes factors and summary."""
    matrix, workdir = job.matrix, job.log.workdir
    measured = _measured(job, progress.state)
    factors = matrix.whole(job.objective, job.method.factors(progress.state))
    path = workdir / "factors.safetensors"
    if processes.is_first():
        save_factors(path, factors, *matrix.ids)
    lines = read_metrics(workdir) if processes.is_first() else []
    decisive = f"test_{measures.decisive(job.objective.loss)}"
    tests = [line[decisive] for line in lines if decisive in line]
    of_counts = {}
    if processes.is_first() and "test_rmse" in measured:
        test = matrix.test
        answers = np.asarray(sums.predict(factors, test.rows, test.columns))
        of_counts = by_counts.errors(*matrix.counts(), test, answers)
    results = {
        "objective": progress.finite_objective,
        decisive: None,
        **measured,
        **of_counts,
        f"best_{decisive}": measures.best(measures.decisive(job.objective.loss), tests),
        "epochs": progress.epoch,
        "regularization": job.objective.regularization,
        "step_size": job.rule.value if job.kind.reads_step_size else None,
        "trials": [trial._asdict() for trial in choice.trials],
        "seconds_training": sum(line["epoch_seconds"] * line["epochs"] for line in lines),
        # The first epoch compiles.
        "updates_per_second": max((line["updates_per_second"] for line in lines), default=None),
    }
    for line in by_counts.told(of_counts):
        job.log.print(line)
    told = [f"{name.replace('_', ' ')} {value:.4f}" for name, value in measured.items()]
    job.log.print(
        f"objective {results['objective']:.6g}, {', '.join(told)}; wrote {path} and summary.json"
    )
    return job.log.finish(results)


def run(
    config: Config,
    workdir: str | os.PathLike,
    data_dir: str | None = None,
    num_devices: int | None = None,
    checkpoint_seconds: float = 30.0,
) -> dict[str, Any]:
    """Factorizes, or resumes, and scores; returns what ``summary.json`` holds.

    Of several processes the first alone reads and writes the workdir.

    Args:
      config: the factorization; what is None in it is chosen from the data.
      workdir: for the run's files.
      data_dir: of the rating sets.
      num_devices: None for as many as divide the blocks, where they change nothing, and else one.
      checkpoint_seconds: between two checkpoints; 0 for one with each evaluation.

    Raises:
      ValueError: the data cannot be read or split, loss and solver do not go together, the solver
        does not run in several processes or from a store, the steps diverged, or the workdir holds
        another configuration.
    """
    objective = Objective(config.loss, config.penalty, config.regularization or 0.0, config.biases)
    solvers.check_solver(objective, config.solver)
    _check_prior(config)
    _rule(config)
    init, _ = _parse_init(config.init)
    if processes.count() > 1 and not SOLVERS[config.solver].several_processes:
        raise ValueError(
            f"the solver {config.solver!r} runs in one process, but there are"
            f" {processes.count()}; take --solver=dsgd or psgd, or start one process"
        )
    config, work, matrix = _read_matrix(config, objective, num_devices, data_dir)
    choice = _choose(config, objective, matrix, work, pathlib.Path(workdir))
    settled = choice.settled(config)
    objective = dataclasses.replace(objective, regularization=settled.regularization)
    prior = matrix.factor_prior(config.rank, settled.regularization or 0.0)
    terms = matrix.terms(objective, prior)
    factors = solver.initial_factors(
        objective,
        matrix.in_memory,
        terms,
        config.rank,
        np.random.default_rng(config.seed),
        init,
        matrix.scale,
    )
    if isinstance(matrix.train, BlockStore):
        method = dsgd.solve_blocks(objective, matrix.train, work, terms)
    else:
        width = factors.u.shape[1]
        method = solvers.make_solver(config.solver, objective, matrix.train, work, prior, width)
    log = open_run_log(workdir, "factorize", config)
    _tell(choice, config, work, log)
    rule = dataclasses.replace(_rule(config), value=choice.step_size)
    job = _Job(settled, objective, matrix, method, rule, log)
    progress = solver.start(method, factors, rule)
    del factors
    checkpointer = Checkpointer(workdir, log.print)
    progress = _restored(checkpointer, progress)
    log.resume_at(progress.epoch)
    log.start_progress(settled.epochs or 0, progress.epoch, "epoch")
    return _finish(job, _train(job, progress, checkpointer, checkpoint_seconds), choice)


def _check_prior(config: Config) -> None:
    """Refuses a learned prior where it has no meaning.

    Raises:
      ValueError: another penalty or loss, or no biases beside a prior; or the penalty without one.
    """
    if config.prior is None and config.penalty != "prior":
        return
    found = config.penalty, config.loss, config.biases
    if config.prior is None or found != ("prior", "squared", True):
        raise ValueError(
            "a learned prior (--prior) is the penalty `prior` of the loss squared with biases, got"
            f" --prior={config.prior}, --penalty={config.penalty}, --loss={config.loss} and"
            f" --{'' if config.biases else 'no'}biases"
        )


def _tell(choice: _Choice, config: Config, work: SolverConfig, log: RunLog) -> None:
    """What was chosen: printed, and kept in the workdir."""
    for line in choice.told(config):
        log.print(line)
    if SOLVERS[config.solver].takes_all_devices:
        log.print(f"{work.num_blocks} blocks a side, {work.num_devices} devices")
    path = log.workdir / "chosen.json"
    if processes.is_first() and choice.trials and not path.exists():
        write_text(path, json.dumps(choice) + "\n")


def _chosen() -> dict[str, Any]:
    """What the preset sets, and flags change; loss and penalty by their own names."""
    given = {
        "loss": _LOSS.value,
        "penalty": _PENALTY.value,
        "regularization": _number_or_auto(_REGULARIZATION.value),
        "biases": _BIASES.value,
        "rank": _RANK.value,
        "epochs": _EPOCHS.value,
        "init": _INIT.value,
        "step_size": _STEP_SIZE.value,
        "evaluate_every": _EVALUATE_EVERY.value,
        "checkpoint_seconds": _CHECKPOINT_SECONDS.value,
    }
    given = {name: value for name, value in given.items() if value is not None}
    preset = _PRESETS[common.PRESET.value]
    loss = given.get("loss", _DEFAULTS["loss"])
    name, _ = objectives.resolve_names(loss, None if loss in objectives.ALIASES else "none")
    of_loss = {}
    if RECORDS[name].all_cells:
        bounded = RECORDS[name].non_negative
        of_loss = _DEFAULTS_OF_BOUNDED if bounded else _DEFAULTS_OF_ALL_CELLS
    chosen = {**_DEFAULTS, **of_loss, **preset, **given}
    if chosen["regularization"] == "auto":
        chosen["regularization"] = None
    if loss in objectives.ALIASES:
        # The alias names its own penalty, whatever the preset's is.
        _, chosen["penalty"] = objectives.resolve_names(loss, given.get("penalty"))
    elif _PRIOR.value is not None and _PENALTY.value is None:
        chosen["penalty"] = "prior"
    elif chosen["penalty"] is None:
        chosen["penalty"] = "root_l2" if chosen["regularization"] is None else "weighted_l2"
    chosen["loss"] = name
    kind = SOLVERS[_SOLVER.value]
    if chosen["step_size"] is None and kind.sharded:
        chosen["step_size"] = "bold_driver:auto"
    if chosen["evaluate_every"] is None:
        often = not kind.reads_step_size or _EARLY_STOPPING.value is not None
        chosen["evaluate_every"] = 1 if often else _EVALUATE_SGD_EVERY
    return chosen


def _number_or_auto(text: str | None) -> float | str | None:
    """Of --regularization."""
    if text in (None, "auto"):
        return text
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"expected a regularization as a number or auto, got {text!r}") from None


def _of_sampler() -> sample.Config:
    """What the preset sets, and flags change.

    Raises:
      ValueError: a flag is given that does not apply to sampling.
    """
    name = _SOLVER.value
    more, never = (_OF_DSGLD, ()) if name == "dsgld" else ((), _OF_DSGLD)
    given = [f"--{flag.name}" for flag in (*_NOT_OF_SAMPLERS, *never) if flag.present]
    if given:
        raise ValueError(f"--solver={name} does not read {', '.join(given)}; leave it out")
    if _LOSS.value not in (None, "squared"):
        raise ValueError(
            f"the solver {name!r} serves the loss squared (Gaussian noise), got"
            f" {_LOSS.value!r}; solvers that serve it: {', '.join(_serving(_LOSS.value))}"
        )
    chosen = {**sample.SOLVERS[name], **sample.PRESETS[common.PRESET.value]}
    read = _RANK, *_OF_SAMPLERS, *more
    chosen.update((flag.name, flag.value) for flag in read if flag.value is not None)
    return sample.Config(
        dataset=_INPUT.value or _DATASET.value,
        test_input=_TEST_INPUT.value,
        split=_SPLIT.value,
        fold=_FOLD.value,
        test_fraction=_TEST_FRACTION.value,
        solver=name,
        prior=_prior_file("hyperprior.json"),
        evaluate_every=1 if _EVALUATE_EVERY.value is None else _EVALUATE_EVERY.value,
        backend=_BACKEND.value,
        seed=common.SEED.value,
        **chosen,
    )


def _prior_file(name: str) -> str | None:
    """That of --prior: as given, or of this name in the workdir given."""
    path = _PRIOR.value
    return os.path.join(path, name) if path is not None and os.path.isdir(path) else path


def _serving(loss: str) -> list[str]:
    """The solvers that serve a loss or an alias."""
    name, _ = objectives.resolve_names(loss, None if loss in objectives.ALIASES else "none")
    return [solver_name for solver_name, kind in SOLVERS.items() if name in kind.losses]


def _workdir() -> str:
    """That of --workdir, or one named after the data that holds no finished run."""
    if common.WORKDIR.value is not None:
        return common.WORKDIR.value
    name = pathlib.Path(_INPUT.value or _DATASET.value).name.partition(".")[0]
    folders = (
        f"runs/factorize-{name}{number}" for number in ("", *(f"-{n}" for n in range(2, 1000)))
    )
    return next(path for path in folders if not os.path.exists(f"{path}/summary.json"))


def _num_devices() -> int | None:
    """Those of --devices, or of all processes; None for as many as serve the solver."""
    if common.DEVICES.value or processes.count() > 1:
        return len(parallel.devices())
    if _SOLVER.value in SOLVERS and SOLVERS[_SOLVER.value].takes_all_devices:
        parallel.use_cores()
        # On an accelerator one, unless --devices says more.
        return None if parallel.on_cpu() else 1
    return 1


def main() -> None:
    num_devices = _num_devices()
    where = _workdir(), common.DATA_DIR.value
    if _SOLVER.value in _SAMPLERS:
        config = _of_sampler()
        with common.profiled(where[0]):
            sample.run(config, *where, num_devices)
        return
    given = [f"--{flag.name}" for flag in _OF_SAMPLERS if flag.present]
    if given:
        alone = " and ".join(_SAMPLERS)
        raise ValueError(f"the solvers {alone} alone read {', '.join(given)}; leave it out")
    if not SOLVERS[_SOLVER.value].several_devices:
        num_devices = 1
    chosen = _chosen()
    checkpoint_seconds = chosen.pop("checkpoint_seconds")
    config = Config(
        dataset=_INPUT.value or _DATASET.value,
        test_input=_TEST_INPUT.value,
        split=_SPLIT.value,
        fold=_FOLD.value,
        test_fraction=_TEST_FRACTION.value,
        solver=_SOLVER.value,
        prior=_prior_file("prior.json"),
        early_stopping=_EARLY_STOPPING.value,
        schedule=_SCHEDULE.value,
        point_order=_POINT_ORDER.value,
        blocks=_BLOCKS.value,
        backend=_BACKEND.value,
        block_store=_BLOCK_STORE.value,
        als_solver=_ALS_SOLVER.value,
        seed=common.SEED.value,
        **chosen,
    )
    with common.profiled(where[0]):
        run(config, *where, num_devices, checkpoint_seconds)


if __name__ == "__main__":
    common.run_main(main, several_processes=True)
