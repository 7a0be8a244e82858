"""Factors with the names of their rows and columns, as one safetensors file."""

import json
import os
import pathlib

import numpy as np
import safetensors
import safetensors.numpy

from metamf_jax.checkpoint import write_arrays
from metamf_jax.types import Factors


def save_factors(
    path: str | os.PathLike, factors: Factors, row_ids: np.ndarray, column_ids: np.ndarray
) -> None:
    """Writes ``u``, ``v`` and both id maps, aside and renamed.

    Args:
      path: the file.
      factors: ``u`` [N, K], ``v`` [M, K]; ``u_n . v_m`` is the prediction.
      row_ids: [N] integers or strings.
      column_ids: [M] likewise.
    """
    arrays = {"u": np.ascontiguousarray(factors.u), "v": np.ascontiguousarray(factors.v)}
    for name, ids in (("row_ids", row_ids), ("column_ids", column_ids)):
        integers = np.issubdtype(np.asarray(ids).dtype, np.integer)
        text = json.dumps([str(x) for x in np.asarray(ids).tolist()])
        arrays[name] = (
            np.asarray(ids, np.int64) if integers else np.frombuffer(text.encode(), np.uint8)
        )
    write_arrays(path, arrays, {"metamf_jax": "factors"})


def load_factors(path: str | os.PathLike) -> tuple[Factors, np.ndarray, np.ndarray]:
    """Reads what `save_factors` wrote: (factors, row ids, column ids).

    Raises:
      ValueError: there is no such file, or it is another one.
    """
    if not pathlib.Path(path).exists():
        raise ValueError(f"{path} does not exist: expected factors as a factorization leaves them")
    try:
        arrays = safetensors.numpy.load_file(path)
        factors = Factors(arrays["u"], arrays["v"])
        ids = _ids(arrays["row_ids"], len(factors.u)), _ids(arrays["column_ids"], len(factors.v))
        for name, factor in zip("uv", factors, strict=True):
            if factor.ndim != 2 or factor.dtype != np.float32 or not np.isfinite(factor).all():
                raise ValueError(
                    f"expected {name} as a matrix of finite float32, got {factor.dtype} of shape "
                    f"{factor.shape}"
                )
        if factors.u.shape[1] != factors.v.shape[1]:
            raise ValueError(f"u has rank {factors.u.shape[1]}, v {factors.v.shape[1]}")
        return factors, *ids
    except (
        safetensors.SafetensorError,
        OSError,
        KeyError,
        TypeError,
        ValueError,
        RecursionError,
    ) as error:
        raise ValueError(f"{path} does not hold factors of this package: {error!r}") from error


def _ids(stored: np.ndarray, count: int) -> np.ndarray:
    if stored.dtype == np.uint8:
        names = json.loads(stored.tobytes())
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError("expected a list of strings as ids")
        stored = np.empty(len(names), object)
        stored[:] = names
    elif stored.dtype != np.int64:
        raise ValueError(f"expected ids as text or int64, got {stored.dtype}")
    if stored.shape != (count,):
        raise ValueError(f"expected {count} ids, got shape {stored.shape}")
    return stored
