"""Measures what JAX finds, a GPU or a CPU: its answers, its sweeps and its updates of SGD.

Claim: on a GPU the methods for one matrix give the CPU's answers. How fast they are is asked, not
claimed: of DSGD nothing is expected, since XLA's loop takes one entry after the other, whatever the
number of blocks, and what the same step would do over many blocks abreast stands beside. So does,
last and where it runs, the backend `mosaic_gpu`: whether it gives XLA's factors, and its updates.
What memory and links of larger machines allow an epoch of a billion entries is counted.

    python -m experiments.benchmarks.accelerator --measure=speed,sweeps,updates --preset=paper
    JAX_PLATFORMS=cpu python -m experiments.benchmarks.accelerator --measure=answers --output=A.npz

Each finding is a line of JSON, printed as soon as it is known. `launch.gpu_check` runs this on both
platforms and compares. It has not been run on a GPU yet.
"""

import dataclasses
import functools
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import common, shared_flags
from experiments.benchmarks import epoch_bounds
from metamf_jax import parallel, sums
from metamf_jax.data import synthetic
from metamf_jax.factorization import (
    als,
    block_objective,
    block_update,
    dealt_rows,
    dsgd,
    sgd,
    solver,
    solvers,
    visits,
)
from metamf_jax.factorization import objective as objectives
from metamf_jax.factorization.dsgd import DsgdConfig
from metamf_jax.factorization.objective import Objective, SideTerms, Terms
from metamf_jax.factorization.sgd import Squares
from metamf_jax.factorization.solvers import SolverConfig
from metamf_jax.imputation import completion, pipeline
from metamf_jax.imputation.prior import load_prior
from metamf_jax.meta_learning import meta_loss
from metamf_jax.meta_learning.encoder import EncoderConfig
from metamf_jax.meta_learning.episodes import (
    EpisodeConfig,
    EpisodeSource,
    fit_standardization,
    standardize,
)
from metamf_jax.meta_learning.map_estimation import MapConfig, map_estimate
from metamf_jax.posterior import chains, fit, gibbs
from metamf_jax.runs.files import written_aside
from metamf_jax.runs.run_log import RunLog
from metamf_jax.types import Entries, FactorPrior, Factors

MEASURES = ("speed", "answers", "sweeps", "updates", "kernel", "bounds")

_MEASURE = flags.DEFINE_list("measure", list(MEASURES), f"Of {', '.join(MEASURES)}.")
_KERNELS = flags.DEFINE_bool("kernels", True, "Whether compiled kernels may run, on a CPU.")
_OUTPUT = shared_flags.output()

