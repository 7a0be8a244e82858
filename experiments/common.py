"""Flags that every binary has, and what follows from them before the first array is made."""

import contextlib
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import jax
from absl import app, flags, logging

from metamf_jax import parallel, processes

WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder for the run's files; a folder that holds a run resumes it."
)
SEED = flags.DEFINE_integer("seed", 0, "Seed of initial parameters and of all random draws.")
DATA_DIR = flags.DEFINE_string(
    "data_dir",
    None,
    "Folder that holds the rating sets, or one of them. Default: the variable METAMF_DATA_DIR.",
)
PRESET = flags.DEFINE_enum(
    "preset",
    "tiny",
    ["smoke", "tiny", "paper", "best"],
    "Sizes: smoke (seconds, for tests), tiny (under a minute), paper (the protocol), best.",
)
DEVICES = flags.DEFINE_integer(
    "devices",
    None,
    "Devices to use, those of all processes together. On a CPU so many virtual devices are made."
    " Default: all that there are.",
    lower_bound=1,
)
PROFILE = flags.DEFINE_bool("profile", False, "Writes a jax.profiler trace to WORKDIR/profile.")


def needed(flag: flags.FlagHolder[str | None]) -> str:
    """The value of a flag that has to be given.

    Raises:
      ValueError: it was not; the message says what it is for.
    """
    if flag.value is None:
        raise ValueError(f"--{flag.name} is needed: {flags.FLAGS[flag.name].help}")
    return flag.value


@contextlib.contextmanager
def profiled(workdir: os.PathLike | str) -> Iterator[None]:
    """Traces its body when --profile is given; of several processes the first."""
    if not PROFILE.value or not processes.is_first():
        yield
        return
    with jax.profiler.trace(os.path.join(workdir, "profile")):
        yield


def compile_fast() -> None:
    """Has XLA optimise less, in this process and its children, if no backend was started yet.

    For runs that compile more than they compute: on tiny sizes the update of a meta-learned method
    compiled in about half the time.
    """
    flags_there = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = (
        f"{flags_there} --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    )


def seconds(function: Callable[[], Any], repeats: int) -> list[float]:
    """Wall-clock seconds of each of so many calls, results awaited, after two more to warm up."""
    taken = []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        jax.block_until_ready(function())
        taken.append(time.perf_counter() - start)
    return taken[2:]


def temporary_bytes(compiled: jax.stages.Compiled) -> int:
    """What a compiled function allocates besides arguments and results, by XLA's own account."""
    analysis = compiled.memory_analysis()
    if analysis is None:
        raise ValueError(f"XLA tells no memory use on the platform {jax.default_backend()}")
    return analysis.temp_size_in_bytes


def run_main(main: Callable[[], None]) -> None:
    """Runs a binary: a user's mistake ends in one line on stderr and exit code 1.

    Where the environment tells of several processes, joins them first (`processes.initialize`).
    """

    def guarded(argv):
        if len(argv) > 1:
            print(f"error: unexpected arguments {argv[1:]}", file=sys.stderr)
            sys.exit(2)
        # absl.app shows INFO, at which orbax tells of each file; -v=1 brings it back.
        if flags.FLAGS.verbosity == logging.INFO:
            logging.set_verbosity(logging.WARNING)
        try:
            processes.initialize()
            if DEVICES.value is not None:
                parallel.use_devices(DEVICES.value)
            main()
        except (ValueError, OSError, FloatingPointError) as error:
            print(f"error: {error}", file=sys.stderr)
            processes.leave(1)
        except Exception:
            if processes.count() == 1:
                raise
            traceback.print_exc()
            processes.leave(1)

    app.run(guarded)
