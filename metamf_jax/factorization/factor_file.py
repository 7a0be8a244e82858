"""Factors with the names of their rows and columns, as one safetensors file."""

import json
import os
import pathlib

import numpy as np
import safetensors.numpy

from metamf_jax.runs.checkpoint import refusing_foreign, write_arrays
from metamf_jax.types import Factors


def encode_ids(ids: np.ndarray) -> np.ndarray:
    """Integers or strings [N] without Python objects: int64, or the UTF-8 of a JSON list."""
    ids = np.asarray(ids)
    if np.issubdtype(ids.dtype, np.integer):
        return ids.astype(np.int64)
    return np.frombuffer(json.dumps([str(x) for x in ids.tolist()]).encode(), np.uint8)


def decode_ids(stored: np.ndarray, count: int | None) -> np.ndarray:
    """Undoes `encode_ids` for so many ids, if it is known how many.

    Raises:
      ValueError: these are no ids, or not as many.
    """
    if stored.dtype == np.uint8:
        names = json.loads(stored.tobytes())
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError("expected a list of strings as ids")
        stored = np.empty(len(names), object)
        stored[:] = names
    elif stored.dtype != np.int64:
        raise ValueError(f"expected ids as text or int64, got {stored.dtype}")
    if count is not None and stored.shape != (count,):
        raise ValueError(f"expected {count} ids, got shape {stored.shape}")
    return stored


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
    arrays["row_ids"], arrays["column_ids"] = encode_ids(row_ids), encode_ids(column_ids)
    write_arrays(path, arrays, {"metamf_jax": "factors"})


def load_factors(path: str | os.PathLike) -> tuple[Factors, np.ndarray, np.ndarray]:
    """Reads what `save_factors` wrote: (factors, row ids, column ids).

    Raises:
      ValueError: there is no such file, or it is another one.
    """
    if not pathlib.Path(path).exists():
        raise ValueError(f"{path} does not exist: expected factors as a factorization leaves them")
    with refusing_foreign(path, "factors of this package"):
        arrays = safetensors.numpy.load_file(path)
        factors = Factors(arrays["u"], arrays["v"])
        sides = (("row_ids", factors.u), ("column_ids", factors.v))
        ids = [decode_ids(arrays[name], len(factor)) for name, factor in sides]
        for name, factor in zip("uv", factors, strict=True):
            if factor.ndim != 2 or factor.dtype != np.float32 or not np.isfinite(factor).all():
                raise ValueError(
                    f"expected {name} as a matrix of finite float32, got {factor.dtype} of shape "
                    f"{factor.shape}"
                )
        if factors.u.shape[1] != factors.v.shape[1]:
            raise ValueError(f"u has rank {factors.u.shape[1]}, v {factors.v.shape[1]}")
        return factors, ids[0], ids[1]
