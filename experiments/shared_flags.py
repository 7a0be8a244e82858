"""Flags that some binaries have in common, each defined when a binary first asks for it.

A process may define a flag only once, and a flag that a binary does not read it must not have.
"""

import functools

from absl import flags

# Each flag belongs to the module that asks for it.
flags.disclaim_key_flags()


@functools.cache
def dataset() -> flags.FlagHolder[str]:
    """Of the binaries that take one data set."""
    told = "synthetic, ml100k, ml1m, latest_small, jester, or a file to read."
    return flags.DEFINE_string("dataset", "synthetic", told)


@functools.cache
def input_table() -> flags.FlagHolder[str | None]:
    """Of the binaries that take a user's table."""
    return flags.DEFINE_string("input", None, "A table of observed cells; see the README.")


@functools.cache
def start() -> flags.FlagHolder[str | None]:
    """Of the binaries that go on from what another run found."""
    told = (
        "File of an earlier run to start from: of pretrain its weights; of the samplers"
        " factors.safetensors of a fit of the same matrix, which saves burn-in, but R-hat tells"
        " less of chains that began together."
    )
    return flags.DEFINE_string("start", None, told)


@functools.cache
def output() -> flags.FlagHolder[str | None]:
    """Of the binaries that write answers."""
    return flags.DEFINE_string("output", None, "File to write; a table: .csv, .tsv or .parquet.")


@functools.cache
def pairs() -> flags.FlagHolder[str | None]:
    """Of the binaries that write answers for cells."""
    told = "Table of row and column ids; only these cells are written, in this order."
    return flags.DEFINE_string("pairs", None, told)


@functools.cache
def max_steps() -> flags.FlagHolder[int | None]:
    """Of the binaries that meta-train many times."""
    told = "Most steps of each meta-training; default: the preset's."
    return flags.DEFINE_integer("max_steps", None, told, lower_bound=1)


@functools.cache
def rating_sets() -> flags.FlagHolder[list[str] | None]:
    """Of the binaries that look at several rating sets."""
    return flags.DEFINE_list("rating_sets", None, "Names of rating sets; default: the usual ones.")


@functools.cache
def override() -> flags.FlagHolder[list[str]]:
    """Of the binaries that meta-train."""
    told = (
        "Changes one value of the preset, as in model.inner.steps=5; may be given several times. "
        "config.json has the names."
    )
    return flags.DEFINE_multi_string("override", [], told)


@functools.cache
def methods() -> flags.FlagHolder[list[str]]:
    """Of the binaries that compare methods."""
    return flags.DEFINE_list("methods", ["all"], "Names, or all; a wrong name lists those.")


@functools.cache
def random_splits() -> flags.FlagHolder[int]:
    """Of the binaries that judge by several splits."""
    return flags.DEFINE_integer("random_splits", 1, "How many of them.", lower_bound=1)


@functools.cache
def peers_python() -> flags.FlagHolder[str | None]:
    """Of the benchmarks beside other packages."""
    return flags.DEFINE_string("peers_python", None, "A Python that may have other packages.")


@functools.cache
def test_fraction() -> flags.FlagHolder[float]:
    """Of the binaries that hold test entries out."""
    return flags.DEFINE_float("test_fraction", 0.1, "Part of the cells held out, 0 to 0.9.")


@functools.cache
def draws() -> flags.FlagHolder[int | None]:
    """Of the binaries that draw posteriors, or tasks."""
    told = (
        "Draws: those kept of a posterior, of all chains together; or of each task of a benchmark."
    )
    return flags.DEFINE_integer("draws", None, told, lower_bound=1)


@functools.cache
def figures() -> flags.FlagHolder[list[str]]:
    """Of the binaries that draw."""
    return flags.DEFINE_list("figures", ["all"], "Names of figures, or all.")


@functools.cache
def side() -> flags.FlagHolder[int | None]:
    """Of the binaries that draw square matrices."""
    told = "N = M, rows and columns of a matrix. Default: 30, or the preset's."
    return flags.DEFINE_integer("side", None, told, lower_bound=2)


@functools.cache
def fold() -> flags.FlagHolder[str]:
    """Of the binaries with official splits."""
    return flags.DEFINE_string("fold", "u1", "Official split of ml100k: u1 to u5, ua or ub.")


@functools.cache
def rounds() -> flags.FlagHolder[int]:
    """Of the binaries that time programs in turns."""
    return flags.DEFINE_integer("rounds", 4, "Turns of every program that is timed.", lower_bound=1)


@functools.cache
def regularization() -> flags.FlagHolder[str | None]:
    """Of the binaries that factorize one matrix."""
    told = "Strength of the penalty, or `auto`: chosen by the error on held-out training entries."
    return flags.DEFINE_string("regularization", None, told)


@functools.cache
def biases() -> flags.FlagHolder[bool | None]:
    """Of the binaries that factorize one matrix."""
    return flags.DEFINE_bool("biases", None, "Whether rows and columns have biases.")


@functools.cache
def row_features() -> flags.FlagHolder[str | None]:
    """Of the binaries that sample, or answer from draws."""
    told = (
        "gibbs: table (CSV, TSV, Parquet) with a header and a line for each row's id: numbers,"
        " categories, labels between `|`. What a column holds may end its name: `zip:category`."
        " To predict: the same, with lines of new rows."
    )
    return flags.DEFINE_string("row_features", None, told)


@functools.cache
def column_features() -> flags.FlagHolder[str | None]:
    """Of the binaries that sample, or answer from draws."""
    return flags.DEFINE_string("column_features", None, "The same of columns, such as films.")
