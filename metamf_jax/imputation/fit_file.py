"""A fit of the imputer as one safetensors file, to be applied to further rows in another process.

Arrays are stored as they are, in their order in memory, since sums over another one may differ in
the last bit; levels of columns as Arrow's stream of one column. The records around them are JSON in
the header, each by its name and its fields. Only the records of `_RECORDS` are written and read:
nothing in a file is executed.
"""

import dataclasses
import datetime
import decimal
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import pyarrow as pa
import safetensors
import safetensors.numpy

from metamf_jax.bias_model import Effects
from metamf_jax.factorization.factor_file import decode_ids, encode_ids
from metamf_jax.imputation import margins
from metamf_jax.imputation.candidates import Cells, ColumnState
from metamf_jax.imputation.columns import Column
from metamf_jax.imputation.completion import Completion
from metamf_jax.imputation.feature_tables import Features
from metamf_jax.imputation.forest import Forest
from metamf_jax.imputation.held_out import Check
from metamf_jax.imputation.level_forest import LevelForest
from metamf_jax.imputation.mixed import Mixed
from metamf_jax.imputation.normal_scores import Marginals
from metamf_jax.imputation.places import Places
from metamf_jax.imputation.posterior import Posterior, Side
from metamf_jax.imputation.prior import LearnedPrior, TrainedOn
from metamf_jax.imputation.row_gaussian import RowGaussian
from metamf_jax.imputation.row_index import RowIndex
from metamf_jax.imputation.row_models import Corrected, RowModels
from metamf_jax.imputation.sampled import Sampled
from metamf_jax.imputation.scaling import Bounds, Scaling
from metamf_jax.meta_learning.encoder import Context, EncoderConfig
from metamf_jax.meta_learning.episodes import Standardization
from metamf_jax.meta_learning.map_estimation import MapConfig
from metamf_jax.meta_learning.meta_loss import MetaParams, ModelConfig
from metamf_jax.posterior.chains import Draws
from metamf_jax.posterior.copula import Parameters
from metamf_jax.posterior.entry_effects import EntryEffects
from metamf_jax.posterior.gibbs import GibbsConfig
from metamf_jax.posterior.given import Coding, GivenFeatures
from metamf_jax.posterior.hyperprior import Hyperprior
from metamf_jax.posterior.learned_hyperprior import LearnedHyperprior
from metamf_jax.posterior.pattern import SideFeatures
from metamf_jax.runs.checkpoint import refusing_foreign, write_arrays
from metamf_jax.types import Entries

# One more where older files cannot be read any longer.
_VERSION = 2
_HEADER = "imputer"
# What a completion is made of; a record of a new kind is a name here.
_RECORDS = {
    record.__name__: record
    for record in (
        *(Completion, Entries, Places, Scaling, Bounds, Cells, Check, RowIndex),
        *(ColumnState, Context, Effects, Posterior, Side),
        *(RowModels, Corrected, RowGaussian, Forest, Marginals),
        *(LearnedPrior, ModelConfig, EncoderConfig, MapConfig, MetaParams),
        *(TrainedOn, Standardization),
        *(Sampled, GibbsConfig, LearnedHyperprior),
        *(SideFeatures, Draws, Hyperprior, EntryEffects),
        *(Mixed, Column, Parameters, LevelForest),
        *(margins.Constant, margins.Straight, margins.Scores, margins.Classes),
        *(Features, GivenFeatures, Coding),
    )
}


class NamedCompletion(NamedTuple):
    """A fit, and what its rows and columns are called.

    Attributes:
      completion: the matrix, or the frame of typed columns.
      row_ids: [N] integers or strings, or None where rows have no names; of a matrix.
      column_ids: [M] likewise.
      options: that it was completed with, those of `MetaMFImputer`, for JSON.
    """

    completion: Completion | Mixed
    row_ids: np.ndarray | None
    column_ids: np.ndarray | None
    options: dict[str, Any]


def save(path: str | os.PathLike, named: NamedCompletion) -> None:
    """Writes a fit, aside and renamed.

    Raises:
      ValueError: there is no such folder, or a name of a column is neither text nor a number.
      OSError: the file cannot be written.
    """
    arrays: dict[str, np.ndarray] = {}
    tree = _taken_apart(named.completion, "completion", arrays)
    for name in ("row_ids", "column_ids"):
        ids = getattr(named, name)
        if ids is not None:
            arrays[name] = encode_ids(ids)
    header = {
        "metamf_jax": _HEADER,
        "version": str(_VERSION),
        "completion": json.dumps(tree),
        "options": json.dumps({name: _written(x) for name, x in named.options.items()}),
    }
    write_arrays(path, arrays, header)


