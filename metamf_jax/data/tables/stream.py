"""Texts of pairs, a line for each entry, read piece by piece: for files larger than memory.

The file is read twice, once for the ids and once for the entries. Both passes keep the ids and one
piece. What `tables.read_table` says of a wrong line is said here too, with the line's number.
"""

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from metamf_jax.data import tables
from metamf_jax.data.tables import text as text_tables
from metamf_jax.data.tables.format import TableFormat
from metamf_jax.data.tables.source import Source, as_source, opened, typed_ids
from metamf_jax.types import Entries

# Bytes of text in a piece.
_PIECE = 1 << 25


class PairStream:
    """A text of pairs that was read once, for its ids.

    Attributes:
      row_ids: [N], as `tables.read_table` gives them.
      column_ids: [M].
    """

    def __init__(self, path: Path, found: TableFormat):
        self._path, self._found = path, found
        self._index: tuple[dict[str, int], dict[str, int]] = ({}, {})
        for _ in self._coded():
            pass
        self.row_ids, self.column_ids = (typed_ids(list(index)) for index in self._index)

    @property
    def shape(self) -> tuple[int, int]:
        """(N, M)."""
        return len(self.row_ids), len(self.column_ids)

    def chunks(self) -> Iterator[Entries]:
        """The entries, in the order of the file; one may come twice in different pieces."""
        for entries, _, _ in self._coded():
            yield dataclasses.replace(entries, shape=self.shape)

    def given_twice(self, row: int, column: int) -> ValueError:
        """The mistake of an entry that the file gives twice, from its numbers."""
        wanted = [str(ids[n]) for ids, n in ((self.row_ids, row), (self.column_ids, column))]
        lines: list[int] = []
        for entries, source, found in self._coded():
            if not ((entries.rows == row) & (entries.columns == column)).any():
                continue
            for line, _, tokens in text_tables.body(source, found):
                if [tokens[role] for role in found.roles[:2]] == wanted:
                    lines.append(line)
                    if len(lines) == 2:
                        return text_tables.given_twice(source, found, tokens, (lines[0], lines[1]))
        raise AssertionError(f"{self._path} changed while it was read")

    def _coded(self) -> Iterator[tuple[Entries, Source, TableFormat]]:
        """The entries of each piece by the numbers of all ids, with the piece."""
        found = self._found
        for source in _pieces(self._path, found):
            table = text_tables.read_pairs_text(source, found)
            rows, columns = (
                np.array([index.setdefault(str(x), len(index)) for x in ids.tolist()], np.int32)
                for index, ids in zip(self._index, (table.row_ids, table.column_ids), strict=True)
            )
            entries = table.entries
            yield (
                dataclasses.replace(
                    entries, rows=rows[entries.rows], columns=columns[entries.columns]
                ),
                source,
                found,
            )
            found = dataclasses.replace(found, header=None)


def open_pairs(path: str | os.PathLike) -> PairStream | None:
    """Reads the ids of a text of pairs, compressed or not; None for a file of another kind.

    Raises:
      FileNotFoundError, ValueError: as `tables.read_table`; but an entry that stands twice in
        different pieces is not seen here.
    """
    path = Path(path)
    first = next(_pieces(path, None))
    if first.format in ("parquet", "mtx", "npz"):
        return None
    found = tables.detect_source(first)
    return None if found.dense else PairStream(path, found)


def _pieces(path: Path, found: TableFormat | None) -> Iterator[Source]:
    """Pieces that end at a line's end; of a file not yet known, the first alone."""
    with opened(path) as (file, compressed):
        rest, lines = b"", 0
        while True:
            data = file.read(_PIECE)
            rest += data
            end = _end_of_piece(rest) if data else len(rest)
            piece, rest = rest[:end], rest[end:]
            if found is None and (piece or not data):
                yield as_source(path, piece, None, compressed)
                return
            if piece.strip():
                name = found.format if found else None
                yield as_source(path, piece, name, compressed, lines)
            lines += piece.count(b"\n")
            if not data:
                return


def _end_of_piece(data: bytes) -> int:
    """After the last line's end that is not within quotes; 0 for none."""
    end, quotes = data.rfind(b"\n") + 1, 0
    if data.count(b'"', 0, end) % 2:
        quotes = data.rfind(b'"', 0, end)
        end = data.rfind(b"\n", 0, quotes) + 1
    return end
