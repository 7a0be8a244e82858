"""The flag of the binaries that take a user's table; a process may define a flag only once."""

from absl import flags

INPUT = flags.DEFINE_string("input", None, "A table of observed cells; see the README.")
