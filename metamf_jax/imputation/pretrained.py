"""The learned priors that the package carries."""

import functools
import os
import pathlib

from metamf_jax.imputation.fitting import GeneralPrior
from metamf_jax.imputation.model_file import read_model

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
    config, params, _ = read_model(path)
    if not config.encoder.effects:
        raise ValueError(f"{path} holds a prior without a bias model: expected one with effects")
    return GeneralPrior(config, params)
