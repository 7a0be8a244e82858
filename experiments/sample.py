"""Samples the posterior of one large matrix, for ``experiments.factorize --solver=gibbs|dsgld``.

The chains' states, the sum of the draws' answers for the test cells and the traces by which mixing
is judged are a checkpoint; kept draws are files of their own in ``WORKDIR/draws`` until the end,
when they become ``draws.safetensors``, from which ``experiments.predict`` answers.
"""

import contextlib
import dataclasses
import os
import pathlib
import shutil
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments import by_counts, common, splits, stores
from metamf_jax import processes
from metamf_jax.data import sources, tables
from metamf_jax.data.tables.features import read_features
from metamf_jax.factorization import pattern_prior, step_size
from metamf_jax.factorization.block_store import BlockStore
from metamf_jax.factorization.dsgd import DsgdConfig
from metamf_jax.factorization.factor_file import load_factors
from metamf_jax.posterior import (
    chains,
    draws_file,
    entry_effects,
    fit,
    gibbs,
    langevin,
    learned_hyperprior,
    ordinal,
    pattern,
    predictive,
    row_conditional,
)
from metamf_jax.posterior.chains import ChainsConfig
from metamf_jax.posterior.entry_effects import Group, Places
from metamf_jax.posterior.fold_in import Recipe
from metamf_jax.posterior.gibbs import GibbsConfig, State
from metamf_jax.posterior.given import GivenFeatures, given_features, none_given
from metamf_jax.posterior.langevin import LangevinConfig
from metamf_jax.posterior.predictive import Scale
from metamf_jax.runs import resources
from metamf_jax.runs.checkpoint import Checkpointer
from metamf_jax.runs.run_log import RunLog, open_run_log
from metamf_jax.types import Entries, Factors

# What a solver sets where neither preset nor flag does: an epoch goes a part of a sweep's way.
SOLVERS = {"gibbs": {}, "dsgld": {"burn_in": 120, "thin": 3, "blocks": 8}}

# What a preset sets where no flag does.
PRESETS = {
    "smoke": {"rank": 4, "draws": 8, "burn_in": 2, "pattern_features": 4},
    "tiny": {},
    "paper": {},
    "best": {"rank": 48, "draws": 200, "chains": 4, "pattern_features": 512},
}

# Of the precision's prior. Where the noise's deviation is the unit, factors are larger: on a tenth
# of u1's training entries 2, 4, 6 and 12 had errors of 0.8843, 0.8832, 0.8826 and 0.8853.
_FACTOR_SCALES = {"gaussian": 2.0, "ordinal": 5.0}

# Shapes of the noise of rows and columns where nothing was learned.
_SHARES = 2.0, 3.0

# Cells whose fitted values are watched, and test cells whose intervals are.
_WATCHED, _COVERED = 100, 20_000
_INTERVAL = 0.05, 0.95
_FEWEST_DRAWS_OF_A_CHAIN = 4

# What a chain on a block store holds: so many times the factors, and strata.
_COPIES, _STRATA, _ENTRY_BYTES = 16, 4, 12


