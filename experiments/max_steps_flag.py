"""The flag of the binaries that meta-train many times; a flag may be defined only once."""

from absl import flags

MAX_STEPS = flags.DEFINE_integer(
    "max_steps", None, "Most steps of each meta-training; default: the preset's.", lower_bound=1
)
