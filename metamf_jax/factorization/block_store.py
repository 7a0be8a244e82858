"""A matrix cut into blocks on disk, to be factorized without holding all of its entries in memory.

A folder with

==================  ================================================================================
manifest.json       version, shape, sums over the values, what it was made from, a checksum of every
                    other file
row_rank.npy        [N] int32: row n is in block ``rank % P``, at place ``rank // P``
column_rank.npy     [M] int32, likewise
row_count.npy       [N] int32, numbers of training entries
column_count.npy    [M] int32
offsets.npy         [P, P, Q + 1] int32, see `blocks.Blocks`
points-00000.npy    [3, L] int32, of row block 0: places in row block and column block, and the
                    float32 values as their bits; sorted as in `blocks.Blocks`
test.npy            [3, E'] int32, held-out entries: rows, columns, bits of the values
row_ids.npy         names of the rows, see `factor_file.encode_ids`; may be missing
column_ids.npy      likewise
==================  ================================================================================
"""

import contextlib
import dataclasses
import json
import math
import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from metamf_jax.factorization.blocks import (
    BlockEntries,
    BlockRng,
    Side,
    cut_row_block,
    cuts_for_cache,
    deal_sides,
    side_of_ranks,
)
from metamf_jax.factorization.factor_file import decode_ids, encode_ids
from metamf_jax.factorization.objective import Objective
from metamf_jax.runs.files import folder_written_aside, write_text
from metamf_jax.types import Entries

_FORMAT = "metamf_jax block store"
_VERSION = 2

# Of held-out entries, as they come.
_RAW_TEST = "raw-test"

_REMEDY = "delete it to have it built again, or give another folder"


class DuplicateCell(ValueError):
    """A cell that was given twice: `row` and `column`, counted from 0."""

    def __init__(self, row: int, column: int):
        self.row, self.column = row, column
        super().__init__(
            f"expected every cell once, but that at row {row}, column {column} was given twice"
            " (counted from 0); keep one of them"
        )