@dataclasses.dataclass(frozen=True)
class Config:
    """One posterior; the names are those of the flags.

    `prior` is the file of a learned hyperprior; `row_noise` and `column_noise` are None for what it
    says, or for 2 and 3 without one.
    `pattern_features` is None for a number that is chosen from the number of entries; `blocks`,
    `block_store` and `step_size` are read by ``dsgld`` alone. `start` is a file of factors.
    """

    dataset: str = "synthetic"
    test_input: str | None = None
    split: str = "random"
    fold: str = "u1"
    test_fraction: float = 0.1
    solver: str = "gibbs"
    rank: int = 32
    draws: int = 100
    burn_in: int = 30
    thin: int = 1
    chains: int = 2
    pattern_features: int | None = None
    row_features: str | None = None
    column_features: str | None = None
    row_noise: float | None = None
    column_noise: float | None = None
    prior: str | None = None
    likelihood: str = "gaussian"
    entry_features: Sequence[str] = ()
    step_size: str = "constant:1"
    blocks: int = 1
    block_store: str | None = None
    start: str | None = None
    evaluate_every: int = 1
    backend: str = "auto"
    seed: int = 0

    @property
    def model(self) -> GibbsConfig:
        """What is sampled, and by which steps.

        Raises:
          ValueError: a number out of range, or a rule for the steps or a model that the sampler has
            not, or what a block store has not.
        """
        self._check_store()
        if self.start is not None and self.likelihood != "gaussian":
            raise ValueError("--start has factors of values: leave out it or --likelihood=ordinal")
        learned = None if self.prior is None else learned_hyperprior.load(self.prior)
        if learned is not None and self.likelihood == "ordinal":
            learned = learned.in_units_of_noise()
        expected = learned.shares if learned else _SHARES
        given = zip((self.row_noise, self.column_noise), expected, strict=True)
        noises = (shape if noise is None else noise for noise, shape in given)
        shared: dict[str, Any] = dict(
            zip(("rank", "row_noise", "column_noise"), (self.rank, *noises), strict=True)
        )
        if self.solver == "gibbs":
            return GibbsConfig(
                **shared,
                factor_scale=_FACTOR_SCALES[self.likelihood],
                likelihood=self.likelihood,
                learned=learned,
            )
        if self.likelihood != "gaussian" or self.entry_features:
            raise ValueError(
                f"--solver={self.solver} samples Gaussian values without effects of entries:"
                " --likelihood=ordinal and --entry_features are read by --solver=gibbs"
            )
        rule = step_size.parse(self.step_size)
        if rule.name not in ("constant", "decay"):
            raise ValueError(
                f"--solver={self.solver} takes --step_size=constant:E or decay:E:POWER, got"
                f" {self.step_size!r}"
            )
        power = rule.power if rule.name == "decay" else 0.0
        return LangevinConfig(**shared, learned=learned, step=rule.value, decay=power)

    def _check_store(self) -> None:
        if self.block_store is None:
            return
        if self.solver != "dsgld":
            raise ValueError(
                f"--solver={self.solver} samples from memory: leave --block_store out, or take"
                " --solver=dsgld"
            )
        if self.split != "random" or self.test_input is not None:
            raise ValueError(
                f"a block store has a random split, got split {self.split!r} and test input"
                f" {self.test_input}"
            )
        if self.pattern_features:
            raise ValueError(
                "singular vectors of the pattern are found in memory: with --block_store expected"
                f" --pattern_features=0, got {self.pattern_features}"
            )

    @property
    def lengths(self) -> ChainsConfig:
        """For how long."""
        return ChainsConfig(self.chains, self.burn_in, self.draws, self.thin, self.seed)


class _Matrix(NamedTuple):
    """The matrix, and what it is judged by.

    Attributes:
      train: the entries, standardised; or the store that has them.
      scale: of the values.
      levels: the distinct values; None of a store.
      test: held-out entries, as they are.
      ids: names of rows and columns.
      given: features of both, from the user's tables.
      groups: of effects of the entries.
      effects: which effects the training entries have; None without such.
      test_effects: [G, T], `Places.at` of the test entries; likewise.
    """

    train: Entries | BlockStore
    scale: Scale
    levels: np.ndarray | None
    test: Entries
    ids: tuple[np.ndarray, np.ndarray]
    given: tuple[GivenFeatures, GivenFeatures]
    groups: tuple[Group, ...] = ()
    effects: Places | None = None
    test_effects: np.ndarray | None = None


class _Cells(NamedTuple):
    """Some entries.

    Attributes:
      rows, columns, values: [P].
      effects: [G, P], `Places.at`; None without effects of the entries.
    """

    rows: np.ndarray
    columns: np.ndarray
    values: np.ndarray
    effects: np.ndarray | None


class _Traces(NamedTuple):
    """Of each chain, in the order of its kept draws; S / C of them.

    Attributes:
      alpha: [C, S / C], the precision of the noise.
      norm: [C, S / C], of ``U V^T``.
      predictions: [C, S / C, W], fitted values of the watched cells.
    """

    alpha: np.ndarray
    norm: np.ndarray
    predictions: np.ndarray


class _Progress(NamedTuple):
    """Where a run stands.

    Attributes:
      sweep: sweeps done.
      states: of the chains.
      total: [T] float64, the kept draws' answers for the test cells, summed.
      traces: of the kept draws; zeros where there are none yet.
    """

    sweep: int
    states: list[State]
    total: np.ndarray
    traces: _Traces


