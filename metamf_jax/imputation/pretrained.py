"""The learned priors that the package carries."""

import functools
import os
import pathlib

import jax

from metamf_jax import cells
from metamf_jax.checkpoint import load_params, read_params_metadata
from metamf_jax.imputation.completion import GeneralPrior
from metamf_jax.meta_learning import meta_loss
from metamf_jax.meta_learning.encoder import EncoderConfig
from metamf_jax.meta_learning.map_estimation import MapConfig

FOLDER = pathlib.Path(__file__).parent / "weights"


def names() -> list[str]:
    """The names of the priors in the package; `weights/README.md` is their model card."""
    return sorted(path.stem for path in FOLDER.glob("*.safetensors"))


def load(name_or_path: str | os.PathLike) -> GeneralPrior:
    """Loads a prior by its name, or from a file that `experiments.pretrain` wrote.

    Raises:
      ValueError: no such prior, or the file does not hold one.
    """
    path = pathlib.Path(name_or_path)
    if os.fspath(name_or_path) in names():
        path = FOLDER / f"{os.fspath(name_or_path)}.safetensors"
    elif path.suffix != ".safetensors":
        raise ValueError(
            f"expected weights by name ({', '.join(names())}) or a .safetensors file of "
            f"experiments.pretrain, got {os.fspath(name_or_path)!r}"
        )
    return _load(path, path.stat().st_mtime_ns if path.exists() else 0)


@functools.lru_cache(maxsize=4)
def _load(path: pathlib.Path, modified: int) -> GeneralPrior:
    held = read_params_metadata(path)
    try:
        config = meta_loss.ModelConfig(
            EncoderConfig(**held["model"]["encoder"]), MapConfig(**held["model"]["inner"])
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} was written by another version of this package: {error}"
        ) from error
    if not config.encoder.effects:
        raise ValueError(f"{path} holds a prior without a bias model: expected one with effects")
    # Kernels would be loaded for nothing, which takes a second.
    with cells.using_backend("xla"):
        like = jax.eval_shape(meta_loss.make_model(config).init, jax.random.key(0))
    return GeneralPrior(config, load_params(path, like))
