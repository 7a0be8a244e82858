"""Feeds damaged and hostile files to everything that reads files.

Claim: whatever a file holds, a reader gives its contents or a ValueError that names the file,
within seconds and with memory bounded by the file's size; nothing is unpickled, nothing crashes.

    python -m experiments.robustness.fuzz --inputs=10000

Every reader runs in processes of its own under a limit of memory and time, on that many mutations
of valid files. The last line counts crashes, hangs and wrong exceptions; the inputs that caused
them are kept in ``--workdir``. The exit code is 1 if there were any.
"""

import collections
import functools
import gzip
import io
import json
import multiprocessing
import os
import pathlib
import random
import re
import resource
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import scipy.sparse
from absl import flags

from experiments import common, presets
from metamf_jax.data import jester, movielens, tables
from metamf_jax.factorization import factor_file
from metamf_jax.imputation.prior import LearnedPrior, TrainedOn, metadata, read_prior
from metamf_jax.meta_learning import meta_loss
from metamf_jax.meta_learning.episodes import Standardization
from metamf_jax.posterior import draws_file, pattern
from metamf_jax.posterior.chains import Draws
from metamf_jax.posterior.fold_in import Recipe
from metamf_jax.posterior.given import none_given
from metamf_jax.posterior.hyperprior import Hyperprior
from metamf_jax.posterior.predictive import Scale
from metamf_jax.runs import checkpoint, run_log
from metamf_jax.types import Factors

_INPUTS = flags.DEFINE_integer("inputs", 10_000, "Mutated files for each reader.", lower_bound=1)
_READERS = flags.DEFINE_list("readers", None, "Only these; default: all.")
_TIME_LIMIT = flags.DEFINE_float(
    "time_limit", 60.0, "Processor seconds that reading one file may take, or seconds of waiting."
)

# What a process may add to its memory: imports, threads' stacks and caches come out of it too.
_MEMORY = 1 << 30


class Reader(NamedTuple):
    """Something that reads files.

    Attributes:
      name: the file's name, which tells its format; may begin with a folder.
      seeds: makes valid contents, at least one.
      read: of the path and of the folder that ``name`` is in.
      rewrite: mutates the inside of a container that remains valid itself: takes the contents and
        a mutation.
      rarer: one of so many inputs, where reading is slow.
    """

    name: str
    seeds: Callable[[], list[bytes]]
    read: Callable[[pathlib.Path, pathlib.Path], object]
    rewrite: Callable | None = None
    rarer: int = 1


class Outcome(NamedTuple):
    """How reading went: ``read``, ``refused``, or what was wrong; and the message."""

    kind: str
    message: str


_ENTRIES = [("ann", "tea", 4), ("bob", "tea", 2.5), ("ann", "jam", -5), ("cid", "jam", 1e-3)]
_NUMBERED = [(1, 2, 3), (2, 2, 1.5), (7, 1, 4), (3, 3, 5)]


def _lines(separator: str, entries, header: str = "") -> bytes:
    body = "".join(separator.join(map(str, entry)) + "\n" for entry in entries)
    return (header + body).encode()


def _pairs(separator: str) -> Callable[[], list[bytes]]:
    return lambda: [
        _lines(separator, _ENTRIES),
        _lines(separator, _ENTRIES, separator.join(("user", "item", "rating")) + "\n"),
        _lines(separator, [(*entry, 10**9 + n) for n, entry in enumerate(_NUMBERED)]),
        _lines(
            separator,
            [(*_ENTRIES[0], "2020-01-02T03:04:05+01:00")],
            separator.join(("row", "column", "value", "time")) + "\n",
        ),
        _lines(separator, [(f'"{row} ""x"""', column, x) for row, column, x in _ENTRIES]),
        _lines(separator, [(f"u{n % 9}", f"i{n}", n / 7) for n in range(100)]),
    ]


def _dense() -> list[bytes]:
    return [
        b"user,tea,jam,egg\nann,4,5,4.5\nbob,2,,3\ncid,,1,\n",
        b"1,2,\n3,NA,4\n,5,6\n",
        b"row/column,a,b\n1,?,2\n2,3,nan\n",
        b"0.5\n\n1.5\n",
    ]


def _matrix_market() -> list[bytes]:
    head = b"%%MatrixMarket matrix coordinate real "
    return [
        head + b"general\n% a comment\n9 9 4\n" + _lines(" ", _NUMBERED),
        head + b"symmetric\n9 9 4\n" + _lines(" ", _NUMBERED),
        b"%%MatrixMarket matrix coordinate integer general\n3 3 1\n1 1 7\n",
    ]


