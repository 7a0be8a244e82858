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

import os
import pathlib
from typing import Any

from absl import flags

from experiments import common, shared_flags, splits
from experiments.sampling import config as sampler_config
from experiments.sampling import sample
from experiments.solving import presets
from experiments.solving.config import Config
from experiments.solving.solve import run
from metamf_jax import parallel, processes
from metamf_jax.factorization import block_update, sgd, strata
from metamf_jax.factorization import objective as objectives
from metamf_jax.factorization.solvers import SOLVERS
from metamf_jax.posterior import gibbs

_SAMPLERS = {
    "gibbs": "the posterior, by Gibbs sampling: predictions with error bars",
    "dsgld": "the posterior, by Langevin dynamics on the strata of dsgd: without row solves",
}

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
    "Penalty. Default: the alias's, else root_l2, or l2 where held-out cells of a matrix of up to"
    " 100,000 prefer it; weighted_l2 where --regularization is a number; prior with --prior.",
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
    " steps of conjugate gradients from the factors before: from some 50 factors on more sweeps, in"
    " less time.",
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

# What solvers and samplers read alike.
_OF_BOTH = _TEST_INPUT, _SPLIT, _FOLD, _TEST_FRACTION, _SOLVER, _BACKEND
_OF_SOLVERS = (
    *(_LOSS, _PENALTY, _REGULARIZATION, _BIASES, _RANK, _EPOCHS, _EARLY_STOPPING, _EVALUATE_EVERY),
    *(_CHECKPOINT_SECONDS, _INIT, _STEP_SIZE, _SCHEDULE, _POINT_ORDER, _BLOCKS, _BLOCK_STORE),
    _ALS_SOLVER,
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
    config, checkpoint_seconds = _of_solver()
    with common.profiled(where[0]):
        run(config, *where, num_devices, checkpoint_seconds)


def _of_solver() -> tuple[Config, float]:
    """What the preset sets, and flags change; and the seconds from one checkpoint to the next."""
    given = _given(*_OF_SOLVERS) | _prior("prior.json")
    chosen = presets.chosen(common.PRESET.value, _SOLVER.value, given)
    checkpoint_seconds = chosen.pop("checkpoint_seconds")
    return Config(**_of_both(), **chosen), checkpoint_seconds


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
    chosen = {**sampler_config.SOLVERS[name], **sampler_config.PRESETS[common.PRESET.value]}
    chosen |= _given(_RANK, _EVALUATE_EVERY, *_OF_SAMPLERS, *more) | _prior("hyperprior.json")
    return sample.Config(**_of_both(), **chosen)


def _given(*of: flags.FlagHolder[Any]) -> dict[str, Any]:
    """The values of those of some flags that have one, by name."""
    return {flag.name: flag.value for flag in of if flag.value is not None}


def _of_both() -> dict[str, Any]:
    """The matrix and its test cells, and how it is worked on."""
    return _given(*_OF_BOTH) | {
        "dataset": _INPUT.value or _DATASET.value,
        "seed": common.SEED.value,
    }


def _prior(name: str) -> dict[str, str]:
    """The file of --prior: as given, or of this name in the workdir given."""
    path = _PRIOR.value
    if path is None:
        return {}
    return {"prior": os.path.join(path, name) if os.path.isdir(path) else path}


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


if __name__ == "__main__":
    common.run_main(main, several_processes=True)
