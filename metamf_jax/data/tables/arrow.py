"""Columns of pyarrow from NumPy arrays, and back.

From their buffers, since ``pa.array`` and ``to_numpy`` import pandas where that is installed: a
third of a second.
"""

import numpy as np
import pyarrow as pa


def to_numpy(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """The numbers [E] of a column, of its type: integers, or floating with NaN where null.

    Raises:
      TypeError: integers with nulls, which no NaN stands for.
    """
    dtype = np.dtype(column.type.to_pandas_dtype())
    parts = [np.empty(0, dtype)]
    for chunk in column.chunks if isinstance(column, pa.ChunkedArray) else [column]:
        valid, data = chunk.buffers()
        part = slice(chunk.offset, chunk.offset + len(chunk))
        parts.append(np.frombuffer(data, dtype)[part] if len(chunk) else parts[0])
        if chunk.null_count:
            if dtype.kind != "f":
                raise TypeError(f"{column.type} with {chunk.null_count} nulls has no NaN for them")
            bits = np.unpackbits(np.frombuffer(valid, np.uint8), bitorder="little")[part]
            parts[-1] = np.where(bits, parts[-1], dtype.type(np.nan))
    return np.concatenate(parts)


def from_numpy(values: np.ndarray) -> pa.Array | pa.ChunkedArray:
    """Numbers [E], or strings as objects; chunked where these take more than 2 GB."""
    if values.dtype.kind in "iuf":
        data = np.ascontiguousarray(values)
        kind, buffers = pa.from_numpy_dtype(data.dtype), [pa.py_buffer(data)]
    else:
        texts = [text.encode() for text in values.tolist()]
        ends = np.cumsum([0, *map(len, texts)])
        if ends[-1] > np.iinfo(np.int32).max:
            return pa.array(values)
        parts = ends.astype(np.int32), b"".join(texts)
        kind, buffers = pa.string(), list(map(pa.py_buffer, parts))
    return pa.Array.from_buffers(kind, len(values), [None, *buffers])
