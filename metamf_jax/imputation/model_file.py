"""Reads what a run of meta-training left: a model's configuration and its parameters."""

import os
from typing import Any

import jax

from metamf_jax import sums
from metamf_jax.meta_learning import meta_loss
from metamf_jax.meta_learning.encoder import EncoderConfig
from metamf_jax.meta_learning.map_estimation import MapConfig
from metamf_jax.runs.checkpoint import load_params, read_params_metadata


def read_model(
    path: str | os.PathLike,
) -> tuple[meta_loss.ModelConfig, meta_loss.MetaParams, dict[str, Any]]:
    """The configuration, the parameters, and all else that the file's header holds.

    Raises:
      ValueError: there is no such file, it does not hold parameters, or those of another
        architecture or version.
    """
    held = read_params_metadata(path)
    try:
        inner = dict(held["model"]["inner"])
        if inner.get("memory") == "implicit":
            # Older files hold a number of steps that nothing read.
            inner.pop("steps", None)
        config = meta_loss.ModelConfig(
            EncoderConfig(**held["model"]["encoder"]), MapConfig(**inner)
        )
        encoder = config.encoder
        for size in (encoder.channels, encoder.rank, config.inner.steps, 100 * encoder.layers):
            # A model is built layer by layer before it is compared with the file.
            if type(size) is not int or size > 10_000:
                raise ValueError(f"expected sizes up to 10000, and 100 layers, got {encoder}")
    except (KeyError, TypeError, ValueError) as error:
        raise another_version(path, error) from error
    # Kernels would be loaded for the shapes alone, which takes a second.
    with sums.using_backend("xla"):
        like = jax.eval_shape(meta_loss.make_model(config).init, jax.random.key(0))
    return config, load_params(path, like), held


def another_version(path: str | os.PathLike, error: Exception) -> ValueError:
    """What is raised for a header that cannot be understood."""
    return ValueError(
        f"{path} was written by another version of this package ({error}); train again"
    )