@dataclasses.dataclass(frozen=True)
class BlockStore:
    """A store that was opened. Entries are read block by block; the rest is in memory.

    Attributes:
      folder: where it lies.
      u: where the rows went.
      v: where the columns went.
      offsets: [P, P, Q + 1] int32, see `blocks.Blocks`.
      own: the row blocks that this process reads.
      row_count: [N] int32, numbers of entries.
      column_count: [M] int32.
      test: held-out entries.
      manifest: what ``manifest.json`` holds.
      shift: is subtracted from every value that is read.
      unit: divides what is left, in float64; None leaves it in float32 as it is.
    """

    folder: Path
    u: Side
    v: Side
    offsets: np.ndarray
    own: range
    row_count: np.ndarray
    column_count: np.ndarray
    test: Entries
    manifest: dict[str, Any]
    shift: float = 0.0
    unit: float | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(N, M)."""
        return self.u.size, self.v.size

    @property
    def num_blocks(self) -> int:
        """P."""
        return len(self.offsets)

    @property
    def num_entries(self) -> int:
        """E, of all row blocks."""
        return self.manifest["values"]["count"]

    @property
    def mean(self) -> float:
        """Of the values as they are in the store."""
        return self.manifest["values"]["sum"] / self.num_entries

    @property
    def bounds(self) -> tuple[float, float]:
        """The least and the greatest of the values as they are in the store."""
        return self.manifest["values"]["least"], self.manifest["values"]["greatest"]

    @property
    def moments(self) -> tuple[int, float, float]:
        """Number, sum and sum of squares of the values, less `shift`; whatever the `unit`."""
        values = self.manifest["values"]
        count, total, squares = values["count"], values["sum"], values["sum_of_squares"]
        squares += count * self.shift**2 - 2 * self.shift * total
        return count, total - count * self.shift, squares

    def read(self, i: int, j: int) -> BlockEntries:
        """The entries of block (i, j), as `blocks.Blocks.read`."""
        # Mapped for the moment of reading only: pages that stay mapped count as this process's.
        row_block = np.load(self.folder / _entries_name(i), mmap_mode="r")
        rows, columns, bits = row_block[:, self.offsets[i, j, 0] : self.offsets[i, j, -1]]
        values = np.array(bits).view(np.float32)
        if self.unit is not None:
            values = ((values.astype(np.float64) - self.shift) / self.unit).astype(np.float32)
        elif self.shift:
            values -= np.float32(self.shift)
        return BlockEntries(np.array(rows), np.array(columns), values)

    def check_values(self, objective: Objective) -> None:
        """Refuses values the loss has no meaning for, as `objective.check_values`.

        Raises:
          ValueError: there are some.
        """
        values = self.manifest["values"]
        domain = objective.record.domain
        against = domain and domain.refuses(values["least"], values["are_labels"])
        if domain and against:
            raise ValueError(
                f"{self.folder}: expected {domain.what} under the loss {objective.loss!r}, but"
                f" {against}"
            )

    def sample(self, at_least: int) -> Entries:
        """The entries of the first few row and column blocks, which are a random sub-matrix.

        Args:
          at_least: number of entries wanted; all where there are fewer.
        """
        sizes = self.offsets[:, :, -1] - self.offsets[:, :, 0]
        blocks = 1
        while blocks < len(sizes) and sizes[:blocks, :blocks].sum() < at_least:
            blocks += 1
        parts = []
        for i in range(blocks):
            for j in range(blocks):
                rows, columns, values = self.read(i, j)
                parts.append((i + rows * blocks, j + columns * blocks, values))
        rows, columns, values = (np.concatenate(x) for x in zip(*parts, strict=True))
        return Entries(
            rows.astype(np.int32),
            columns.astype(np.int32),
            values,
            (blocks * self.u.shape[1], blocks * self.v.shape[1]),
        )

    def ids(self) -> tuple[np.ndarray, np.ndarray]:
        """Names of the rows [N] and of the columns [M]; numbers where the store has none."""
        found = []
        for side, size in zip(("row", "column"), self.shape, strict=True):
            path = self.folder / f"{side}_ids.npy"
            found.append(decode_ids(np.load(path), size) if path.exists() else np.arange(size))
        return found[0], found[1]


def _entries_name(i: int) -> str:
    return f"points-{i:05}.npy"


def _checksum(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while data := file.read(1 << 22):
            checksum = zlib.crc32(data, checksum)
    return checksum


def build_store(
    folder: str | os.PathLike,
    chunks: Iterable[Entries],
    shape: tuple[int, int],
    num_blocks: int,
    width: int | None,
    rng: np.random.Generator,
    block_rng: BlockRng,
    made_from: dict[str, Any],
    ids: tuple[np.ndarray, np.ndarray] | None = None,
    held_out: tuple[float, np.random.Generator] | None = None,
) -> None:
    """Writes a store, aside and renamed.

    Memory holds one chunk, or one row block's entries a few times over, and a few numbers a row and
    column. The disk holds the entries twice for a while.

    Args:
      folder: must not be there yet.
      chunks: the entries, no cell twice; read once. Their shape is not read.
      shape: (N, M).
      num_blocks: P.
      width: columns of the factors to come, which size the sub-blocks; None for whole blocks.
      rng: permutes rows and columns.
      block_rng: draws the order of each block's entries.
      made_from: what to remember about the input; JSON.
      ids: names of rows and columns.
      held_out: part of the entries to hold out for testing, and what draws them.

    Raises:
      DuplicateCell: a cell is given twice.
      ValueError: an entry outside the matrix, or not finite; more blocks than rows or columns; no
        entry at all; or the folder is there.
    """
    sides = deal_sides(shape, num_blocks, rng)
    with folder_written_aside(folder) as aside:
        seen = _deal_out(aside, chunks, shape, sides[0], held_out)
        if seen.values.count == 0:
            raise ValueError(f"{folder}: expected at least one entry to train on, got none")
        cuts = 1, 1
        if width is not None:
            cuts = cuts_for_cache(shape, num_blocks, width, seen.values.count)
        offsets = np.stack(
            [_sort_row_block(aside, i, sides, cuts, block_rng) for i in range(num_blocks)]
        )
        test = np.fromfile(aside / _RAW_TEST, np.int32).reshape(-1, 3).T
        (aside / _RAW_TEST).unlink()
        arrays = {
            "row_rank": sides[0].block + sides[0].place * num_blocks,
            "column_rank": sides[1].block + sides[1].place * num_blocks,
            "row_count": seen.rows,
            "column_count": seen.columns,
            "offsets": offsets,
            "test": np.ascontiguousarray(test),
        }
        if ids is not None:
            arrays["row_ids"], arrays["column_ids"] = map(encode_ids, ids)
        for name, array in arrays.items():
            np.save(aside / f"{name}.npy", array)
        manifest = {
            "format": _FORMAT,
            "version": _VERSION,
            "shape": list(shape),
            "num_blocks": num_blocks,
            "values": seen.values.sums(),
            "made_from": made_from,
            "files": {
                path.name: {"bytes": path.stat().st_size, "crc32": _checksum(path)}
                for path in sorted(aside.iterdir())
            },
        }
        write_text(aside / "manifest.json", json.dumps(manifest, indent=2) + "\n")


class _Seen(NamedTuple):
    """What is known of the entries to train on: their values, and numbers a row and column."""

    values: "_ValueSums"
    rows: np.ndarray
    columns: np.ndarray


def _raw_name(i: int) -> str:
    return f"raw-{i:05}"


def _deal_out(
    folder: Path,
    chunks: Iterable[Entries],
    shape: tuple[int, int],
    u: Side,
    held_out: tuple[float, np.random.Generator] | None,
) -> _Seen:
    """Writes the entries as they come to a raw file a row block, and those held out to one."""
    num_blocks = u.shape[0]
    seen = _Seen(_ValueSums(), *(np.zeros(size, np.int32) for size in shape))
    with contextlib.ExitStack() as files:
        raw = [folder / _raw_name(i) for i in range(num_blocks)]
        streams = [files.enter_context(path.open("wb")) for path in raw]
        test_stream = files.enter_context((folder / _RAW_TEST).open("wb"))
        begin = 0
        for chunk in chunks:
            packed = _checked(chunk, shape, begin)
            begin += len(packed)
            if held_out is not None:
                out = held_out[1].random(len(packed)) < held_out[0]
                packed[out].tofile(test_stream)
                packed = packed[~out]
            rows, columns, bits = packed.T
            seen.values.add(bits.copy().view(np.float32))
            for count, numbers in ((seen.rows, rows), (seen.columns, columns)):
                count += np.bincount(numbers, minlength=len(count))
            block = u.block[rows]
            order = np.argsort(block.astype(np.min_scalar_type(num_blocks)), kind="stable")
            ends = np.bincount(block, minlength=num_blocks).cumsum()
            for stream, part in zip(streams, np.split(order, ends[:-1]), strict=True):
                packed[part].tofile(stream)
    return seen


def _sort_row_block(
    folder: Path, i: int, sides: tuple[Side, Side], cuts: tuple[int, int], block_rng: BlockRng
) -> np.ndarray:
    """Turns the raw file of a row block into that of its entries; offsets [P, Q + 1] into these."""
    u, v = sides
    raw = folder / _raw_name(i)
    rows, columns, bits = np.fromfile(raw, np.int32).reshape(-1, 3).T
    _refuse_duplicates(rows, columns, v.size)
    entries = BlockEntries(u.place[rows], v.place[columns], bits.copy())
    entries, offsets = cut_row_block(i, sides, entries, v.block[columns], cuts, block_rng)
    np.save(folder / _entries_name(i), np.stack(entries))
    raw.unlink()
    return offsets


def _checked(chunk: Entries, shape: tuple[int, int], begin: int) -> np.ndarray:
    """The entries of a chunk as [E, 3] int32: row, column, bits of the value."""
    rows, columns, values = (np.asarray(x) for x in (chunk.rows, chunk.columns, chunk.values))
    inside = (rows >= 0) & (rows < shape[0]) & (columns >= 0) & (columns < shape[1])
    for mask, what in (
        (inside, f"cells inside a matrix of shape {shape}"),
        (np.isfinite(values), "finite values"),
    ):
        if not mask.all():
            at = int(np.argmin(mask))
            raise ValueError(
                f"expected {what}, but entry {begin + at} is {values[at]} at row {rows[at]}, column"
                f" {columns[at]}"
            )
    packed = np.empty((len(rows), 3), np.int32)
    packed[:, 0], packed[:, 1] = rows, columns
    packed[:, 2] = np.asarray(values, np.float32).view(np.int32)
    return packed


def _refuse_duplicates(rows: np.ndarray, columns: np.ndarray, num_columns: int) -> None:
    cell = np.sort(rows.astype(np.int64) * num_columns + columns)
    twice = np.flatnonzero(cell[1:] == cell[:-1])
    if len(twice):
        row, column = divmod(int(cell[twice[0]]), num_columns)
        raise DuplicateCell(row, column)


class _ValueSums:
    """Sums over values as they stream by."""

    def __init__(self):
        self.count, self._sums, self._squares = 0, [], []
        self._least, self._greatest, self._labels = math.inf, -math.inf, True

    def add(self, values: np.ndarray) -> None:
        if len(values):
            values = values.astype(np.float64)
            self.count += len(values)
            self._sums.append(values.sum())
            self._squares.append((values**2).sum())
            self._least = min(self._least, float(values.min()))
            self._greatest = max(self._greatest, float(values.max()))
            self._labels &= bool((np.abs(values) == 1).all())

    def sums(self) -> dict[str, Any]:
        return {
            "count": self.count,
            "sum": math.fsum(self._sums),
            "sum_of_squares": math.fsum(self._squares),
            "least": self._least,
            "greatest": self._greatest,
            "are_labels": self._labels,
        }


def open_store(
    folder: str | os.PathLike, made_from: dict[str, Any] | None = None, own: range | None = None
) -> BlockStore:
    """Opens a store and checks it: sizes of all files, contents of those that will be read.

    Args:
      folder: from `build_store`.
      made_from: what it must have been made from; None for anything.
      own: the row blocks that this process reads; None for all.

    Raises:
      ValueError: it is no store, of another version, damaged, or made from something else.
    """
    folder = Path(folder)
    manifest = _read_manifest(folder, made_from)
    num_blocks = manifest["num_blocks"]
    own = range(num_blocks) if own is None else own
    skipped = {_entries_name(i) for i in range(num_blocks) if i not in own}
    _check_files(folder, manifest["files"], skipped)

    def array(name):
        return np.load(folder / f"{name}.npy")

    rows, columns, bits = array("test")
    shape = tuple(manifest["shape"])
    return BlockStore(
        folder,
        side_of_ranks(array("row_rank"), num_blocks),
        side_of_ranks(array("column_rank"), num_blocks),
        array("offsets"),
        own,
        array("row_count"),
        array("column_count"),
        Entries(rows, columns, bits.view(np.float32), shape),
        manifest,
    )


def _read_manifest(folder: Path, made_from: dict[str, Any] | None) -> dict[str, Any]:
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        kind = manifest["format"], manifest["version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder} is no block store: {path} cannot be read ({error!r}); give another folder"
        ) from None
    if kind != (_FORMAT, _VERSION):
        raise ValueError(
            f"{folder}: expected a {_FORMAT} of version {_VERSION}, got {kind[0]!r} of version"
            f" {kind[1]!r}; {_REMEDY}"
        )
    if made_from is not None and made_from != manifest["made_from"]:
        there = manifest["made_from"]
        differences = [
            f"{name}: {there.get(name)!r} there, {made_from.get(name)!r} now"
            for name in sorted(made_from.keys() | there.keys())
            if there.get(name) != made_from.get(name)
        ]
        raise ValueError(
            f"{folder} is a block store of something else ({'; '.join(differences)}); {_REMEDY}"
        )
    return manifest


def _check_files(folder: Path, files: dict[str, Any], skipped: set[str]) -> None:
    """Refuses files of another size, or, but for those skipped, of another checksum."""
    for name, expected in files.items():
        file = folder / name
        size = file.stat().st_size if file.exists() else None
        if size != expected["bytes"]:
            raise ValueError(
                f"{file}: expected {expected['bytes']} bytes, got"
                f" {'no file' if size is None else size}: the store is damaged; {_REMEDY}"
            )
        if name not in skipped and _checksum(file) != expected["crc32"]:
            raise ValueError(f"{file}: its checksum differs: the store is damaged; {_REMEDY}")