_SQUARED = Objective("squared", "weighted_l2", 0.05)


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured.

    Attributes:
      measures: of `MEASURES`.
      ranks: K.
      shape: of the matrix of sweeps.
      cells: its entries.
      big_shape: of the matrix of updates.
      big_cells: its entries, if there is time; else fewer.
      kernel_cells: its entries when `mosaic_gpu` updates them, likewise.
      seconds: that the timed epoch of updates may take about.
      abreast: numbers of blocks whose entries are taken side by side.
      batch_floats: sizes of the batches of rows, see `dealt_rows.BATCH_FLOATS`.
      side: of the square matrices that are multiplied.
      repeats: timed calls.
      kernels: whether compiled kernels may run.
      seed: of everything.
    """

    measures: tuple[str, ...] = MEASURES
    ranks: tuple[int, ...] = (32, 128)
    shape: tuple[int, int] = (6040, 3706)
    cells: int = 1_000_000
    big_shape: tuple[int, int] = (480_000, 17_000)
    big_cells: int = 100_000_000
    kernel_cells: int = 20_000_000
    seconds: float = 6.0
    abreast: tuple[int, ...] = (64, 1024, 8192)
    batch_floats: tuple[int, ...] = (dealt_rows.BATCH_FLOATS, 1 << 26)
    side: int = 8192
    repeats: int = 3
    kernels: bool = True
    seed: int = 0

    @property
    def backend(self) -> str:
        """Of `block_update`, and of `sums`."""
        return "auto" if self.kernels else "xla"


PRESETS = {
    "smoke": Config(
        ranks=(4,),
        shape=(60, 40),
        cells=500,
        big_shape=(60, 40),
        big_cells=500,
        kernel_cells=500,
        seconds=0.0,
        abreast=(4,),
        batch_floats=(dealt_rows.BATCH_FLOATS,),
        side=64,
        repeats=1,
    ),
    "tiny": Config(
        shape=(600, 370),
        cells=20_000,
        big_shape=(6000, 3700),
        big_cells=1_000_000,
        kernel_cells=1_000_000,
        seconds=1.0,
        abreast=(64,),
        side=1024,
    ),
    "paper": Config(),
    "best": Config(),
}

# Largest difference of the kernel's factors from XLA's, in parts of the largest.
_ALLOWED = 1e-4

# Entries of the first epoch of updates that is timed, and of each of the blocks abreast.
_FEW, _EACH = 20_000, 128


class Task(NamedTuple):
    """Something to find out.

    Attributes:
      about: what tells it from others.
      find: gives the findings.
    """

    about: dict[str, Any]
    find: Callable[[], dict[str, Any]]


def speed(config: Config) -> Iterator[Task]:
    """Bytes a second of a copy, and float operations a second of products of both precisions."""
    yield Task({"what": "copy"}, lambda: {"bytes_per_second": _copied_bytes(config)})
    for precision in ("highest", "default"):
        about = {"what": f"float32 product, precision {precision}"}
        yield Task(about, functools.partial(_multiply, config, precision))


def _copied_bytes(config: Config) -> float:
    """Read and written in a second."""
    x = jnp.ones(4 * config.side**2)
    add = jax.jit(lambda x: x + 1)
    return 2 * x.nbytes / min(common.seconds(functools.partial(add, x), config.repeats))


def _multiply(config: Config, precision: str) -> dict[str, float]:
    x = jnp.ones((config.side, config.side))
    multiply = jax.jit(functools.partial(jnp.matmul, precision=precision))
    taken = min(common.seconds(functools.partial(multiply, x, x), config.repeats))
    return {"flops_per_second": 2 * config.side**3 / taken}


# Answers: small problems, solved in full.


def _small_matrix(seed: int) -> Entries:
    table, _ = synthetic.low_rank(seed, 60, 40, 3, density=0.3, noise=0.3)
    return table.entries


def _answer_of_solver(
    config: Config, name: str, changes: dict[str, Any], loss: str = "squared", step: float = 0.02
) -> list[Any]:
    entries, rank = _small_matrix(config.seed), 3
    objective = Objective(loss, "weighted_l2", 0.05)
    work = SolverConfig(**{"backend": config.backend, "seed": config.seed, **changes})
    method = solvers.make_solver(name, objective, entries, work, None, rank)
    terms = objectives.make_terms(objective, entries)
    rng = np.random.default_rng(config.seed)
    state = method.init(solver.initial_factors(objective, entries, terms, rank, rng))
    for epoch in (1, 2, 3):
        state = method.epoch(state, epoch, step)
    return [*method.factors(state), np.array(method.objective(state))]


def _answer_of_gibbs(config: Config) -> list[Any]:
    """One sweep: later ones would amplify rounding."""
    entries, model = _small_matrix(config.seed), gibbs.GibbsConfig(rank=3)
    lengths = chains.ChainsConfig(num_chains=1, burn_in=0, num_draws=1)
    found = fit.fit(entries, model, lengths, 4, backend=config.backend)
    return [found.draws.rows, found.draws.columns, found.draws.alpha]


def _answer_of_map(config: Config, how: MapConfig) -> list[Any]:
    """Factors, and their gradient with respect to the prior means."""
    entries = _small_matrix(config.seed)
    rng = np.random.default_rng(config.seed)
    means = [rng.normal(size=(size, 3)).astype(np.float32) for size in entries.shape]
    ones = [np.ones(size, np.float32) for size in entries.shape]
    prior = FactorPrior(*means, *ones)

    def fitted(prior, entries):
        u, v = map_estimate(entries, prior, jnp.float32(0.05), how)
        return (u * u).sum() + (v * v).sum(), Factors(u, v)

    gradient, factors = jax.jit(jax.grad(fitted, has_aux=True))(prior, entries)
    return [*map(np.asarray, (*factors, gradient.u_mean, gradient.v_mean))]


def _answer_of_meta_learning(config: Config, precision: str | None) -> list[Any]:
    """Gradient of the meta-loss with respect to all parameters."""
    model = meta_loss.make_model(
        meta_loss.ModelConfig(
            EncoderConfig(channels=16, layers=2, rank=8, precision="per_row", effects=True),
            MapConfig(steps=2, step_form="ridge"),
        )
    )
    drawing = EpisodeConfig(rows=(12, 12), columns=(12, 12), minimum_cells=5)
    episodes = EpisodeSource(_small_matrix(config.seed), drawing, config.seed).draw_batch(0, 8)

    def loss(params):
        of_episode = functools.partial(meta_loss.episode_loss, model)
        total, count = meta_loss.meta_loss_terms(of_episode, params, episodes)
        return total / count

    with jax.default_matmul_precision(precision):
        gradient = jax.jit(jax.grad(loss))(model.init(jax.random.key(config.seed)))
    return [np.asarray(leaf) for leaf in jax.tree.leaves(gradient)]


def _answer_of_imputer(config: Config) -> list[Any]:
    entries = _small_matrix(config.seed)
    completed = pipeline.complete(load_prior("general"), entries)
    return [*completion.predict_rows(completed, 0, entries.shape[0])]


# Products of the encoder have the platform's own precision, by design: on a GPU ten bits. What
# begins with "rounded" is not expected to agree further.
ANSWERS: dict[str, Callable[[Config], list[Any]]] = {
    "dsgd": lambda c: _answer_of_solver(c, "dsgd", {"num_blocks": 2}),
    "dsgd, adagrad": lambda c: _answer_of_solver(c, "dsgd", {"num_blocks": 2, "per_row": True}),
    "dsgd, squared_all": lambda c: _answer_of_solver(
        c, "dsgd", {"num_blocks": 2}, "squared_all", 0.002
    ),
    "als": lambda c: _answer_of_solver(c, "als", {}),
    "als, squared_all": lambda c: _answer_of_solver(c, "als", {}, "squared_all"),
    "als by conjugate gradients": lambda c: _answer_of_solver(
        c, "als", {"conjugate_steps": 3, "backend": "xla"}
    ),
    "lbfgs": lambda c: _answer_of_solver(c, "lbfgs", {}),
    "gibbs": _answer_of_gibbs,
    "map, plain": lambda c: _answer_of_map(c, MapConfig(3, "plain")),
    "map, curvature": lambda c: _answer_of_map(c, MapConfig(3, "curvature")),
    "map, ridge": lambda c: _answer_of_map(c, MapConfig(2, "ridge")),
    "map, implicit": lambda c: _answer_of_map(c, MapConfig(memory="implicit")),
    "meta-gradient": lambda c: _answer_of_meta_learning(c, "highest"),
    "rounded meta-gradient": lambda c: _answer_of_meta_learning(c, None),
    "rounded imputer": _answer_of_imputer,
}


def answers(config: Config, output: str | None) -> Iterator[Task]:
    """Solves each problem twice, and tells whether all bits are the same the second time.

    Args:
      config: see there.
      output: a file for the answers (.npz), complete as far as it goes after each.
    """
    found: dict[str, Any] = {}

    def solve(name):
        with sums.using_backend(config.backend):
            first, second = ANSWERS[name](config), ANSWERS[name](config)
        found.update((f"{name}/{number}", array) for number, array in enumerate(first))
        if output:
            with written_aside(output) as aside, aside.open("wb") as file:
                np.savez(file, **found)
        same = all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
        return {"same_bits_again": same}

    for name in ANSWERS:
        yield Task({"what": name}, functools.partial(solve, name))


def sweeps(config: Config) -> Iterator[Task]:
    """Least milliseconds of sweeps of ALS and of one chain of the sampler."""
    entries = _ratings(config)

    def find(timed, rank, floats):
        with mock.patch.object(dealt_rows, "BATCH_FLOATS", floats):
            return {"ms": 1e3 * timed(config, entries, rank)}

    for rank in config.ranks:
        for floats in config.batch_floats:
            for method, timed in (("als", _time_als), ("gibbs", _time_gibbs)):
                about = {"what": method, "rank": rank, "batch_floats": floats}
                about["cells"] = len(entries.values)
                yield Task(about, functools.partial(find, timed, rank, floats))


def _ratings(config: Config) -> Entries:
    density = config.cells / math.prod(config.shape)
    entries = synthetic.synthetic_ratings(config.seed, *config.shape, density).entries
    return standardize(entries, fit_standardization(np.asarray(entries.values)))


def _time_als(config: Config, entries: Entries, rank: int) -> float:
    work = als.AlsConfig(backend=config.backend)
    method = als.make_solver(_SQUARED, entries, None, work, rank)
    state = method.init(_start(entries, rank))

    def sweep():
        nonlocal state
        state = method.epoch(state, 1, 0.0)

    return min(common.seconds(sweep, config.repeats))


def _time_gibbs(config: Config, entries: Entries, rank: int) -> float:
    model = gibbs.GibbsConfig(rank=rank)
    data = fit.prepare(entries, model, fit.features_of(entries, 0), backend=config.backend)
    lengths = chains.ChainsConfig(num_chains=1, burn_in=0, num_draws=config.repeats + 2)
    drawing = chains.sweeps(chains.init(data, model, lengths), data, model, lengths)
    return min(common.seconds(lambda: next(drawing) and None, config.repeats))


def _start(entries: Entries, rank: int) -> Factors:
    rng = np.random.default_rng(0)
    terms = objectives.make_terms(_SQUARED, entries)
    return solver.initial_factors(_SQUARED, entries, terms, rank, rng)


def updates(config: Config) -> Iterator[Task]:
    """Updates of SGD a second: DSGD as it is, and blocks abreast."""
    find = functools.partial(_found_rate, config, _copied_bytes(config))
    for rank in config.ranks:
        timed = functools.partial(_time_dsgd_within, config, rank, config.backend, config.big_cells)
        yield Task({"what": "dsgd", "rank": rank}, functools.partial(find, timed, rank))
        for blocks in config.abreast:
            about = {"what": "blocks abreast", "rank": rank, "blocks": blocks}
            timed = functools.partial(_time_abreast, config, rank, blocks)
            yield Task(about, functools.partial(find, timed, rank))


def _found_rate(
    config: Config, bandwidth: float, timed: Callable[[], tuple[int, float]], rank: int
) -> dict[str, float]:
    count, seconds = timed()
    rate = count / seconds
    return {
        "entries": count,
        "updates_per_second": rate,
        # 16 K bytes an update.
        "share_of_bandwidth": 16 * rank * rate / bandwidth,
        "seconds_of_an_epoch": config.big_cells / rate,
    }


def _time_dsgd_within(config: Config, rank: int, backend: str, cells: int) -> tuple[int, float]:
    """Entries and seconds of an epoch, of as many entries as the time allows."""
    count = min(_FEW, cells)
    taken = _time_dsgd(config, rank, backend, count)
    more = min(cells, int(config.seconds * count / taken))
    return (more, _time_dsgd(config, rank, backend, more)) if more > 3 * count else (count, taken)


def _time_dsgd(config: Config, rank: int, backend: str, count: int) -> float:
    """Seconds of the second epoch."""
    rng = np.random.default_rng(config.seed)
    rows, columns = (rng.integers(size, size=count, dtype=np.int32) for size in config.big_shape)
    entries = Entries(rows, columns, rng.standard_normal(count, np.float32), config.big_shape)
    work = DsgdConfig(num_blocks=8, backend=backend, seed=config.seed)
    method = dsgd.make_solver(_SQUARED, entries, work, width=rank)
    state = method.epoch(method.init(_start(entries, rank)), 1, 0.01)
    start = time.perf_counter()
    method.epoch(state, 2, 0.01)
    return time.perf_counter() - start


def kernel(config: Config) -> Iterator[Task]:
    """The backend `mosaic_gpu`, if it runs here: its factors beside XLA's, its updates a second."""
    try:
        block_update.choose_backend("mosaic_gpu")
    except ValueError as error:
        reason = str(error)
        yield Task({"what": "mosaic_gpu"}, lambda: {"left_out": reason})
        return
    for per_row in (False, True):
        compared = functools.partial(difference_from_xla, config, "mosaic_gpu", per_row)
        yield Task({"what": "mosaic_gpu beside xla", "adagrad": per_row}, compared)
    find = functools.partial(_found_rate, config, _copied_bytes(config))
    for rank in config.ranks:
        timed = functools.partial(
            _time_dsgd_within, config, rank, "mosaic_gpu", config.kernel_cells
        )
        about = {"what": "dsgd through mosaic_gpu", "rank": rank}
        yield Task(about, functools.partial(find, timed, rank))