class _Job(NamedTuple):
    """What stays the same from sweep to sweep."""

    config: Config
    matrix: _Matrix
    data: chains.Data
    recipes: tuple[Recipe, Recipe]
    log: RunLog

    @property
    def watched(self) -> _Cells:
        """Up to `_WATCHED` cells: of the test entries, or of all where there are none.

        Of a store without test entries any cells.
        """
        matrix = self.matrix
        if len(matrix.test.values):
            return _some(matrix.test, matrix.test_effects, _WATCHED)
        if isinstance(matrix.train, BlockStore):
            rng = np.random.default_rng(self.config.seed)
            rows, columns = (rng.integers(size, size=_WATCHED) for size in matrix.train.shape)
            return _Cells(rows, columns, np.zeros(_WATCHED), None)
        return _some(matrix.train, matrix.effects and matrix.effects.at, _WATCHED)

    @property
    def result(self) -> pathlib.Path:
        """The file of all draws."""
        return self.log.workdir / "draws.safetensors"

    def path(self, number: int) -> pathlib.Path:
        """The file of one draw, until all are there."""
        return self.log.workdir / "draws" / f"{number}.safetensors"


def _some(entries: Entries, effects: np.ndarray | None, count: int) -> _Cells:
    """Up to so many entries, spread over their order."""
    size = len(entries.values)
    some = np.arange(min(count, size)) * size // max(1, min(count, size))
    listed = entries.rows, entries.columns, entries.values
    rows, columns, values = (np.asarray(x)[some] for x in listed)
    return _Cells(rows, columns, values, None if effects is None else effects[:, some])


def _read_store(config: Config, num_devices: int, data_dir: str | None) -> _Matrix:
    """Opens or builds the block store."""
    assert config.block_store is not None
    store = stores.opened(
        config.block_store,
        config.dataset,
        data_dir,
        config.test_fraction,
        _cut(config, num_devices),
        langevin.cut_width(config.model),
    )
    store, scale = fit.standardised_store(store)
    ids = store.ids()
    given = (
        _given(config.row_features, "row", ids[0]),
        _given(config.column_features, "column", ids[1]),
    )
    return _Matrix(store, scale, None, store.test, ids, given)


def _cut(config: Config, num_devices: int) -> DsgdConfig:
    """How Langevin dynamics cuts the matrix."""
    return DsgdConfig(
        num_blocks=config.blocks,
        num_devices=num_devices,
        backend=config.backend,
        seed=config.seed,
    )


def _read_matrix(config: Config, num_devices: int, data_dir: str | None) -> _Matrix:
    if config.block_store is not None:
        return _read_store(config, num_devices, data_dir)
    table = sources.load(config.dataset, data_dir, config.seed)
    names = (field.name for field in dataclasses.fields(splits.Split) if field.name != "kind")
    split = splits.Split(kind=config.split, **{name: getattr(config, name) for name in names})
    train, test = splits.split_table(table, split, data_dir)
    entries = train.entries
    if len(entries.values) == 0:
        raise ValueError(f"{config.dataset} leaves no entries to sample from; hold out fewer")
    scale = fit.scale_of(entries.values, config.likelihood)
    listed = fit.standardised(entries, scale)
    levels = np.unique(entries.values)
    ids = train.row_ids, train.column_ids
    given = (
        _given(config.row_features, "row", train.row_ids),
        _given(config.column_features, "column", train.column_ids),
    )
    matrix = _Matrix(listed, scale, levels, test.entries, ids, given)
    if not config.entry_features:
        return matrix
    groups = entry_effects.make_groups(listed.rows, listed.columns, train.entry_features)
    effects, of_test = (
        entry_effects.places(groups, part.entries.rows, part.entries.columns, part.entry_features)
        for part in (train, test)
    )
    return matrix._replace(groups=groups, effects=effects, test_effects=of_test.at)