def _written(write: Callable[[io.BytesIO], None]) -> bytes:
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


def _npz() -> list[bytes]:
    rows, columns, values = zip(*_NUMBERED, strict=True)
    matrix = scipy.sparse.coo_array((values, (rows, columns)), shape=(9, 9))

    def saved(form, packed):
        return _written(lambda file: scipy.sparse.save_npz(file, form, compressed=packed))

    forms = (matrix, matrix.tocsr(), matrix.tocsc())
    return [saved(form, packed) for packed in (True, False) for form in forms]


def _parquet() -> list[bytes]:
    rows, columns, values = zip(*_ENTRIES, strict=True)
    found = [
        pa.table({"user": rows, "item": columns, "rating": list(map(float, values))}),
        pa.table({"row": [1, 2], "column": [3, 4], "value": [1, 2], "time": [10, 20]}),
        pa.table({"name": rows[1:], "a": [1.0, None, 2.0], "b": [None, 3.0, 4.0]}),
        pa.table({"user": pa.array(rows).dictionary_encode(), "item": columns, "rating": values}),
    ]

    def saved(table, packed):
        return _written(lambda file: pyarrow.parquet.write_table(table, file, compression=packed))

    return [saved(table, packed) for packed in ("none", "snappy") for table in found]


def _jester() -> list[bytes]:
    rng = np.random.default_rng(0)
    lines = []
    for _ in range(6):
        ratings = [99.0] * 100
        for joke in rng.permutation(100)[:9]:
            ratings[joke] = round(float(rng.uniform(-10, 10)), 2)
        lines.append(",".join(map(str, [9, *ratings])))
    return ["\n".join(lines).encode()]


@functools.cache
def _prior() -> LearnedPrior:
    config = presets.TRAIN["smoke"]["model"]
    params = jax.tree.map(np.asarray, meta_loss.make_model(config).init(jax.random.key(0)))
    trained_on = TrainedOn(Standardization(0.5, 2.0), (-3.0, 3.0), (12, 12))
    return LearnedPrior(config, params, trained_on)


def _saved(save: Callable[[pathlib.Path], None], name: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        save(pathlib.Path(folder) / name)
        return (pathlib.Path(folder) / name).read_bytes()


def _params() -> list[bytes]:
    prior = _prior()
    return [_saved(lambda p: checkpoint.save_params(p, prior.params, metadata(prior)), "model")]


def _factors() -> list[bytes]:
    factors = Factors(np.ones((3, 2), "f"), np.zeros((2, 2), "f"))
    names = np.array(["ann", "bob", "ü"], object)

    def saved(ids):
        return _saved(
            lambda path: factor_file.save_factors(path, factors, ids, np.array([7, 8])), "factors"
        )

    return [saved(names), saved(np.arange(3))]


def _draws() -> list[bytes]:
    ones = functools.partial(np.ones, dtype=np.float32)
    prior = Hyperprior(ones((2, 3, 3)), ones((2, 3, 3)), ones((2, 1)))
    sides = ones((2, 3, 3)), ones((2, 2, 3)), ones((2, 3)), ones((2, 2))
    draws = Draws(*sides, ones(2), prior, prior)
    names = np.array(["ann", "bob", "ü"], object)
    places = np.array([0, 0, 1, 2]), np.array([0, 1, 0, 1])
    of_rows, of_columns = pattern.pattern_features(*places, (3, 2), 0)
    recipes = Recipe(of_rows, none_given(3), 2.0), Recipe(of_columns, none_given(2), 3.0)
    scale = Scale(3.0, 1.0, 1.0, 5.0)
    named = draws_file.NamedDraws(draws, scale, names, np.array([7, 8]), recipes)
    return [_saved(lambda path: draws_file.save_draws(path, named), "draws")]


def _config() -> list[bytes]:
    return [
        json.dumps(
            {"experiment": "train", "config": {"rank": 3, "sides": [1, 2]}}, indent=2
        ).encode()
    ]


def _metrics() -> list[bytes]:
    return [b'{"step": 5, "seconds": 0.5, "loss": NaN}\n{"step": 10, "seconds": 1, "loss": 1e-3}\n']


_STATE = {"a": np.arange(5.0), "b": np.zeros((2, 3), np.float32)}


def _state() -> list[bytes]:
    def save(path):
        checkpoint.Checkpointer(path.parents[1]).save(int(path.stem), _STATE)

    return [_saved(save, "checkpoints/1.safetensors")]


def _rewrite_safetensors(data: bytes, change: Callable[[bytes], bytes]) -> bytes:
    length = int.from_bytes(data[:8], "little")
    header = change(data[8 : 8 + length])
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def _rewrite_zip(data: bytes, change: Callable[[bytes], bytes]) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    # Which one follows from the contents that the mutation gives.
    names = sorted(members)
    chosen = names[len(change(b"0123456789")) % len(names)]
    members[chosen] = change(members[chosen])

    def write(buffer):
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)

    return _written(write)


