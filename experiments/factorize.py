"""Factorizes one large matrix with the loss, penalty and solver of choice.

Claim: DSGD reaches the objective of serial SGD after as many epochs, on any number of devices, to
the last bit the same; parameter mixing lags behind.

    python -m experiments.factorize --dataset=ml1m --data_dir=DIR --solver=dsgd --blocks=8 \
        --devices=2 --workdir=runs/factorize

    python -m experiments.factorize --flagfile=experiments/flagfiles/factorize_ml100k.txt \
        --data_dir=DIR --workdir=runs/best

    python -m experiments.factorize --dataset=ml100k --split=official --data_dir=DIR \
        --solver=gibbs --workdir=runs/gibbs

The workdir receives the factors with the names of rows and columns (``factors.safetensors``; the
sampler's draws: ``draws.safetensors``) and ``summary.json``; started again, a run that was cut
short goes on from its last epoch.
"""

import dataclasses
import os
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags

from experiments import common, sample, shared_flags, splits
from metamf_jax import parallel, processes, sums
from metamf_jax.data import entry_streams, sources
from metamf_jax.factorization import (
    block_store,
    block_update,
    dsgd,
    sgd,
    solver,
    solvers,
    step_size,
    strata,
    visits,
)
from metamf_jax.factorization import objective as objectives
from metamf_jax.factorization.block_store import BlockStore
from metamf_jax.factorization.factor_file import save_factors
from metamf_jax.factorization.objective import Objective
from metamf_jax.factorization.solver import Progress
from metamf_jax.factorization.solvers import SOLVERS, SolverConfig
from metamf_jax.posterior import gibbs
from metamf_jax.runs.checkpoint import Checkpointer
from metamf_jax.runs.run_log import RunLog, open_run_log, read_metrics
from metamf_jax.types import Entries, Factors