def difference_from_xla(config: Config, backend: str, per_row: bool) -> dict[str, Any]:
    """Largest difference of factors after an epoch of sub-strata, in parts of the largest."""
    entries, rank = _small_matrix(config.seed), 3
    terms = objectives.make_terms(_SQUARED, entries)
    start = solver.initial_factors(
        _SQUARED, entries, terms, rank, np.random.default_rng(config.seed)
    )
    work = DsgdConfig(num_blocks=2, backend="mosaic_gpu", seed=config.seed)
    cut = visits.cut_matrix(entries, work, work.num_blocks, rank)
    visit = visits.draw_visits(cut, work, 1)
    update = jax.jit(block_update.block_update, static_argnums=(0, 1, 2))

    def factors(backend):
        u = block_objective.side_blocks(cut.u, start.u, terms.u)
        v = block_objective.side_blocks(cut.v, start.v, terms.v)
        for s, stratum in enumerate(visit.schedule):
            here = block_update.Work(visit.first[:, s], visit.last[:, s], stratum)
            step, nothing = jnp.float32(0.02), (None, None)
            u, v = update(backend, _SQUARED, per_row, step, u, v, cut.entries, here, nothing)
        return [np.asarray(side.factors) for side in (u, v)]

    ours, again, xlas = factors(backend), factors(backend), factors("xla")
    difference = max(
        float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(ours, xlas, strict=True)
    )
    same = all(np.array_equal(a, b) for a, b in zip(ours, again, strict=True))
    return {
        "sub_blocks_abreast": visit.first.shape[-1],
        "difference": difference,
        "agrees": difference <= _ALLOWED and same,
        "same_bits_again": same,
    }


