"""Flags that some binaries have in common; a process may define a flag only once."""

from absl import flags

METHODS = flags.DEFINE_list("methods", ["all"], "Names, or all; a wrong name lists those.")
FIGURES = flags.DEFINE_list("figures", ["all"], "Names of figures, or all.")
SIDE = flags.DEFINE_integer(
    "side",
    None,
    "N = M, rows and columns of a matrix. Default: 30, or the preset's.",
    lower_bound=2,
)
FOLD = flags.DEFINE_string("fold", "u1", "Official split of ml100k: u1 to u5, ua or ub.")
ROUNDS = flags.DEFINE_integer("rounds", 4, "Turns of every program that is timed.", lower_bound=1)