# What a preset sets where no flag does.
_PRESETS = {
    "smoke": {"rank": 4, "epochs": 3},
    "tiny": {"rank": 32, "epochs": 20},
    # The settings of the DSGD authors; their step size 0.01 counts twice.
    "paper": {
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
_DEFAULTS = {
    "loss": "squared",
    "penalty": None,
    "regularization": 0.05,
    "biases": False,
    "init": "uniform",
    "step_size": "bold_driver:auto",
}

_GIBBS = "the posterior, by Gibbs sampling: predictions with error bars"

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
    "Test cells: drawn at random, the latest, or those of the official --fold (ml100k).",
)
_TEST_FRACTION = shared_flags.test_fraction()
_SOLVER = flags.DEFINE_enum(
    "solver",
    "dsgd",
    [*SOLVERS, "gibbs"],
    str({name: kind.told for name, kind in SOLVERS.items()} | {"gibbs": _GIBBS}),
)
_LOSS = flags.DEFINE_enum(
    "loss", None, [*objectives.LOSSES, *objectives.ALIASES], "Loss, or a name for loss and penalty."
)
_PENALTY = flags.DEFINE_enum(
    "penalty",
    None,
    ["none", "l2", "weighted_l2", "root_l2"],
    "Penalty. Default: weighted_l2, or the alias's.",
)
_RANK = flags.DEFINE_integer("rank", None, "K, number of factors.", lower_bound=1)
_EPOCHS = flags.DEFINE_integer("epochs", None, "Passes over the cells.", lower_bound=0)
_EARLY_STOPPING = flags.DEFINE_float(
    "early_stopping",
    None,
    "Ends the run after an epoch in which the objective fell by less than this part of itself.",
)
_EVALUATE_EVERY = flags.DEFINE_integer(
    "evaluate_every",
    1,
    "Epochs (sweeps of gibbs) between two evaluations of objective and errors, each with a"
    " checkpoint; 0 for the last alone. --early_stopping compares two evaluations.",
    lower_bound=0,
)
_INIT = flags.DEFINE_string(
    "init", None, "Start: uniform[:HALF_WIDTH], positive[:WIDTH] or normal[:DEVIATION]."
)
_STEP_SIZE = flags.DEFINE_string(
    "step_size",
    None,
    "constant:E, decay:E:POWER, bold_driver:E or adagrad:E; E may be `auto`, chosen on a sample.",
)
_SCHEDULE = flags.DEFINE_enum("schedule", "wor", strata.SCHEDULES, "Order of the strata.")
_POINT_ORDER = flags.DEFINE_enum(
    "point_order", "blocks", sgd.POINT_ORDERS, "How far the order of points is drawn anew."
)
_BLOCKS = flags.DEFINE_integer(
    "blocks", None, "Blocks per side, a multiple of --devices. Default: the devices.", lower_bound=1
)
_BLOCK_STORE = flags.DEFINE_string(
    "block_store",
    None,
    "Folder of the matrix cut into blocks on disk; made if missing. Training then holds the points"
    " of two strata at a time. --dataset may be synthetic:ROWSxCOLUMNSxCELLS_PER_ROW.",
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
    "burn_in", None, "gibbs: sweeps of each chain before its first kept draw (30).", lower_bound=0
)
_CHAINS = flags.DEFINE_integer(
    "chains", None, "gibbs: independent chains (2), which part the draws.", lower_bound=1
)
_PATTERN_FEATURES = flags.DEFINE_integer(
    "pattern_features",
    None,
    "gibbs: singular vectors of the pattern of observed cells, as features of rows and columns."
    " Default: 64, from 300,000 cells on 256.",
    lower_bound=0,
)
_ROW_NOISE = flags.DEFINE_float(
    "row_noise",
    None,
    "gibbs: shape a of the Gamma(a, a) prior of each row's share in the noise's precision (2); 0"
    " for rows all alike.",
    lower_bound=0,
)
_COLUMN_NOISE = flags.DEFINE_float(
    "column_noise", None, "gibbs: the same of the columns (3).", lower_bound=0
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

_OF_GIBBS = (
    *(_DRAWS, _BURN_IN, _CHAINS, _PATTERN_FEATURES, _ROW_NOISE, _COLUMN_NOISE, _LIKELIHOOD),
    _ENTRY_FEATURES,
)
# What means nothing to a sampler.
_NOT_OF_GIBBS = (
    *(_PENALTY, _REGULARIZATION, _BIASES, _EPOCHS, _EARLY_STOPPING, _INIT, _STEP_SIZE),
    *(_SCHEDULE, _POINT_ORDER, _BLOCKS, _BLOCK_STORE, _ALS_SOLVER),
)


@dataclasses.dataclass(frozen=True)
class Config:
    """One factorization; the names are those of the flags.

    `blocks` decides the result, the number of devices does not, so that it is no part of it.
    """

    dataset: str = "synthetic"
    test_input: str | None = None
    split: str = "random"
    fold: str = "u1"
    test_fraction: float = 0.1
    solver: str = "dsgd"
    loss: str = "squared"
    penalty: str = "weighted_l2"
    regularization: float = 0.05
    biases: bool = False
    rank: int = 32
    epochs: int = 20
    early_stopping: float | None = None
    evaluate_every: int = 1
    init: str = "uniform"
    step_size: str = "bold_driver:auto"
    schedule: str = "wor"
    point_order: str = "blocks"
    blocks: int = 1
    backend: str = "auto"
    block_store: str | None = None
    als_solver: str | None = None
    seed: int = 0


_predict = jax.jit(sums.predict)


def _rmse(factors: Factors, entries: Entries) -> float | None:
    if len(entries.values) == 0:
        return None
    fitted = _predict(factors, entries.rows, entries.columns)
    return float(np.sqrt(np.mean((entries.values - np.asarray(fitted)) ** 2, dtype=np.float64)))


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


class _Matrix(NamedTuple):
    """The points to factorize, and all that does not depend on how.

    Attributes:
      train: the points, centred; or the store that has them.
      terms: of the objective.
      mean: to give to `solver.add_mean`.
      scale: of the initial factors; None for the default.
      test: held-out cells, as they are.
      ids: names of rows and columns.
    """

    train: Entries | BlockStore
    terms: objectives.Terms
    mean: float
    scale: float | None
    test: Entries
    ids: tuple[np.ndarray, np.ndarray]

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
    terms = objectives.make_terms(objective, entries)
    _, scale = _parse_init(config.init)
    return _Matrix(entries, terms, mean, scale, test, (train.row_ids, train.column_ids))


def _read_store(
    config: Config, objective: Objective, work: SolverConfig, data_dir: str | None
) -> _Matrix:
    """Opens the block store; the first process builds it where there is none."""
    assert config.block_store is not None
    width = config.rank + 2 * config.biases if config.point_order == "blocks" else None
    made_from = {
        "dataset": config.dataset,
        "num_blocks": config.blocks,
        "width": width,
        "test_fraction": config.test_fraction,
        "seed": config.seed,
    }
    if processes.is_first() and not os.path.exists(config.block_store):
        print(f"building the block store {config.block_store}", flush=True)
        stream = entry_streams.open_stream(config.dataset, data_dir, config.seed)
        held_out = np.random.default_rng((config.seed, 4))
        try:
            block_store.build_store(
                config.block_store,
                stream.chunks,
                stream.shape,
                config.blocks,
                width,
                visits.sides_rng(work),
                visits.block_rng(work, 0),
                made_from,
                stream.ids,
                (config.test_fraction, held_out),
            )
        except block_store.DuplicateCell as error:
            if stream.given_twice is None:
                raise
            raise stream.given_twice(error.row, error.column) from None
    processes.from_first(None)  # The others wait until it is there.
    own = parallel.own_share(parallel.make_mesh(work.num_devices), config.blocks)
    store = block_store.open_store(config.block_store, made_from, own)
    store.check_values(objective)
    mean = store.mean if objective.record.centred else 0.0
    store = dataclasses.replace(store, shift=mean)
    init, scale = _parse_init(config.init)
    if scale is None:
        scale = solver.default_scale(objective, store.shape, store.moments, config.rank, init)
    terms = objectives.terms_of_counts(objective, store.row_count, store.column_count)
    return _Matrix(store, terms, mean, scale, store.test, store.ids())


def _read_matrix(
    config: Config, objective: Objective, work: SolverConfig, data_dir: str | None
) -> _Matrix:
    if config.block_store is None:
        return _read_table(config, objective, data_dir)
    from_store = SOLVERS[config.solver].from_store
    if from_store and config.split == "random" and config.test_input is None:
        return _read_store(config, objective, work, data_dir)
    raise ValueError(
        "a block store serves --solver=dsgd with the random split, got"
        f" {config.solver!r}, split {config.split!r} and test input {config.test_input}"
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
    """The rule for the step size, of which `auto` is chosen later."""
    rule = step_size.parse(config.step_size.replace(":auto", ""))
    if not SOLVERS[config.solver].reads_step_size:
        # A bold driver would want the objective after every epoch.
        return step_size.StepSize("constant")
    return rule


def _with_value(job: _Job, work: SolverConfig) -> _Job:
    """Chooses the first step size on a sample, where the flags say `auto`."""
    config, matrix, rule = job.config, job.matrix, job.rule
    if ":auto" not in config.step_size or not job.kind.reads_step_size:
        return job
    if processes.is_first():
        train = matrix.train
        sample = train.sample(50_000) if isinstance(train, BlockStore) else train
        init, _ = _parse_init(config.init)
        rule = solvers.choose_step_size(
            job.objective, sample, config.rank, rule, work, init, matrix.scale
        )
        job.log.print(f"step size {rule.value:g}, chosen on a sample")
    value = processes.from_first(rule.value)
    return job._replace(rule=dataclasses.replace(rule, value=value))


def _errors(job: _Job, state: Any) -> tuple[float | None, float | None]:
    """RMSE of the training points and, in the first process, of the test cells."""
    method, matrix = job.method, job.matrix
    factors = method.factors(state)
    if method.squared_error is not None:
        training = float(np.sqrt(method.squared_error(state) / matrix.num_points))
    else:
        training = _rmse(factors, matrix.in_memory)
    if not processes.is_first():
        return training, None
    return training, _rmse(solver.add_mean(job.objective, factors, matrix.mean), matrix.test)


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


def _train(job: _Job, progress: Progress, checkpointer: Checkpointer) -> Progress:
    """Runs the epochs that are left, with an evaluation and a checkpoint every few."""
    config, rule, log = job.config, job.rule, job.log
    every = config.evaluate_every or config.epochs
    before, seconds = progress.finite_objective, []
    with common.until_checkpoint() as leave_if_asked:
        while progress.epoch < config.epochs:
            used, done = progress.step_size, progress.epoch
            due = min(done - done % every + every, config.epochs)
            progress = solver.advance(job.method, rule, progress, due)
            seconds += [progress.seconds] * (progress.epoch - done)
            log.advance(progress.epoch - done)
            if progress.epoch < due:
                continue
            if not rule.reads_objective:
                used = rule.after(progress.epoch - 1, used, 0.0, 0.0)
            log.metrics(progress.epoch, _metrics(job, progress, used, seconds))
            checkpointer.save(progress.epoch, progress)
            leave_if_asked()
            fall = before - progress.objective
            before, seconds = progress.finite_objective, []
            if config.early_stopping is not None and 0 <= fall < config.early_stopping * (
                progress.objective + fall
            ):
                break
    return progress


def _metrics(
    job: _Job, progress: Progress, step_size_used: float, seconds: list[float]
) -> dict[str, float]:
    """A line of ``metrics.jsonl``; `seconds` are those of the epochs since the last."""
    errors = dict(zip(("train_rmse", "test_rmse"), _errors(job, progress.state), strict=True))
    return {
        "objective": progress.objective,
        **{name: value for name, value in errors.items() if value is not None},
        **({"step_size": step_size_used} if job.kind.reads_step_size else {}),
        "epoch_seconds": sum(seconds) / len(seconds),
        "epochs": len(seconds),
        "updates_per_second": job.matrix.num_points / max(min(seconds), 1e-9),
    }


def _finish(job: _Job, progress: Progress) -> dict[str, Any]:
    """Writes factors and summary."""
    matrix, workdir = job.matrix, job.log.workdir
    train_rmse, test_rmse = _errors(job, progress.state)
    factors = solver.add_mean(job.objective, job.method.factors(progress.state), matrix.mean)
    path = workdir / "factors.safetensors"
    if processes.is_first():
        save_factors(path, factors, *matrix.ids)
    lines = read_metrics(workdir) if processes.is_first() else []
    tests = [line["test_rmse"] for line in lines if "test_rmse" in line]
    results = {
        "objective": progress.finite_objective,
        "train_rmse": train_rmse,
        "test_rmse": test_rmse,
        "best_test_rmse": min(tests, default=None),
        "epochs": progress.epoch,
        "seconds_training": sum(line["epoch_seconds"] * line["epochs"] for line in lines),
        # The first epoch compiles.
        "updates_per_second": max((line["updates_per_second"] for line in lines), default=None),
    }
    job.log.print(
        f"objective {results['objective']:.6g}, RMSE {train_rmse:.4f} in training"
        + ("" if test_rmse is None else f", {test_rmse:.4f} on the test cells")
        + f"; wrote {path} and summary.json"
    )
    return job.log.finish(results)


def run(
    config: Config,
    workdir: str | os.PathLike,
    data_dir: str | None = None,
    num_devices: int | None = None,
) -> dict[str, Any]:
    """Factorizes, or resumes, and scores; returns what ``summary.json`` holds.

    Of several processes the first alone reads and writes the workdir.

    Raises:
      ValueError: the data cannot be read or split, loss and solver do not go together, the solver
        does not run in several processes or from a store, the steps diverged, or the workdir holds
        another configuration.
    """
    objective = Objective(config.loss, config.penalty, config.regularization, config.biases)
    solvers.check_solver(objective, config.solver)
    rule = _rule(config)
    init, _ = _parse_init(config.init)
    work = SolverConfig(
        config.blocks,
        num_devices or 1,
        config.schedule,
        _conjugate_steps(config.als_solver),
        point_order=config.point_order,
        backend=config.backend,
        per_row=rule.per_row,
        seed=config.seed,
    )
    if processes.count() > 1 and not SOLVERS[config.solver].several_processes:
        raise ValueError(
            f"the solver {config.solver!r} runs in one process, but there are"
            f" {processes.count()}; take --solver=dsgd or psgd, or start one process"
        )
    matrix = _read_matrix(config, objective, work, data_dir)
    factors = solver.initial_factors(
        objective,
        matrix.in_memory,
        matrix.terms,
        config.rank,
        np.random.default_rng(config.seed),
        init,
        matrix.scale,
    )
    if isinstance(matrix.train, BlockStore):
        method = dsgd.solve_blocks(objective, matrix.train, work, matrix.terms)
    else:
        width = factors.u.shape[1]
        method = solvers.make_solver(config.solver, objective, matrix.train, work, None, width)
    log = open_run_log(workdir, "factorize", config)
    job = _with_value(_Job(config, objective, matrix, method, rule, log), work)
    progress = solver.start(method, factors, job.rule)
    del factors
    checkpointer = Checkpointer(workdir, log.print)
    progress = _restored(checkpointer, progress)
    log.resume_at(progress.epoch)
    log.start_progress(config.epochs, progress.epoch, "epoch")
    return _finish(job, _train(job, progress, checkpointer))


def _chosen() -> dict[str, Any]:
    """What the preset sets, and flags change; loss and penalty by their own names."""
    given = {
        "loss": _LOSS.value,
        "penalty": _PENALTY.value,
        "regularization": _REGULARIZATION.value,
        "biases": _BIASES.value,
        "rank": _RANK.value,
        "epochs": _EPOCHS.value,
        "init": _INIT.value,
        "step_size": _STEP_SIZE.value,
    }
    chosen = {**_DEFAULTS, **_PRESETS[common.PRESET.value]}
    chosen.update((name, value) for name, value in given.items() if value is not None)
    if chosen["loss"] in objectives.ALIASES and given["penalty"] is None:
        chosen["penalty"] = None  # The alias names its own, whatever the preset's is.
    if chosen["penalty"] is None and chosen["loss"] not in objectives.ALIASES:
        chosen["penalty"] = "weighted_l2"
    chosen["loss"], chosen["penalty"] = objectives.resolve_names(chosen["loss"], chosen["penalty"])
    return chosen


def _of_sampler() -> sample.Config:
    """What the preset sets, and flags change.

    Raises:
      ValueError: a flag is given that does not apply to sampling.
    """
    given = [f"--{flag.name}" for flag in _NOT_OF_GIBBS if flag.present]
    if given:
        raise ValueError(f"--solver=gibbs does not read {', '.join(given)}; leave it out")
    if _LOSS.value not in (None, "squared"):
        raise ValueError(
            "the solver 'gibbs' serves the loss squared (Gaussian noise), got"
            f" {_LOSS.value!r}; solvers that serve it: {', '.join(_serving(_LOSS.value))}"
        )
    chosen = dict(sample.PRESETS[common.PRESET.value])
    chosen.update((flag.name, flag.value) for flag in (_RANK, *_OF_GIBBS) if flag.value is not None)
    return sample.Config(
        dataset=_INPUT.value or _DATASET.value,
        test_input=_TEST_INPUT.value,
        split=_SPLIT.value,
        fold=_FOLD.value,
        test_fraction=_TEST_FRACTION.value,
        evaluate_every=_EVALUATE_EVERY.value,
        backend=_BACKEND.value,
        seed=common.SEED.value,
        **chosen,
    )


def _serving(loss: str) -> list[str]:
    """The solvers that serve a loss or an alias."""
    name, _ = objectives.resolve_names(loss, None if loss in objectives.ALIASES else "none")
    return [solver_name for solver_name, kind in SOLVERS.items() if name in kind.losses]


def main() -> None:
    several = common.DEVICES.value or processes.count() > 1
    num_devices = len(parallel.devices()) if several else 1
    if common.WORKDIR.value is None:
        raise ValueError("--workdir is needed: the folder for the run's files")
    where = common.WORKDIR.value, common.DATA_DIR.value
    if _SOLVER.value == "gibbs":
        config = _of_sampler()
        with common.profiled(common.WORKDIR.value):
            sample.run(config, *where, num_devices)
        return
    given = [f"--{flag.name}" for flag in _OF_GIBBS if flag.present]
    if given:
        raise ValueError(f"--solver=gibbs alone reads {', '.join(given)}; leave it out")
    if not SOLVERS[_SOLVER.value].several_devices:
        num_devices = 1
    config = Config(
        dataset=_INPUT.value or _DATASET.value,
        test_input=_TEST_INPUT.value,
        split=_SPLIT.value,
        fold=_FOLD.value,
        test_fraction=_TEST_FRACTION.value,
        solver=_SOLVER.value,
        early_stopping=_EARLY_STOPPING.value,
        evaluate_every=_EVALUATE_EVERY.value,
        schedule=_SCHEDULE.value,
        point_order=_POINT_ORDER.value,
        blocks=_BLOCKS.value or num_devices,
        backend=_BACKEND.value,
        block_store=_BLOCK_STORE.value,
        als_solver=_ALS_SOLVER.value,
        seed=common.SEED.value,
        **_chosen(),
    )
    with common.profiled(common.WORKDIR.value):
        run(config, *where, num_devices)


if __name__ == "__main__":
    common.run_main(main, several_processes=True)