def _rewrite_gzip(data: bytes, change: Callable[[bytes], bytes]) -> bytes:
    return gzip.compress(change(data), 1, mtime=0)


def _table(path: pathlib.Path, folder: pathlib.Path) -> object:
    return tables.read_table(path)


READERS: Mapping[str, Reader] = {
    "csv": Reader("in.csv", _pairs(","), _table, _rewrite_gzip),
    "tsv": Reader("in.tsv", _pairs("\t"), _table, _rewrite_gzip),
    "text": Reader("in.txt", lambda: _pairs(" ")() + _dense(), _table, _rewrite_gzip),
    "libmf": Reader("in.libmf", lambda: [_lines(" ", _NUMBERED)], _table, _rewrite_gzip),
    "dense_csv": Reader("in.csv", _dense, _table, _rewrite_gzip),
    "parquet": Reader("in.parquet", _parquet, _table),
    "mtx": Reader("in.mtx", _matrix_market, _table, _rewrite_gzip),
    "npz": Reader("in.npz", _npz, _table, _rewrite_zip),
    "cells": Reader(
        "pairs.csv",
        lambda: [b"ann,tea\nbob,jam\n", b"item,user\n1,2\n3,4\n"],
        lambda path, folder: tables.read_pairs(path),
    ),
    "ml100k": Reader(
        "ml-100k/u.data",
        lambda: [_lines("\t", [(*entry, 881250949) for entry in _NUMBERED])],
        lambda path, folder: movielens.ml100k(folder),
    ),
    "ml1m": Reader(
        "ml-1m/ratings.dat",
        lambda: [_lines("::", [(*entry, 978300760) for entry in _NUMBERED])],
        lambda path, folder: movielens.ml1m(folder),
    ),
    "latest_small": Reader(
        "ml-latest-small/ratings.csv",
        lambda: [
            _lines(",", [(*e, 964982703) for e in _NUMBERED], "userId,movieId,rating,timestamp\n")
        ],
        lambda path, folder: movielens.latest_small(folder),
    ),
    "jester": Reader(
        "jester/jester-data-1.csv", _jester, lambda path, folder: jester.jester(folder)
    ),
    "params": Reader(
        "model.safetensors",
        _params,
        lambda path, folder: checkpoint.load_params(path, _prior().params),
        _rewrite_safetensors,
    ),
    "prior": Reader(
        "model.safetensors",
        _params,
        lambda path, folder: read_prior(path),
        _rewrite_safetensors,
        rarer=10,
    ),
    "factors": Reader(
        "factors.safetensors",
        _factors,
        lambda path, folder: factor_file.load_factors(path),
        _rewrite_safetensors,
    ),
    "draws": Reader(
        "draws.safetensors",
        _draws,
        lambda path, folder: draws_file.load_draws(path),
        _rewrite_safetensors,
    ),
    "config": Reader("config.json", _config, lambda path, folder: run_log.read_config(folder)),
    "metrics": Reader("metrics.jsonl", _metrics, lambda path, folder: run_log.read_metrics(folder)),
    "run_state": Reader(
        "checkpoints/1.safetensors",
        _state,
        lambda path, folder: checkpoint.Checkpointer(folder).restore(_STATE),
        _rewrite_safetensors,
    ),
}

_EXTREMES = [
    *(b"0", b"-1", b"007", b"+1", b"1e309", b"-1e309", b"1e38", b"3.5e38", b"1e-400", b"0x10"),
    *(b"2147483648", b"4294967296", b"9223372036854775807", b"9223372036854775808", b"-0.0"),
    *(b"1000000000", b"1000000000000000000", b"9" * 400, b"nan", b"inf", b"-inf", b"NA", b"1_0"),
]
_TOKENS = [
    *(b",", b";", b"\t", b" ", b"::", b'"', b'""', b"\n", b"\r\n", b"\r", b"\0", b"\xff", b"\xef"),
    *("\ufeff\u2028\u00a0\u0660٣".encode(), b"%", b"%%MatrixMarket", b"PAR1", b"PK\x03\x04"),
    *(b"\x1f\x8b\x08", b"\x93NUMPY", b"row,column,value\n", b"a" * 5000, b"[" * 2000, b"{}"),
    *(b"null", b"true", b"Infinity", b"|O", b"<f8", b"<i8", b"<U9", b">f4", b"|S3", b"complex64"),
    *(b"'shape': (1000000000, 1000000000)", b'"shape":[1000000000,1000000000]', b'"BF16"', b"F64"),
]


