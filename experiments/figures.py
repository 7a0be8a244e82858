"""Draws how the error depends on what is given, and what is learned; each figure with its numbers.

Claim: meta-learned factorization is ahead of methods that fit each matrix alone at every share of
support; it needs some thousand meta-training matrices and one inner step or a few; priors learned
on one rating set serve another. ``experiments/RESULTS.md`` has the numbers for three sets.

    python -m experiments.figures --dataset=ml100k --data_dir=DIR --preset=paper \\
        --workdir=runs/figures-ml100k

``--figures`` takes some of

* ``support_fraction``: error against the share of observed entries that is shown, on fixed query
  entries with nested supports; the numbers have the paired differences to ``metamf``, too;
* ``side``: error against the side of the matrix, each size meta-trained for itself;
* ``training_matrices``: error against the number of meta-training matrices;
* ``inner_steps``: error against T, meta-trained with that T, and meta-trained with the preset's;
* ``transfer``: meta-trained on one of ``--transfer_datasets``, tested on each of them;
* ``factors``: prior means and adapted factors of one matrix on their principal plane;
* ``precisions``: learned precisions of rows and columns against their numbers of observations.

Each writes ``NAME.csv`` and ``plots/NAME.png`` into the workdir; a figure whose numbers are there
is not computed again.
"""

import csv
import dataclasses
import io
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import flags

from experiments import common, presets, protocol, shared_flags
from metamf_jax import plotting, sums
from metamf_jax.baselines import make_method, tuning
from metamf_jax.baselines.method import Method
from metamf_jax.data import sources
from metamf_jax.meta_learning.encoder import make_encoder
from metamf_jax.meta_learning.episodes import EpisodeConfig
from metamf_jax.meta_learning.meta_loss import Episode, make_model
from metamf_jax.metrics import mean_and_standard_error
from metamf_jax.runs.files import write_text
from metamf_jax.runs.run_log import RunLog
from metamf_jax.types import Entries

_DATASET = shared_flags.dataset()
_MAX_STEPS = shared_flags.max_steps()
_FIGURES = shared_flags.figures()
_METHODS = shared_flags.methods()
_SIDES = flags.DEFINE_multi_integer(
    "sides", None, "One of the figure side, given several times; default: the preset's.", 2
)
_TRANSFER = flags.DEFINE_list(
    "transfer_datasets", None, "Data sets of the figure transfer; default: the one of --dataset."
)

# Errors are drawn for these unless others are named; the table is in `experiments.compare_methods`.
_DRAWN = ("metamf", "eml", "mean", "bias", "mf", "soft_impute")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(protocol.ProtocolConfig):
    """What all figures of one workdir have in common.

    The seed is that of the split, of initial parameters, and of all draws. Where a figure varies
    the episodes, it meta-trains on such as are scored.

    Attributes:
      transfer_datasets: as ``dataset``.
      methods: whose errors are drawn against the share of support and the side, ``metamf`` first.
      fractions: shares of the observed entries that are support.
      sides: rows and columns of a matrix.
      matrices: numbers of meta-training matrices.
      steps: inner steps.
    """

    transfer_datasets: tuple[str, ...]
    methods: tuple[str, ...] = _DRAWN
    fractions: tuple[float, ...]
    sides: tuple[int, ...]
    matrices: tuple[int, ...]
    steps: tuple[int, ...]


