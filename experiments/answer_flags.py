"""The flags of the binaries that write answers; a process may define a flag only once."""

from absl import flags

OUTPUT = flags.DEFINE_string("output", None, "File to write; a table: .csv, .tsv or .parquet.")
PAIRS = flags.DEFINE_string(
    "pairs", None, "Table of row and column ids; only these cells are written, in this order."
)