def mutate(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """One to four random changes of some bytes: of bits, lengths, numbers, lines, tokens."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        data = _mutate_once(rng, data, others)
    return data


def _mutate_once(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    place = rng.randint(0, len(data))
    end = min(len(data), place + rng.choice((1, 2, 8, 50, 500)))
    kind = rng.randrange(11)
    if kind == 0 and data:
        place = rng.randrange(len(data))
        return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]
    if kind == 1:
        return data[:place] + rng.randbytes(end - place) + data[end:]
    if kind == 2:
        return data[:place] + rng.randbytes(rng.choice((1, 4, 40))) + data[place:]
    if kind == 3:
        return data[:place] + data[end:]
    if kind == 4:
        return data[:end] + data[place:end] * rng.choice((1, 2, 100)) + data[end:]
    if kind == 5:
        return data[:place]
    if kind == 6:
        numbers = list(re.finditer(rb"[-+]?[0-9][0-9.e]*", data))
        if numbers:
            number = rng.choice(numbers)
            return data[: number.start()] + rng.choice(_EXTREMES) + data[number.end() :]
    if kind == 7:
        return data[:place] + rng.choice(_TOKENS) + data[place:]
    if kind == 8:
        lines = data.split(b"\n")
        first, second = rng.randrange(len(lines)), rng.randrange(len(lines))
        lines[first], lines[second] = lines[second], lines[first]
        return b"\n".join(lines)
    if kind == 9:
        other = rng.choice(others)
        return data[:place] + other[rng.randint(0, len(other)) :]
    width = rng.choice((1, 2, 4, 8))
    extreme = rng.choice((0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1))
    packed = (extreme % 2 ** (8 * width)).to_bytes(width, "little")
    return data[:place] + packed + data[place + width :]


def make_input(name: str, number: int, seed: int, seeds: list[bytes]) -> bytes:
    """The mutated file of that number, the same in every process."""
    rng = random.Random(f"{seed} {name} {number}")
    data, rewrite = rng.choice(seeds), READERS[name].rewrite
    if rewrite is not None and rng.random() < 0.4:
        inner = rng.random()
        data = rewrite(data, lambda part: mutate(random.Random(f"{inner}"), part, seeds))
        if rng.random() < 0.7:
            return data
    return mutate(rng, data, seeds)


def check(name: str, data: bytes, folder: pathlib.Path) -> Outcome:
    """Reads one file as its reader does."""
    reader = READERS[name]
    path = folder / reader.name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    try:
        reader.read(path, folder)
    except ValueError as error:
        if type(error) is not ValueError:
            return Outcome(type(error).__name__, str(error))
        if str(folder) not in str(error):
            return Outcome("a ValueError without the file", str(error))
        return Outcome("refused", str(error))
    except Exception as error:
        return Outcome(type(error).__name__, str(error))
    return Outcome("read", "")


def _work(name: str, first: int, last: int, seed: int, connection) -> None:
    """Reads inputs ``first .. last - 1`` in this process and sends how each went."""
    common.logging.set_verbosity(common.logging.ERROR)
    seeds = READERS[name].seeds()
    with tempfile.TemporaryDirectory() as folder:
        # Whatever is loaded late or once shall not count.
        outcomes = [check(name, data, pathlib.Path(folder)) for data in seeds]
        if not any(outcome.kind == "read" for outcome in outcomes):
            raise AssertionError(f"valid files of {name} gave {outcomes}")
        with open("/proc/self/statm", encoding="ascii") as statm:
            size = int(statm.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + _MEMORY, size + _MEMORY))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for number in range(first, last):
            connection.send(number)
            outcome = check(name, make_input(name, number, seed, seeds), pathlib.Path(folder))
            kept = outcome.message if outcome.kind not in ("read", "refused") else ""
            connection.send(Outcome(outcome.kind, kept[:300]))
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        connection.send({"megabytes": (after - before) / 1024})
    connection.close()


def run_reader(
    name: str,
    inputs: int,
    seed: int,
    time_limit: float,
    kept: pathlib.Path,
    work: Callable[..., None] = _work,
) -> tuple[collections.Counter, float]:
    """Counts how so many inputs went, and the most megabytes they added to a process.

    The inputs that went wrong are written to ``kept``. A process that crashes or hangs is followed
    by another that goes on after the input that it was at.
    """
    counts: collections.Counter = collections.Counter()
    context = multiprocessing.get_context("spawn")
    megabytes, number, seeds = 0.0, -1, READERS[name].seeds()
    while number + 1 < inputs:
        receive, send = context.Pipe(duplex=False)
        worker = context.Process(target=work, args=(name, number + 1, inputs, seed, send))
        worker.start()
        send.close()
        started, problem = number, ""
        assert worker.pid is not None
        while True:
            # The first answer waits for the imports.
            if not _answers(receive, worker.pid, time_limit if number > started else 120):
                problem = "hang"
                worker.kill()
                break
            try:
                got = receive.recv()
            except EOFError:
                worker.join()
                problem = f"crash with exit code {worker.exitcode}" if worker.exitcode else ""
                break
            if isinstance(got, int):
                number = got
            elif isinstance(got, Outcome):
                counts[got.kind] += 1
                if got.kind not in ("read", "refused"):
                    _keep(kept, name, number, seed, seeds, f"{got.kind}: {got.message}")
            else:
                megabytes = max(megabytes, got["megabytes"])
        worker.join()
        if problem and number == started:
            raise RuntimeError(f"the reader {name} cannot be started: {problem}")
        if problem:
            counts[problem.split(" ")[0]] += 1
            _keep(kept, name, number, seed, seeds, problem)
    return counts, megabytes


def _answers(connection, pid: int, limit: float) -> bool:
    """Waits for an answer until the process has computed, or slept, for so many seconds.

    One that computes gets as much time as it needs where the machine is busy, or it is stopped; on
    Linux alone this can be told.
    """
    _, first = _progress(pid)
    before = first
    while not connection.poll(limit):
        state, seconds = _progress(pid)
        if seconds - first > limit or (state in "SD" and seconds - before < 0.01):
            return False
        before = seconds
    return True


def _progress(pid: int) -> tuple[str, float]:
    """A process's state as Linux names it (S: sleeping), and its processor seconds."""
    stat = pathlib.Path(f"/proc/{pid}/stat")
    if not stat.exists():
        return "S", 0.0
    state, *numbers = stat.read_text().rpartition(")")[2].split()
    return state, (int(numbers[10]) + int(numbers[11])) / os.sysconf("SC_CLK_TCK")


def _keep(kept: pathlib.Path, name: str, number: int, seed: int, seeds, problem: str) -> None:
    folder = kept / f"{name}-{number}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / pathlib.Path(READERS[name].name).name).write_bytes(
        make_input(name, number, seed, seeds)
    )
    print(f"  input {number} of {name}: {problem} (kept in {folder})", flush=True)