class Study:
    """What the figures compute with: a configuration and the data sets it names.

    Args:
      config: the configuration.
      data_dir: the folder of the data sets.
    """

    def __init__(self, config: Config, data_dir: str | None):
        self.config, self._data_dir = config, data_dir
        self._entries: dict[str, Entries] = {}

    def split(self, episodes: EpisodeConfig | None = None, dataset: str | None = None):
        """A split of a data set, by default the one of the configuration."""
        config, dataset = self.config, dataset or self.config.dataset
        if dataset not in self._entries:
            self._entries[dataset] = sources.load(dataset, self._data_dir, config.seed).entries
        if episodes is not None:
            config = dataclasses.replace(config, episodes=episodes, training_episodes=None)
        return protocol.draw_split(self._entries[dataset], config, config.seed, config.seed)

    def train(self, method: Method, split: protocol.Split, draw: Callable | None = None) -> Any:
        """The method's meta-trained parameters; None where it has none."""
        if method.init is None:
            return None
        config = self.config.training
        return protocol.meta_train(method, split, config, self.config.seed, draw).params

    def method(self, name: str, **changes) -> Method:
        """A method; ``changes`` are made to the inner loop."""
        model = self.config.model
        model = dataclasses.replace(model, inner=dataclasses.replace(model.inner, **changes))
        return make_method(name, model)


Row = dict[str, Any]


def _errors(method: Method, params: Any, validation: Episode, test: Episode) -> np.ndarray:
    setting = tuning.tune(method, validation, params)
    return tuning.episode_errors(method, test, setting, params)


def _scored(method: Method, params: Any, validation: Episode, test: Episode) -> Row:
    mean, error = mean_and_standard_error(_errors(method, params, validation, test))
    return {"mse": mean, "standard_error": error}


def _support_fraction(study: Study) -> list[Row]:
    config = study.config
    least, most = min(config.fractions), max(config.fractions)
    split = study.split(dataclasses.replace(config.episodes, support_fraction=(least, most)))
    validation = protocol.nested_supports(split.validation, config.fractions)
    test = protocol.nested_supports(split.test, config.fractions)
    rows, ours = [], {}
    for name in config.methods:
        method = study.method(name)
        params = study.train(method, split)
        for fraction, *parts in zip(config.fractions, validation, test, strict=True):
            errors = _errors(method, params, *parts)
            mean, error = mean_and_standard_error(errors)
            # The first drawn is metamf.
            more, more_error = mean_and_standard_error(errors - ours.setdefault(fraction, errors))
            rows.append(
                {
                    "support_fraction": fraction,
                    "method": name,
                    "mse": mean,
                    "standard_error": error,
                    "minus_metamf": more,
                    "minus_metamf_error": more_error,
                }
            )
    return rows


def _side(study: Study) -> list[Row]:
    rows = []
    for side in study.config.sides:
        episodes = dataclasses.replace(
            study.config.episodes, rows=(side, side), columns=(side, side)
        )
        split = study.split(episodes)
        for name in study.config.methods:
            # Plain steps diverge on the larger matrices.
            form = study.config.model.inner.step_form
            method = study.method(name, step_form="scaled" if form == "plain" else form)
            params = study.train(method, split)
            scored = _scored(method, params, split.validation, split.test)
            rows.append({"side": side, "method": name, **scored})
    return rows


