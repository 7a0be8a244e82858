"""Compares methods of the literature and variants of ours on random splits of one data set.

Claim: with the ``paper`` preset, meta-learned factorization (``metamf``) has a lower query error
than every method that fits each matrix alone, on MovieLens-100K, MovieLens-1M and Jester.
``experiments/RESULTS.md`` has the tables, and says where it does not hold.

    python -m experiments.compare_methods --dataset=ml100k --methods=all --splits=10 \\
        --preset=paper --data_dir=DIR --workdir=runs/compare-ml100k

All methods see the same 200 test matrices of a split and are tuned on its validation matrices. Each
(method, split) runs once: an interrupted call goes on where it stopped, and more splits or methods
are added by asking for more. With ``--meta_train=ml1m,jester`` what is learned from other matrices
is learned from those of these data sets, half of each batch from either, and stopped on their
validation matrices: how far a prior carries.

``results.csv`` has a line for each, with the error on the validation matrices, by which variants
are to be chosen; ``results.md`` the table, and ``plots/comparison.png`` draws it. ``--preset=tiny``
takes all methods through one split.
"""

import csv
import dataclasses
import io
import json
import math
import pathlib
import time
from typing import Any, NamedTuple

import jax
import numpy as np
import scipy.stats
from absl import flags

from experiments import common, presets, protocol, shared_flags
from experiments.protocol import ProtocolConfig
from metamf_jax import plotting
from metamf_jax.baselines import METHODS, make_method, tuning
from metamf_jax.baselines.method import Method, episode_loss
from metamf_jax.data import sources
from metamf_jax.meta_learning.episodes import entry_counts
from metamf_jax.meta_learning.meta_loss import Episode, ModelConfig
from metamf_jax.meta_learning.training import TrainingConfig, make_evaluate
from metamf_jax.metrics import mean_and_standard_error, paired_difference
from metamf_jax.runs.checkpoint import load_params, read_params_metadata, save_params
from metamf_jax.runs.files import write_text
from metamf_jax.runs.run_log import RunLog

_DATASET = shared_flags.dataset()
_MAX_STEPS = shared_flags.max_steps()
_META_TRAIN = flags.DEFINE_list(
    "meta_train", None, "Data sets to meta-train on; default: the one of --dataset."
)
_METHODS = shared_flags.methods()
_OVERRIDE = shared_flags.override()
_SIDE = shared_flags.side()
_SPLITS = flags.DEFINE_integer("splits", None, "Random splits; default: the preset's.", 1)
_SUPPORT_FRACTION = flags.DEFINE_float(
    "support_fraction", None, "Share of the observed entries that is shown; default: the preset's."
)