def _prepare(
    config: Config, matrix: _Matrix, num_devices: int, log: RunLog
) -> tuple[chains.Data, tuple[Recipe, Recipe]]:
    """Deals out the matrix, with its features; and how those of further rows are computed."""
    count, entries = config.pattern_features, matrix.train
    if isinstance(entries, BlockStore):
        features = pattern.count_features(entries.row_count, entries.column_count)
    else:
        if count is None:
            count = fit.num_pattern_vectors(entries)
            log.print(f"{count} singular vectors of the pattern of {len(entries.values)} entries")
        features = fit.features_of(entries, count, config.seed)
    model, (of_sides, groups) = config.model, fit.joined(features, matrix.given)
    recipes = (
        Recipe(features[0], matrix.given[0], model.row_noise),
        Recipe(features[1], matrix.given[1], model.column_noise),
    )
    if isinstance(model, LangevinConfig):
        cut = _cut(config, num_devices)
        return langevin.prepare(entries, of_sides, groups, model, cut), recipes
    assert not isinstance(entries, BlockStore)
    prepared = gibbs.prepare(
        entries, of_sides, groups, model, num_devices, config.backend, matrix.effects
    )
    return prepared, recipes


def _given(path: str | None, side: str, ids: np.ndarray) -> GivenFeatures:
    """What the user's table tells of the rows (or columns) with these ids."""
    if path is None:
        return none_given(len(ids))
    table = read_features(path, side)
    lines = tables.positions(ids, table.ids)
    found, told = given_features(table, lines), int((lines >= 0).sum())
    print(
        f"{found.features.shape[1]} features of {path} for {told} of {len(ids)} {side}s; the others"
        f" are taken for average, {len(table.ids) - told} lines are of further {side}s"
    )
    return found


def _running_bytes(config: Config, matrix: _Matrix, bytes_of_draw: int) -> int:
    """About what the chains of Langevin dynamics from a store take, beside the draws they leave."""
    store = matrix.train
    if not isinstance(store, BlockStore):
        return 0
    longest = int((store.offsets[:, :, -1] - store.offsets[:, :, 0]).max())
    of_strata = _STRATA * _ENTRY_BYTES * len(store.own) * longest
    return config.chains * (_COPIES * bytes_of_draw + of_strata)