def bounds(config: Config) -> Iterator[Task]:
    """What `epoch_bounds` counts for a billion entries; how even the kernel's sub-blocks are."""
    for machine in epoch_bounds.MACHINES:
        for rank in config.ranks:
            counted = functools.partial(
                epoch_bounds.epoch_bounds, machine, epoch_bounds.BILLION, rank
            )
            yield Task({"what": machine.name, "rank": rank}, counted)
    for blocks in (1, 8):
        about = {"what": "sub-blocks of ratings", "blocks": blocks}
        yield Task(about, functools.partial(_evenness, config, blocks))


def _evenness(config: Config, num_blocks: int) -> dict[str, float]:
    """Of the time until a sub-stratum's largest sub-block is done, the share that one works."""
    work = DsgdConfig(num_blocks=num_blocks, backend="mosaic_gpu", seed=config.seed)
    visit = visits.draw_visits(visits.cut_matrix(_ratings(config), work, num_blocks, 1), work, 1)
    # [P, S, G, G] -> [S, G, P, G] -> [launch, sub-block]
    counts = np.moveaxis(visit.last - visit.first, 0, 2)
    counts = counts.reshape(counts.shape[0] * counts.shape[1], -1)
    launches, abreast = counts.shape
    share = counts.mean(axis=1).sum() / counts.max(axis=1).sum()
    return {"launches": launches, "abreast": abreast, "share_at_work": float(share)}


