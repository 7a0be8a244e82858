"""Flags that every binary has, and what follows from them before the first array is made.

Exit codes: 0, done; 1, a mistake or a disk that cannot be written, told in one line; 2, a mistake
in the flags' grammar; 75 (`TERMINATED`), ended by SIGTERM with its state on disk: the same flags
resume the run.
"""

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import jax
from absl import app, flags, logging

from metamf_jax import parallel, processes
from metamf_jax.runs import compilation_cache, garbage

# EX_TEMPFAIL of sysexits.h: try again later.
TERMINATED = 75

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
_COMPILATION_CACHE = flags.DEFINE_string(
    "compilation_cache",
    None,
    "Folder that keeps compiled programs for later runs, or `off`. Default: the variable "
    f"{compilation_cache.VARIABLE}, else metamf_jax in the user's cache folder.",
)


class _Termination:
    """What became of SIGTERM: asked for or not, and whether it must wait for a checkpoint.

    Of several processes some may have been asked; once they agreed, all are.
    """

    asked = False
    waits = False
    agreed = False


def _on_sigterm(number, frame) -> None:
    if _Termination.asked or not _Termination.waits:
        raise SystemExit(TERMINATED)
    _Termination.asked = True


def needed(flag: flags.FlagHolder[str | None]) -> str:
    """The value of a flag that has to be given.

    Raises:
      ValueError: it was not; the message says what it is for.
    """
    if flag.value is None:
        raise ValueError(f"--{flag.name} is needed: {flags.FLAGS[flag.name].help}")
    return flag.value


def asked_to_end() -> bool:
    """Whether SIGTERM asked any of the processes to end, so that all shall; all must call."""
    _Termination.agreed = processes.any_process(_Termination.asked)
    return _Termination.agreed


@contextlib.contextmanager
def until_checkpoint() -> Iterator[Callable[[], None]]:
    """A body that SIGTERM ends only right after a checkpoint; a second SIGTERM ends it at once.

    Gives a function to call after each checkpoint, in every process: all leave after the same one
    when any was asked to, since a process whose peer is gone could only wait for it.
    """

    def leave_if_asked() -> None:
        if asked_to_end():
            raise SystemExit(TERMINATED)

    _Termination.waits = True
    try:
        yield leave_if_asked
    finally:
        _Termination.waits = False
    if _Termination.asked:
        raise SystemExit(TERMINATED)


@contextlib.contextmanager
def profiled(workdir: os.PathLike | str | None) -> Iterator[None]:
    """Traces its body when --profile is given; of several processes the first.

    Raises:
      ValueError: it is given without a workdir.
    """
    # In a notebook no flags are parsed.
    if not flags.FLAGS.is_parsed() or not PROFILE.value or not processes.is_first():
        yield
        return
    if workdir is None:
        raise ValueError("--profile needs --workdir: the trace goes to WORKDIR/profile")
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


def run_main(main: Callable[[], None], several_processes: bool = False) -> None:
    """Runs a binary; see above for the exit codes.

    Args:
      main: the binary.
      several_processes: whether it can run as several. Where the environment tells of such, it then
        joins them first (`processes.initialize`); another binary refuses, since all would do the
        same work and write the same files.
    """

    def guarded(argv):
        if len(argv) > 1:
            print(f"error: unexpected arguments {argv[1:]}", file=sys.stderr)
            sys.exit(2)
        # absl.app shows INFO of all libraries; -v=1 brings it back.
        if flags.FLAGS.verbosity == logging.INFO:
            logging.set_verbosity(logging.WARNING)
        previous = signal.signal(signal.SIGTERM, _on_sigterm)
        garbage.spare()
        try:
            if not several_processes:
                _refuse_several_processes()
            processes.initialize()
            if DEVICES.value is not None:
                parallel.use_devices(DEVICES.value)
            compilation_cache.use(_COMPILATION_CACHE.value)
            main()
        except (ValueError, OSError, FloatingPointError) as error:
            print(f"error: {processes.told(error)}", file=sys.stderr)
            processes.leave(1)
        except SystemExit as end:
            if end.code != TERMINATED:
                raise
            if processes.is_first():
                print("terminated; the same flags resume the run", file=sys.stderr)
            processes.leave(TERMINATED, together=_Termination.agreed)
        except Exception as error:
            if processes.count() == 1:
                raise
            traceback.print_exc()
            print(f"error: {processes.told(error)}", file=sys.stderr)
            processes.leave(1)
        finally:
            signal.signal(signal.SIGTERM, previous)
            _Termination.asked = _Termination.agreed = False

    app.run(guarded)


def _refuse_several_processes() -> None:
    """Told by the first of them alone."""
    cluster = processes.detect(os.environ)
    if cluster is None or cluster.count == 1:
        return
    if cluster.index:
        sys.exit(1)
    raise ValueError(
        f"this program runs as one process, not as several, found by {cluster.name}; start one, or "
        "set METAMF_CLUSTER=none where each is to run by itself"
    )
