"""The flag of the binaries that take one data set; a flag may be defined only once in a process."""

from absl import flags

DATASET = flags.DEFINE_string(
    "dataset", "synthetic", "synthetic, ml100k, ml1m, latest_small, jester, or a file to read."
)