_REFERENCE = "metamf"
_CONFIDENCE = 0.95
_FIELDS: tuple[str, ...] = (
    "method",
    "split",
    "test_mse",
    "validation_mse",
    "adapt_seconds",
    "train_seconds",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(ProtocolConfig):
    """What all methods of one workdir have in common.

    Attributes:
      meta_train: data sets to meta-train on in place of ``dataset``, each standardised by itself;
        none for ``dataset`` itself. Methods that learn nothing from other matrices are tuned on
        the validation matrices of ``dataset``, the others on those of the sets they learn from.
    """

    meta_train: tuple[str, ...] = ()


class Comparison(NamedTuple):
    """One line of the table.

    Attributes:
      splits: how many.
      mse: mean over splits of the test error, and its standard error.
      difference: to the reference over the splits of both, and its corrected standard error.
      half_width: of the difference's confidence interval.
      adapt_seconds: for one matrix, mean over splits.
      train_seconds: of meta-training, mean over splits.
    """

    splits: int
    mse: tuple[float, float]
    difference: tuple[float, float]
    half_width: float
    adapt_seconds: float
    train_seconds: float


def run(
    config: Config,
    methods: list[str],
    splits: int,
    workdir: pathlib.Path,
    data_dir: str | None = None,
) -> dict[str, Any]:
    """Runs what is missing and returns what ``summary.json`` holds.

    Raises:
      ValueError: an unknown method, data that cannot be read or split, or a workdir that holds
        another configuration.
      FloatingPointError: at the end, when all else is done and reported: the meta-loss of some
        methods became non-finite; the message names them.
    """
    diverged = []
    made = {name: make_method(name, config.model) for name in methods}
    entries, *taught = (
        sources.load(name, data_dir, config.seed).entries
        for name in (config.dataset, *config.meta_train)
    )
    log = RunLog(workdir, "compare_methods", config)
    for folder in ("results", "params"):
        (workdir / folder).mkdir(exist_ok=True)
    for split_seed in range(splits):
        missing = [n for n in methods if not _result_path(workdir, n, split_seed).exists()]
        if missing:
            split = protocol.draw_split(entries, config, split_seed, split_seed)
            teaching = split
            if taught:
                of_each = [protocol.draw_split(x, config, split_seed, split_seed) for x in taught]
                teaching = protocol.joined(of_each)
        for name in missing:
            try:
                result = _score(name, made[name], split, teaching, split_seed, config, workdir)
            except FloatingPointError as error:
                diverged.append(f"split {split_seed}  {name}: {error}")
                log.print(diverged[-1])
                continue
            path = _result_path(workdir, name, split_seed)
            write_text(path, json.dumps(result, indent=2) + "\n")
            log.print(
                f"split {split_seed}  {name:<16}  test_mse {result['test_mse']:.4f}  "
                f"{result['seconds']:.1f} s"
            )
        _report(workdir, config)
    if diverged and not (workdir / "results.md").exists():
        raise FloatingPointError("no results at all\n" + "\n".join(diverged))
    results = _read(workdir)
    print(f"\n{(workdir / 'results.md').read_text(encoding='utf-8')}")
    print(f"wrote {workdir / 'results.csv'}, results.md and plots/comparison.png")
    if diverged:
        raise FloatingPointError("no results of\n" + "\n".join(diverged))
    table = {name: line._asdict() for name, line in _compare(results).items()}
    return log.finish({"table": table, "splits": splits})


def _result_path(workdir: pathlib.Path, name: str, split: int) -> pathlib.Path:
    return workdir / "results" / f"{name}-{split}.json"


def _score(
    name: str,
    method: Method,
    split: protocol.Split,
    teaching: protocol.Split | protocol.Teaching,
    seed: int,
    config: ProtocolConfig,
    workdir: pathlib.Path,
) -> dict[str, Any]:
    start = time.perf_counter()
    params, training = trained(name, teaching, seed, config.model, config.training, workdir)
    known = split if params is None else teaching
    setting = tuning.tune(method, known.validation, params)

    def errors_on(part: Episode) -> np.ndarray:
        if params is None or len(method.grid) > 1 or method.axes:
            return tuning.episode_errors(method, part, setting, params)
        # Meta-training has compiled this.
        return make_evaluate(episode_loss(method.predict))(params, part)

    # Of the same shapes as the test's: compiles.
    validation_errors = errors_on(split.validation)
    begun = time.perf_counter()
    errors = errors_on(split.test)
    adapt_seconds = (time.perf_counter() - begun) / len(errors)
    return {
        "method": name,
        "split": seed,
        "test_mse": float(errors.mean(dtype=np.float64)),
        "validation_mse": float(validation_errors.mean(dtype=np.float64)),
        "adapt_seconds": adapt_seconds,
        "train_seconds": training.get("seconds", 0.0),
        "steps": training.get("steps"),
        "best_step": training.get("best_step"),
        "setting": setting,
        "support_per_matrix": float(entry_counts(split.test.support).mean()),
        "seconds": time.perf_counter() - start,
    }


def trained(
    name: str,
    split: protocol.Split | protocol.Teaching,
    seed: int,
    model: ModelConfig,
    training: TrainingConfig,
    workdir: pathlib.Path,
) -> tuple[Any, dict[str, Any]]:
    """A method's meta-trained parameters, from ``params/`` or trained now, and how it went.

    Methods that are trained alike share one file, named after the first of them; the parameters
    are None for methods that learn nothing from other matrices.
    """
    method = make_method(name, model)
    if method.parts:
        found = {
            part: trained(part, split, seed, model, training, workdir) for part in method.parts
        }
        seconds = sum(how.get("seconds", 0.0) for _, how in found.values())
        return {part: params for part, (params, _) in found.items()}, {"seconds": seconds}
    if method.init is None:
        return None, {}
    own = method.trained_as or name
    # A variant may be what the preset is anyway.
    own = next(
        n for n in METHODS if make_method(n, model).predict is make_method(own, model).predict
    )
    method = make_method(own, model)
    path = workdir / "params" / f"{own}-{seed}.safetensors"
    if not path.exists():
        result = protocol.meta_train(method, split, training, seed)
        save_params(path, result.params, result._replace(params=None)._asdict())
    assert method.init is not None
    like = jax.eval_shape(method.init, jax.random.key(0))
    return load_params(path, like), read_params_metadata(path)


def _read(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The results that are there, in the order of the table of methods, then of splits."""
    paths = (workdir / "results").glob("*.json")
    results = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    order = list(METHODS)
    return sorted(results, key=lambda result: (order.index(result["method"]), result["split"]))


def _compare(results: list[dict[str, Any]]) -> dict[str, Comparison]:
    by_method: dict[str, dict[int, dict[str, Any]]] = {}
    for result in results:
        by_method.setdefault(result["method"], {})[result["split"]] = result
    ours = by_method.get(_REFERENCE, {})
    table = {}
    for name, of_split in by_method.items():
        common_splits = sorted(of_split.keys() & ours.keys())
        difference, half_width = (math.nan, math.nan), math.nan
        if name != _REFERENCE and len(common_splits) > 1:
            difference = paired_difference(
                np.array([of_split[split]["test_mse"] for split in common_splits]),
                np.array([ours[split]["test_mse"] for split in common_splits]),
                protocol.TEST_TRAIN_RATIO,
            )
            quantile = scipy.stats.t.ppf(0.5 + _CONFIDENCE / 2, len(common_splits) - 1)
            half_width = float(quantile * difference[1])
        every = list(of_split.values())
        table[name] = Comparison(
            len(every),
            mean_and_standard_error(np.array([result["test_mse"] for result in every])),
            difference,
            half_width,
            float(np.mean([result["adapt_seconds"] for result in every])),
            float(np.mean([result["train_seconds"] for result in every])),
        )
    return table


def _report(workdir: pathlib.Path, config: ProtocolConfig) -> None:
    results = _read(workdir)
    if not results:
        return
    table = _compare(results)
    text = io.StringIO()
    writer = csv.DictWriter(text, _FIELDS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(results)
    write_text(workdir / "results.csv", text.getvalue())
    write_text(workdir / "results.md", _markdown(table, results, config))
    (workdir / "plots").mkdir(exist_ok=True)
    most = max(line.splits for line in table.values())
    # Splits differ more than methods do: a mean over some is not to be read beside one over all.
    shown = {
        name if line.splits == most else f"{name} ({line.splits} of {most} splits)": line.mse
        for name, line in table.items()
    }
    plotting.error_by_method(workdir / "plots" / "comparison.png", shown, _REFERENCE)


def _plus_minus(pair: tuple[float, float], sign: str = "") -> str:
    mean, error = pair
    if math.isnan(mean):
        return ""
    return f"{mean:{sign}.4f}" + ("" if math.isnan(error) else f" +- {error:.4f}")


def _markdown(
    table: dict[str, Comparison], results: list[dict[str, Any]], config: ProtocolConfig
) -> str:
    support = np.mean([result["support_per_matrix"] for result in results])
    lines = [
        f"{config.dataset}: query MSE in standardised units on {config.scored_matrices} test "
        f"matrices a split with {support:.1f} observed entries each, mean over splits +- standard "
        f"error. Differences to `{_REFERENCE}` are paired over splits (positive: it is better), "
        "their errors corrected for overlapping splits (Nadeau and Bengio); * marks those whose "
        f"{100 * _CONFIDENCE:.0f}% interval leaves out zero. Seconds: of adaptation and prediction "
        "for one matrix in a batch of 50, of meta-training for one split, compilation included.",
        "",
        f"| method | splits | MSE | minus {_REFERENCE} | 95% interval | | adapt s | train s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, line in table.items():
        mean, _ = line.difference
        interval = ""
        if not math.isnan(line.half_width):
            interval = f"{mean - line.half_width:+.4f} .. {mean + line.half_width:+.4f}"
        shown = (
            name,
            str(line.splits),
            _plus_minus(line.mse),
            _plus_minus(line.difference, "+"),
            interval,
            # Whether the interval leaves out zero; no number compares with NaN.
            "*" if abs(mean) > line.half_width else "",
            f"{line.adapt_seconds:.1e}",
            f"{line.train_seconds:.1f}" if line.train_seconds else "",
        )
        lines.append(f"| {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


def config_from_flags() -> Config:
    """The configuration that the flags ask for."""
    sizes = presets.overridden(presets.COMPARE[common.PRESET.value], _OVERRIDE.value)
    episodes = {}
    if _SIDE.value is not None:
        episodes["rows"] = episodes["columns"] = (_SIDE.value, _SIDE.value)
    if _SUPPORT_FRACTION.value is not None:
        episodes["support_fraction"] = (_SUPPORT_FRACTION.value, _SUPPORT_FRACTION.value)
    if episodes:
        sizes["episodes"] = dataclasses.replace(sizes["episodes"], **episodes)
        sizes["training_episodes"] = None
    if _MAX_STEPS.value is not None:
        sizes["training"] = dataclasses.replace(sizes["training"], max_steps=_MAX_STEPS.value)
    return Config(
        dataset=_DATASET.value,
        meta_train=tuple(_META_TRAIN.value or ()),
        preset=common.PRESET.value,
        seed=common.SEED.value,
        **sizes,
    )


def main() -> None:
    if common.WORKDIR.value is None:
        raise ValueError("--workdir is needed: the folder for the run's files")
    if common.PRESET.value in ("smoke", "tiny"):
        common.compile_fast()
    methods = list(METHODS) if _METHODS.value == ["all"] else _METHODS.value
    splits = _SPLITS.value or presets.COMPARE_SPLITS[common.PRESET.value]
    workdir = pathlib.Path(common.WORKDIR.value)
    run(config_from_flags(), methods, splits, workdir, common.DATA_DIR.value)


if __name__ == "__main__":
    common.run_main(main)