def load(path: str | os.PathLike) -> NamedCompletion:
    """Reads what `save` wrote; its answers are the same to the last bit.

    Raises:
      ValueError: there is no such file, it is another one, or another version wrote it.
    """
    header = _header(path)
    with refusing_foreign(path, "a fit of the imputer"):
        arrays = safetensors.numpy.load_file(path)
        completion = _put_together(json.loads(header["completion"]), arrays)
        options = {name: _read(x) for name, x in json.loads(header["options"]).items()}
        if isinstance(completion, Mixed):
            return NamedCompletion(completion, None, None, options)
        if not isinstance(completion, Completion):
            raise ValueError(f"expected a completion, got {type(completion).__name__}")
        rows, columns = (
            decode_ids(arrays[name], count) if name in arrays else None
            for name, count in zip(("row_ids", "column_ids"), completion.shape, strict=True)
        )
        return NamedCompletion(completion, rows, columns, options)


def is_typed(path: str | os.PathLike) -> bool:
    """Whether a file holds a fit of typed columns; its arrays are not read.

    Raises:
      ValueError: as of `load`.
    """
    tree = json.loads(_header(path)["completion"])
    return isinstance(tree, dict) and tree.get("record") == Mixed.__name__


def _header(path: str | os.PathLike) -> dict[str, str]:
    """What a file says beside its arrays.

    Raises:
      ValueError: as of `load`.
    """
    if not pathlib.Path(path).exists():
        raise ValueError(f"{path} does not exist: expected a fit of the imputer")
    with refusing_foreign(path, "a fit of the imputer"):
        with safetensors.safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
        if header.get("metamf_jax") != _HEADER:
            raise ValueError("it was written by something else")
        if header["version"] != str(_VERSION):
            raise ValueError(
                f"its format is version {header['version']}, and this package reads {_VERSION}: "
                "fit again"
            )
    return header


def _written(option: Any) -> Any:
    """An option as JSON, whose keys may be numbers; dates as text."""
    if hasattr(option, "_asdict"):
        option = option._asdict()
    if isinstance(option, Mapping):
        return {"pairs": [[key, _written(x)] for key, x in option.items()]}
    if isinstance(option, list | tuple | np.ndarray):
        return [_written(x) for x in option]
    if isinstance(option, decimal.Decimal):
        return float(option)
    if isinstance(option, datetime.date | np.datetime64):
        return str(option)
    return option.item() if isinstance(option, np.generic) else option


def _read(written: Any) -> Any:
    """Undoes `_written`."""
    if isinstance(written, dict):
        return {key: _read(x) for key, x in written["pairs"]}
    return [_read(x) for x in written] if isinstance(written, list) else written


def _taken_apart(value: Any, path: str, arrays: dict[str, np.ndarray]) -> Any:
    """A value as JSON, its arrays put to the others by their paths."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        array = np.asarray(value)
        axes = np.argsort(array.strides, kind="stable")[::-1].tolist()
        if array.flags.c_contiguous:
            axes = list(range(array.ndim))
        arrays[path] = np.array(array.transpose(axes), order="C")
        return {"array": path, "axes": axes, "scalar": isinstance(value, np.generic)}
    if isinstance(value, pa.Array):
        arrays[path] = _stream(value)
        return {"levels": path}
    if isinstance(value, Mapping):
        return {"named": {k: _taken_apart(v, f"{path}.{k}", arrays) for k, v in value.items()}}
    if type(value) is tuple:
        return {"listed": [_taken_apart(v, f"{path}.{n}", arrays) for n, v in enumerate(value)]}
    name = type(value).__name__
    if _RECORDS.get(name) is not type(value):
        raise TypeError(f"{path} is a {name}, which fit_file does not know")
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
    else:
        names = value._fields
    fields = {k: _taken_apart(getattr(value, k), f"{path}.{k}", arrays) for k in names}
    return {"record": name, "fields": fields}


def _stream(array: pa.Array) -> np.ndarray:
    """One column as the bytes of Arrow's stream format."""
    sink, batch = pa.BufferOutputStream(), pa.record_batch([array], ["levels"])
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return np.frombuffer(sink.getvalue(), np.uint8)


def _put_together(tree: Any, arrays: dict[str, np.ndarray]) -> Any:
    """Undoes `_taken_apart`."""
    if not isinstance(tree, dict):
        return tree
    if "array" in tree:
        array = arrays[tree["array"]].transpose(np.argsort(tree["axes"]).astype(int))
        return array[()] if tree["scalar"] else array
    if "levels" in tree:
        with pa.ipc.open_stream(arrays[tree["levels"]].tobytes()) as reader:
            return reader.read_all().column(0).combine_chunks()
    if "named" in tree:
        return {k: _put_together(v, arrays) for k, v in tree["named"].items()}
    if "listed" in tree:
        return tuple(_put_together(v, arrays) for v in tree["listed"])
    fields = {k: _put_together(v, arrays) for k, v in tree["fields"].items()}
    return _RECORDS[tree["record"]](**fields)