def _require_room(config: Config, matrix: _Matrix, workdir: pathlib.Path) -> None:
    """Refuses draws for which there is no memory or no disk.

    Raises:
      ValueError: telling what they need and what is free.
    """
    if (workdir / "draws.safetensors").exists():
        return
    shape, num_effects = matrix.train.shape, sum(len(group.keys) for group in matrix.groups)
    needed = draws_file.size_in_bytes(shape, config.rank, config.draws, num_effects)
    there = sum(path.stat().st_size for path in workdir.glob("draws/*.safetensors"))
    folder = next(p for p in (workdir.absolute(), *workdir.absolute().parents) if p.exists())
    memory, disk = resources.available_memory_bytes(), shutil.disk_usage(folder).free
    lacking, running = [], _running_bytes(config, matrix, needed // config.draws)
    if memory is not None and needed + running > memory:
        beside = f" beside {running / 1e9:.1f} GB for the chains" if running else ""
        lacking.append(
            f"{needed / 1e9:.1f} GB of memory{beside}, of which {memory / 1e9:.1f} are free"
        )
    # One file each, and then all in one.
    if 2 * needed - there > disk:
        lacking.append(
            f"{(2 * needed - there) / 1e9:.1f} GB on the disk of {folder}, of which"
            f" {disk / 1e9:.1f} are free"
        )
    if lacking:
        raise ValueError(
            f"{config.draws} draws of {shape[0]} rows and {shape[1]} columns at rank"
            f" {config.rank} need {' and '.join(lacking)}; take fewer --draws or a smaller --rank"
        )


def _start(job: _Job) -> _Progress:
    lengths = job.config.lengths
    of_chains = lengths.num_chains, lengths.num_draws // lengths.num_chains
    watched = len(job.watched.rows)
    traces = _Traces(*(np.zeros((*of_chains, *rest)) for rest in ((), (), (watched,))))
    states = chains.init(job.data, job.config.model, lengths)
    if job.config.start is not None:
        factors = _factors_to_start_from(job.config.start, job.matrix.ids)
        states = [fit.start_from(state, factors, job.matrix.scale) for state in states]
    return _Progress(0, states, np.zeros(len(job.matrix.test.values)), traces)


def _factors_to_start_from(path: str, ids: tuple[np.ndarray, np.ndarray]) -> Factors:
    """Those of a file, of the same rows and columns in the same order.

    Raises:
      ValueError: the file cannot be read, or has others.
    """
    factors, *there = load_factors(path)
    for side, own, found in zip(("row", "column"), ids, there, strict=True):
        if not np.array_equal(own, found):
            raise ValueError(
                f"{path}: expected factors of the {len(own)} {side}s of this matrix in their order,"
                f" got those of {len(found)}, some of which differ; factorize the same input"
            )
    return factors


def _answers(job: _Job, state: State) -> np.ndarray:
    """One draw's for the test cells."""
    scale, test = job.matrix.scale, job.matrix.test
    return predictive.answers(state, scale, test.rows, test.columns, job.matrix.test_effects)


def _fitted(state: State, cells: _Cells) -> np.ndarray:
    """The standardised (or latent) values of cells under one draw."""
    factors = state.rows.factors, state.columns.factors
    found = np.asarray(row_conditional.fitted(*factors, cells.rows, cells.columns))
    if cells.effects is None:
        return found
    return found + entry_effects.total(state.effects.values, cells.effects)


def _kept(job: _Job, progress: _Progress) -> _Progress:
    """Writes the draws of a sweep, and adds them to what is told of all."""
    config = job.config
    at = (progress.sweep - config.burn_in) // config.thin - 1
    total, traces = progress.total, _Traces(*(x.copy() for x in progress.traces))
    for chain, state in enumerate(progress.states):
        total = total + _answers(job, state)
        traces.alpha[chain, at] = state.alpha
        traces.norm[chain, at] = chains.norm_of_product(state)
        traces.predictions[chain, at] = _fitted(state, job.watched)
        if processes.is_first():
            draws_file.save_draw(job.path(at * config.chains + chain), state)
    return progress._replace(total=total, traces=traces)


def _sample(job: _Job, progress: _Progress, checkpointer: Checkpointer) -> _Progress:
    """Runs the sweeps that are left, with an evaluation and a checkpoint every few."""
    config, log = job.config, job.log
    lengths = config.lengths
    every, seconds = config.evaluate_every or lengths.num_sweeps, []
    if processes.is_first() and progress.sweep < lengths.num_sweeps:
        (log.workdir / "draws").mkdir(exist_ok=True)
    left = chains.sweeps(progress.states, job.data, config.model, lengths, progress.sweep + 1)
    with common.until_checkpoint() as leave_if_asked, contextlib.closing(left):
        begin = time.perf_counter()
        for sweep, states in left:
            seconds.append(time.perf_counter() - begin)
            progress = progress._replace(sweep=sweep, states=states)
            if lengths.keeps(sweep):
                progress = _kept(job, progress)
            log.advance()
            if sweep % every == 0 or sweep == lengths.num_sweeps:
                log.metrics(sweep, _metrics(job, progress, seconds))
                checkpointer.save(sweep, progress)
                leave_if_asked()
                seconds = []
            begin = time.perf_counter()
    return progress


def _rmse(job: _Job, total: np.ndarray, count: int) -> float | None:
    """Of the mean of so many answers."""
    values = job.matrix.test.values
    if len(values) == 0 or count == 0:
        return None
    return float(np.sqrt(np.mean((total / count - values) ** 2)))


def _metrics(job: _Job, progress: _Progress, seconds: list[float]) -> dict[str, float]:
    """A line of ``metrics.jsonl``; `seconds` are those of the sweeps since the last."""
    config, states = job.config, progress.states
    num_draws = max(0, progress.sweep - config.burn_in) // config.thin * config.chains
    of_sweep = sum(_answers(job, state) for state in states)
    errors = {
        "test_rmse": _rmse(job, progress.total, num_draws),
        # Of the mean of this sweep's draws alone.
        "sweep_test_rmse": _rmse(job, np.asarray(of_sweep), len(states)),
    }
    return {
        **{name: value for name, value in errors.items() if value is not None},
        "alpha": float(np.mean([state.alpha for state in states])),
        "draws": num_draws,
        "sweep_seconds": sum(seconds) / len(seconds),
    }


def _mixing(traces: _Traces) -> dict[str, float]:
    """R-hat and effective sizes; of the watched cells the worst."""
    if traces.alpha.shape[1] < _FEWEST_DRAWS_OF_A_CHAIN:
        return {}
    found = {}
    for name, values in traces._asdict().items():
        found[f"r_hat_{name}"] = float(np.max(chains.r_hat(values)))
        found[f"effective_size_{name}"] = float(np.min(chains.effective_size(values)))
    return found


def _gathered(job: _Job) -> draws_file.NamedDraws:
    """All draws, from the one file or the many; writes the one."""
    if job.result.exists():
        named = draws_file.load_draws(job.result)
    else:
        draws = draws_file.gather([job.path(n) for n in range(job.config.draws)])
        matrix = job.matrix
        named = draws_file.NamedDraws(draws, matrix.scale, *matrix.ids, job.recipes, matrix.groups)
        draws_file.save_draws(job.result, named)
    shutil.rmtree(job.log.workdir / "draws", ignore_errors=True)
    return named


def _errors_by_counts(job: _Job, answers: np.ndarray) -> dict[str, Any]:
    """Of the answers [T] for the test cells; see `by_counts.errors`."""
    train, test = job.matrix.train, job.matrix.test
    if isinstance(train, BlockStore):
        return by_counts.errors(train.row_count, train.column_count, test, answers)
    return by_counts.errors(*pattern_prior.counts_of(train), test, answers)


def _coverage(job: _Job, named: draws_file.NamedDraws) -> float | None:
    """The part of (at most `_COVERED`) test cells that lie in their 90% interval."""
    rows, columns, values, at = _some(job.matrix.test, job.matrix.test_effects, _COVERED)
    if len(values) == 0:
        return None
    found = predictive.predict(named.draws, named.scale, rows, columns, _INTERVAL, at)
    low, high = found.quantiles
    return float(((low <= values) & (values <= high)).mean())


def _log_score(job: _Job, named: draws_file.NamedDraws) -> float | None:
    """Of (at most `_COVERED`) test cells' levels; None where there are none, or too many."""
    rows, columns, values, at = _some(job.matrix.test, job.matrix.test_effects, _COVERED)
    levels = job.matrix.levels
    if (
        levels is None
        or len(values) == 0
        or len(levels) > ordinal.MAX_LEVELS
        or not np.isin(values, levels).all()
    ):
        return None
    return predictive.log_score(named.draws, named.scale, levels, rows, columns, values, at)


def _finish(job: _Job, progress: _Progress) -> dict[str, Any]:
    """Writes the draws and the summary."""
    config, log = job.config, job.log
    of_counts = _errors_by_counts(job, progress.total / config.draws)
    results: dict[str, Any] = {
        "test_rmse": _rmse(job, progress.total, config.draws),
        **of_counts,
        "alpha": float(progress.traces.alpha.mean()),
        "draws": config.draws,
        "sweeps": progress.sweep,
        **_mixing(progress.traces),
    }
    if processes.is_first():
        named = _gathered(job)
        results["test_coverage_90"] = _coverage(job, named)
        results["test_log_score"] = _log_score(job, named)
    told = []
    if results["test_rmse"] is not None:
        told.append(f"RMSE {results['test_rmse']:.4f} on the test cells")
    if "r_hat_predictions" in results:
        told.append(f"largest R-hat of predictions {results['r_hat_predictions']:.3f}")
    told.append(f"wrote {job.result} and summary.json")
    for line in by_counts.told(of_counts):
        log.print(line)
    log.print("; ".join(told))
    return log.finish(results)


def run(
    config: Config,
    workdir: str | os.PathLike,
    data_dir: str | None = None,
    num_devices: int | None = None,
) -> dict[str, Any]:
    """Samples, or resumes, and scores; returns what ``summary.json`` holds.

    Of several processes the first alone reads and writes the workdir.

    Raises:
      ValueError: the data cannot be read or split, there is no room for the draws, or the workdir
        holds another configuration.
    """
    # A wrong number is refused before anything is read.
    _, lengths = config.model, config.lengths
    matrix = _read_matrix(config, num_devices or 1, data_dir)
    if processes.is_first():
        _require_room(config, matrix, pathlib.Path(workdir))
    log = open_run_log(workdir, "factorize", config)
    job = _Job(config, matrix, *_prepare(config, matrix, num_devices or 1, log), log)
    checkpointer = Checkpointer(workdir, log.print)
    progress = _start(job)
    restored = checkpointer.restore(progress)
    if restored is not None:
        progress = restored._replace(sweep=int(restored.sweep))
    log.resume_at(progress.sweep)
    log.start_progress(lengths.num_sweeps, progress.sweep, "sweep")
    return _finish(job, _sample(job, progress, checkpointer))