def _training_matrices(study: Study) -> list[Row]:
    split, rows = study.split(), []
    batch = study.config.training.batch
    for count in study.config.matrices:

        def draw(step, count=count):
            # The same episodes again and again, cut alike each time.
            return split.source.draw_batch(step % -(-count // batch), min(batch, count))

        for name in ("metamf", "eml"):
            method = study.method(name)
            params = study.train(method, split, draw)
            scored = _scored(method, params, split.validation, split.test)
            rows.append({"training_matrices": count, "method": name, **scored})
    return rows


def _inner_steps(study: Study) -> list[Row]:
    split, rows = study.split(), []
    of_preset = study.train(study.method("metamf"), split)
    for steps in study.config.steps:
        method = study.method("metamf", steps=steps)
        own = of_preset if steps == study.config.model.inner.steps else study.train(method, split)
        for name, params in (
            ("meta-trained with these", own),
            (f"meta-trained with {study.config.model.inner.steps}", of_preset),
        ):
            scored = _scored(method, params, split.validation, split.test)
            rows.append({"inner_steps": steps, "method": name, **scored})
    return rows


def _transfer(study: Study) -> list[Row]:
    rows = []
    splits = {name: study.split(dataset=name) for name in study.config.transfer_datasets}
    ours, bias = study.method("metamf"), study.method("bias")
    for trained_on, split in splits.items():
        params = study.train(ours, split)
        for tested_on, other in splits.items():
            scored = _scored(ours, params, other.validation, other.test)
            rows.append({"trained_on": trained_on, "tested_on": tested_on, **scored})
    for tested_on, other in splits.items():
        scored = _scored(bias, None, other.validation, other.test)
        rows.append({"trained_on": "(bias model)", "tested_on": tested_on, **scored})
    return rows


def _fullest(test: Episode) -> Entries:
    """The support of the matrix that has the most to look at."""
    support = test.support
    assert isinstance(support, Entries)
    counts = (support.rows < support.shape[0]).sum(axis=1)
    return jax.tree.map(lambda leaf: leaf[int(counts.argmax())], support)


def _factors(study: Study) -> list[Row]:
    split, method = study.split(), study.method("metamf")
    params = study.train(method, split)
    support = _fullest(split.test)
    adapted, prior = jax.jit(make_model(study.config.model).adapt)(params, support)
    counts = sums.counts(support)
    pooled = sums.pool(support, sums.observed_values(support)[:, None])
    rows = []
    for side, before, after, count, total in (
        ("rows", prior.u, adapted.u, counts[0], pooled[0]),
        ("columns", prior.v, adapted.v, counts[1], pooled[1]),
    ):
        before, after, count = np.asarray(before), np.asarray(after), np.asarray(count)
        both = np.concatenate([before, after])
        centre = both.mean(axis=0)
        plane = np.linalg.svd(both - centre, full_matrices=False)[2][:2].T
        start, end = (before - centre) @ plane, (after - centre) @ plane
        means = np.asarray(total)[:, 0] / np.maximum(count, 1)
        for index in np.flatnonzero(count):
            rows.append(
                {
                    "side": side,
                    "index": int(index),
                    "mean": float(means[index]),
                    "observations": int(count[index]),
                    "prior_x": float(start[index, 0]),
                    "prior_y": float(start[index, 1]),
                    "adapted_x": float(end[index, 0]),
                    "adapted_y": float(end[index, 1]),
                }
            )
    return rows


def _precisions(study: Study) -> list[Row]:
    config = study.config
    split, method = study.split(), study.method("precision_per_row")
    params = study.train(method, split)
    encoder = make_encoder(dataclasses.replace(config.model.encoder, precision="per_row"))
    support = split.test.support
    priors = jax.jit(jax.vmap(lambda one: encoder.apply(params.encoder, one)))(support)
    counts = jax.vmap(sums.counts)(support)
    rows = []
    for side, count, precision in (
        ("rows", counts[0], priors.u_precision),
        ("columns", counts[1], priors.v_precision),
    ):
        count, precision = np.asarray(count).ravel(), np.asarray(precision).ravel()
        for observations in np.unique(count):
            of_these = precision[count == observations]
            low, middle, high = np.quantile(of_these, [0.25, 0.5, 0.75])
            rows.append(
                {
                    "side": side,
                    "observations": int(observations),
                    "median": float(middle),
                    "quartile_1": float(low),
                    "quartile_3": float(high),
                    "count": len(of_these),
                }
            )
    return rows


def _series(rows: list[Row], x: str) -> dict[str, list[tuple[float, float, float]]]:
    series: dict[str, list[tuple[float, float, float]]] = {}
    for row in rows:
        point = float(row[x]), float(row["mse"]), float(row["standard_error"])
        series.setdefault(row["method"], []).append(point)
    return series


def _curves(x: str, label: str, log: bool) -> Callable[[pathlib.Path, list[Row]], None]:
    return lambda path, rows: plotting.error_curves(path, _series(rows, x), label, log)


def _draw_transfer(path: pathlib.Path, rows: list[Row]) -> None:
    errors = {(row["trained_on"], row["tested_on"]): float(row["mse"]) for row in rows}
    plotting.error_grid(path, errors, "meta-trained on", "tested on")


def _draw_factors(path: pathlib.Path, rows: list[Row]) -> None:
    sides = {}
    for side in ("rows", "columns"):
        of_side = [row for row in rows if row["side"] == side]
        names = ("prior_x", "prior_y", "adapted_x", "adapted_y", "mean")
        sides[side] = np.array([[float(row[name]) for name in names] for row in of_side])
    plotting.factor_planes(path, sides)


def _draw_precisions(path: pathlib.Path, rows: list[Row]) -> None:
    sides = {}
    for side in ("rows", "columns"):
        names = ("observations", "median", "quartile_1", "quartile_3")
        sides[side] = np.array(
            [[float(row[name]) for name in names] for row in rows if row["side"] == side]
        )
    plotting.precisions(path, sides)


# What computes a figure's numbers, and what draws them.
FIGURES: dict[
    str, tuple[Callable[[Study], list[Row]], Callable[[pathlib.Path, list[Row]], None]]
] = {
    "support_fraction": (
        _support_fraction,
        _curves("support_fraction", "share of the observed entries that is shown", False),
    ),
    "side": (_side, _curves("side", "rows and columns of a matrix", True)),
    "training_matrices": (
        _training_matrices,
        _curves("training_matrices", "meta-training matrices", True),
    ),
    "inner_steps": (_inner_steps, _curves("inner_steps", "inner steps T", False)),
    "transfer": (_transfer, _draw_transfer),
    "factors": (_factors, _draw_factors),
    "precisions": (_precisions, _draw_precisions),
}


def run(
    config: Config, names: list[str], workdir: pathlib.Path, data_dir: str | None = None
) -> dict[str, Any]:
    """Computes what is missing, draws, and returns what ``summary.json`` holds.

    Raises:
      ValueError: an unknown figure, data that cannot be read or split, or a workdir that holds
        another configuration.
    """
    unknown = [name for name in names if name not in FIGURES]
    if unknown:
        raise ValueError(f"unknown figure {unknown[0]!r}; there are {', '.join(FIGURES)}")
    if config.methods[0] != "metamf":
        raise ValueError(f"expected metamf as the first method to draw, got {config.methods[0]!r}")
    study = Study(config, data_dir)
    study.split()  # Reads the data, so that a wrong name leaves no workdir.
    log = RunLog(workdir, "figures", config)
    for name in names:
        compute, draw = FIGURES[name]
        path = workdir / f"{name}.csv"
        if not path.exists():
            rows = compute(study)
            text = io.StringIO()
            writer = csv.DictWriter(text, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
            write_text(path, text.getvalue())
        draw(log.plot_path(name), _read(path))
        log.print(f"wrote {path} and {log.plot_path(name)}")
    numbers = {name: _read(workdir / f"{name}.csv") for name in names}
    return log.finish(numbers)


def _read(path: pathlib.Path) -> list[Row]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def config_from_flags() -> Config:
    """The configuration that the flags ask for."""
    sizes = dict(presets.FIGURES[common.PRESET.value])
    if _MAX_STEPS.value is not None:
        sizes["training"] = dataclasses.replace(sizes["training"], max_steps=_MAX_STEPS.value)
    if _SIDES.value is not None:
        sizes["sides"] = tuple(_SIDES.value)
    if _METHODS.value != ["all"]:
        sizes["methods"] = tuple(_METHODS.value)
    return Config(
        dataset=_DATASET.value,
        transfer_datasets=tuple(_TRANSFER.value or [_DATASET.value]),
        preset=common.PRESET.value,
        seed=common.SEED.value,
        **sizes,
    )


def main() -> None:
    if common.WORKDIR.value is None:
        raise ValueError("--workdir is needed: the folder for the run's files")
    if common.PRESET.value in ("smoke", "tiny"):
        common.compile_fast()
    names = list(FIGURES) if _FIGURES.value == ["all"] else _FIGURES.value
    run(config_from_flags(), names, pathlib.Path(common.WORKDIR.value), common.DATA_DIR.value)


if __name__ == "__main__":
    common.run_main(main)