def main() -> None:
    names = _READERS.value or list(READERS)
    unknown = set(names) - READERS.keys()
    if unknown:
        raise ValueError(
            f"unknown readers {sorted(unknown)}; expected some of {', '.join(READERS)}"
        )
    kept = pathlib.Path(common.WORKDIR.value or tempfile.mkdtemp(prefix="fuzz-"))
    total: collections.Counter = collections.Counter()
    print(
        f"{'reader':<14}{'inputs':>8}{'read':>8}{'refused':>9}{'wrong':>7}{'seconds':>9}{'MB':>6}"
    )
    for name in names:
        inputs = max(1, _INPUTS.value // READERS[name].rarer)
        begin = time.monotonic()
        counts, megabytes = run_reader(name, inputs, common.SEED.value, _TIME_LIMIT.value, kept)
        wrong = counts.total() - counts["read"] - counts["refused"]
        print(
            f"{name:<14}{inputs:>8}{counts['read']:>8}{counts['refused']:>9}{wrong:>7}"
            f"{time.monotonic() - begin:>9.1f}{megabytes:>6.0f}",
            flush=True,
        )
        total += counts
    wrong = total.total() - total["read"] - total["refused"]
    exceptions = wrong - total["crash"] - total["hang"]
    print(
        f"{total.total()} inputs: {total['crash']} crashes, {total['hang']} hangs, "
        f"{exceptions} wrong exceptions"
    )
    if not wrong and common.WORKDIR.value is None:
        os.rmdir(kept)
    if wrong:
        sys.exit(1)


if __name__ == "__main__":
    common.run_main(main)