def _time_abreast(config: Config, rank: int, blocks: int) -> tuple[int, float]:
    """Entries, `_EACH` of every block, and their seconds; one of each block at a time."""
    rng = np.random.default_rng(config.seed)
    sizes = [max(8, size // blocks) for size in config.big_shape]

    def ones(*shape):
        return jnp.ones((blocks, *shape))

    # [B, R, K] and [B, C, K]
    factors = Factors(*(ones(size, rank) / rank for size in sizes))
    squares = Squares(*map(ones, sizes))
    terms = Terms(*(SideTerms(ones(size), ones(size), None) for size in sizes))
    places = [rng.integers(size, size=(blocks, _EACH), dtype=np.int32) for size in sizes]
    entries = (*places, rng.standard_normal((blocks, _EACH), np.float32))

    def one_block(factors, squares, entries, terms):
        step = jnp.float32(0.01)
        nothing = None, None
        return sgd.run_in_order(_SQUARED, False, step, factors, squares, entries, terms, nothing)

    program = jax.jit(jax.vmap(one_block))
    run = functools.partial(program, factors, squares, jax.device_put(entries), terms)
    return blocks * _EACH, min(common.seconds(run, config.repeats))


def _found(task: Task) -> dict[str, Any]:
    """The findings, or what went wrong: the other tasks shall go on."""
    try:
        return task.find()
    except Exception as error:
        return {"error": f"{type(error).__name__}: {str(error)[:500]}"}


def run(
    config: Config, workdir: str | os.PathLike | None = None, output: str | None = None
) -> dict[str, Any]:
    """Measures, and prints each finding, or the error in its place, as a line of JSON.

    Args:
      config: what is measured.
      workdir: where ``summary.json`` goes, if anywhere.
      output: file for the answers.

    Returns:
      The findings, as ``{"findings": [..]}``.

    Raises:
      ValueError: an unknown measure.
    """
    unknown = set(config.measures) - set(MEASURES)
    if unknown:
        raise ValueError(f"expected measures among {', '.join(MEASURES)}, got {sorted(unknown)}")
    log = RunLog(workdir, "benchmarks.accelerator", config) if workdir else None
    measured = {
        "speed": speed,
        "answers": functools.partial(answers, output=output),
        "sweeps": sweeps,
        "updates": updates,
        "kernel": kernel,
        "bounds": bounds,
    }
    device, findings = parallel.devices()[0].device_kind, []
    for measure in config.measures:
        for task in measured[measure](config):
            findings.append({"measure": measure, **task.about, "device": device, **_found(task)})
            print(json.dumps(findings[-1]), flush=True)
    results = {"findings": findings}
    if log:
        log.finish(results)
    return results


def main() -> None:
    config = dataclasses.replace(
        PRESETS[common.PRESET.value],
        measures=tuple(_MEASURE.value),
        kernels=_KERNELS.value,
        seed=common.SEED.value,
    )
    with common.profiled(common.WORKDIR.value):
        run(config, common.WORKDIR.value, _OUTPUT.value)


if __name__ == "__main__":
    common.run_main(main)
