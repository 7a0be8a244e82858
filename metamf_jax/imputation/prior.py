"""The learned prior: what the package carries, and what a run of meta-training leaves."""

import dataclasses
import functools
import os
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np

from metamf_jax import sums
from metamf_jax.meta_learning import meta_loss
from metamf_jax.meta_learning.encoder import EncoderConfig
from metamf_jax.meta_learning.episodes import Standardization
from metamf_jax.meta_learning.map_estimation import MapConfig
from metamf_jax.meta_learning.meta_loss import MetaParams, ModelConfig
from metamf_jax.runs.checkpoint import load_params, read_params, read_params_metadata

FOLDER = pathlib.Path(__file__).parent / "weights"
# Of the file in the workdir of a run.
FILE = "model.safetensors"


class TrainedOn(NamedTuple):
    """The one data set whose sub-matrices a prior was learned from.

    Attributes:
      standardization: of its values.
      value_range: their least and greatest.
      sides: most rows and columns of a training episode.
    """

    standardization: Standardization
    value_range: tuple[float, float]
    sides: tuple[int, int]


class LearnedPrior(NamedTuple):
    """A learned prior over the factors of matrices in standardised units.

    Attributes:
      config: the model's configuration.
      params: its learned parameters.
      trained_on: None where it was learned from matrices each standardised by itself.
    """

    config: ModelConfig
    params: MetaParams
    trained_on: TrainedOn | None = None

    def config_for(self, shape: tuple[int, int]) -> ModelConfig:
        """The configuration for a matrix of this shape.

        Plain gradient steps diverge on matrices larger than those that their size was learned on;
        there exact ridge sweeps take their place.
        """
        config = self.config
        if self.trained_on is None or config.inner.step_form != "plain" or not config.inner.pull:
            return config
        larger = any(size > side for size, side in zip(shape, self.trained_on.sides, strict=True))
        inner = dataclasses.replace(config.inner, step_form="ridge")
        return dataclasses.replace(config, inner=inner) if larger else config


def prior_names() -> list[str]:
    """The names of the priors in the package; `weights/README.md` is their model card."""
    return sorted(path.stem for path in FOLDER.glob("*.safetensors"))


def load_prior(weights: str | os.PathLike) -> LearnedPrior:
    """Loads a learned prior.

    Args:
      weights: one of `prior_names`, the workdir of a run of ``experiments.train`` or
        ``experiments.pretrain``, or the path of a .safetensors file of these.

    Raises:
      ValueError: no such prior, or the file does not hold one.
    """
    path = pathlib.Path(weights)
    if os.fspath(weights) in prior_names():
        path = FOLDER / f"{os.fspath(weights)}.safetensors"
    elif path.is_dir():
        path = path / FILE
    elif path.suffix != ".safetensors":
        raise ValueError(
            f"expected weights by name ({', '.join(prior_names())}), the workdir of a run of "
            "experiments.train or experiments.pretrain, or a .safetensors file of one, got "
            f"{os.fspath(weights)!r}"
        )
    return _read_once(path, path.stat().st_mtime_ns if path.exists() else 0)


@functools.lru_cache(maxsize=4)
def _read_once(path: pathlib.Path, modified: int) -> LearnedPrior:
    return read_prior(path)


def metadata(prior: LearnedPrior) -> dict[str, Any]:
    """What `read_prior` needs besides the parameters, for the header of their file."""
    header: dict[str, Any] = {"model": dataclasses.asdict(prior.config)}
    if prior.trained_on is not None:
        header["standardization"] = prior.trained_on.standardization._asdict()
        header["value_range"] = list(prior.trained_on.value_range)
        header["sides"] = list(prior.trained_on.sides)
    return header


def read_prior(path: str | os.PathLike) -> LearnedPrior:
    """Reads a prior from a file.

    Raises:
      ValueError: there is no such file, it does not hold parameters, or those of another
        architecture or version.
    """
    header = read_params_metadata(path)
    try:
        config, trained_on = _config(header["model"]), _trained_on(header)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} was written by another version of this package ({error}); train again"
        ) from error
    if pathlib.Path(path).parent == FOLDER:
        # Tests compare these with the model: to build it here as well would take 0.1 s.
        return LearnedPrior(config, MetaParams(**read_params(path)), trained_on)
    # Kernels would be loaded for the shapes alone, which takes a second.
    with sums.using_backend("xla"):
        like = jax.eval_shape(meta_loss.make_model(config).init, jax.random.key(0))
    return LearnedPrior(config, load_params(path, like), trained_on)


def _config(held: dict[str, Any]) -> ModelConfig:
    inner = dict(held["inner"])
    if inner.get("memory") == "implicit":
        # Older files hold a number of steps that nothing read.
        inner.pop("steps", None)
    config = ModelConfig(EncoderConfig(**held["encoder"]), MapConfig(**inner))
    encoder = config.encoder
    for size in (encoder.channels, encoder.rank, config.inner.steps, 100 * encoder.layers):
        # A model is built layer by layer before it is compared with the file.
        if type(size) is not int or size > 10_000:
            raise ValueError(f"expected sizes up to 10000, and 100 layers, got {encoder}")
    return config


def _trained_on(header: dict[str, Any]) -> TrainedOn | None:
    if "standardization" not in header:
        return None
    standardization = Standardization(**header["standardization"])
    low, high = header["value_range"]
    rows, columns = header["sides"]
    if not all(type(side) is int for side in (rows, columns)):
        raise ValueError(f"expected two sides, got {header['sides']}")
    if not np.isfinite([low, high, *standardization]).all() or standardization.deviation <= 0:
        raise ValueError("expected a finite scale")
    return TrainedOn(standardization, (low, high), (rows, columns))
