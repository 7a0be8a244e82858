"""Times the factorization of one large matrix beside other programs, as whole processes.

Claim: on a CPU an epoch of SGD takes less time than LIBMF's, and a sweep of ALS, exact or by three
steps of conjugate gradients, less than that of the packages implicit and cmfrec by the same means.

    python -m experiments.benchmarks.factorize --dataset=ml1m --data_dir=DIR --devices=2 \
        --libmf=PATH_OF_MF_TRAIN --peers_python=PYTHON_WITH_IMPLICIT_OR_CMFREC

`defaults` is the command with a data set, a rank and a number of epochs alone: all cores, an
evaluation every ten epochs, and before the first a strength chosen from the data, by trials of as
many epochs as follow but at most 60: with fewer of --sgd_epochs trials would count as epochs.
`adagrad` and `sgd` evaluate the last epoch only, and have LIBMF's penalty and regularization;
`adagrad tuned` has settings of its own, for the time to the target.

Every program runs as a user would run it, with few and with many epochs, in turn, so that all see
the same machine. From the least time of each follows the time of an epoch: start-up, reading and
compilation cancel, if the many are many enough to stand out (else a dash is printed). The share of
the limit is that of 16 K bytes moved and 8 K operations an update in the time of the slower of the
two, at the bandwidth and the speed measured here; it exceeds one where the caches serve what a copy
in main memory cannot.
"""

import dataclasses
import pathlib
import re
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import common, shared_flags, splits
from experiments.peers import has_package, run_program
from metamf_jax.data import sources
from metamf_jax.runs.run_log import RunLog, read_metrics

_DATASET = shared_flags.dataset()
_METHODS = shared_flags.methods()
_ROUNDS = shared_flags.rounds()
_REGULARIZATION = shared_flags.regularization()
_BIASES = shared_flags.biases()
_RANKS = flags.DEFINE_list("ranks", ["32", "128"], "Numbers of factors.")
_SGD_EPOCHS = flags.DEFINE_list("sgd_epochs", ["60", "180"], "Few and many epochs of SGD.")
_ALS_EPOCHS = flags.DEFINE_list("als_epochs", ["1", "5"], "Few and many sweeps of ALS.")
_TARGET = flags.DEFINE_float("target", 0.845, "Test RMSE to reach; 0 not to look.")
_LIBMF = flags.DEFINE_string("libmf", None, "LIBMF's program mf-train.")
_PEERS_PYTHON = shared_flags.peers_python()

# Epochs within which the test RMSE is looked at.
_CURVE = 30

# Of each trial of a strength of the penalty, at most.
_TRIED_EPOCHS = 60

# The settings with which our AdaGrad takes the fewest epochs to the target on MovieLens-1M: biases,
# and a penalty that falls less heavily on rows with many entries. With those of the others it
# levels at 0.852. By rank: regularization, step size.
_TUNED = {32: (0.8, 0.15), 128: (0.9, 0.11)}

# Run by --peers_python with: file, rank, iterations, threads, regularization.
_PEER = """
import sys
import numpy
import scipy.sparse
path, rank, iterations, threads, regularization = sys.argv[1:]
rows, columns, values = numpy.loadtxt(path, dtype=numpy.float32).T
entries = scipy.sparse.coo_matrix((values, (rows.astype(int), columns.astype(int))))
"""
_PEERS = {
    name: _PEER + code.format(use_cg=use_cg)
    for package, code in (
        (
            "implicit",
            """
import implicit.cpu.als
implicit.cpu.als.AlternatingLeastSquares(
    int(rank), regularization=float(regularization), iterations=int(iterations),
    num_threads=int(threads), use_cg={use_cg},
).fit(entries.tocsr(), show_progress=False)
""",
        ),
        (
            "cmfrec",
            """
import cmfrec
cmfrec.CMF(
    k=int(rank), lambda_=float(regularization), scale_lam=True, niter=int(iterations),
    nthreads=int(threads), method="als", use_cg={use_cg}, verbose=False,
).fit(entries)
""",
        ),
    )
    for name, use_cg in ((f"{package} cg", True), (f"{package} cholesky", False))
}


@dataclasses.dataclass(frozen=True)
class Config:
    """What is timed; the names are those of the flags."""

    dataset: str
    ranks: tuple[int, ...]
    sgd_epochs: tuple[int, int]
    als_epochs: tuple[int, int]
    rounds: int
    target: float
    regularization: float
    biases: bool
    devices: int
    seed: int
    libmf: str | None = None
    peers_python: str | None = None
    methods: tuple[str, ...] | None = None


def _tuned_flags(rank: int) -> list[str]:
    regularization, step = _TUNED[min(_TUNED, key=lambda known: abs(known - rank))]
    return [
        *("--penalty=root_l2", f"--regularization={regularization}", "--biases"),
        *(f"--init=positive:{0.566 / rank**0.5:.3g}", f"--step_size=adagrad:{step}"),
    ]


def make_commands(
    config: Config, data_dir: str | None, folder: pathlib.Path
) -> dict[str, Callable[[int, int, bool], list[str]]]:
    """Of each method, rank, epochs and whether to tell the test error after each -> command."""

    def defaults(rank, epochs, tell):
        workdir = tempfile.mkdtemp(dir=folder)
        return [
            *(sys.executable, "-m", "experiments.factorize", f"--workdir={workdir}"),
            *(f"--dataset={config.dataset}", f"--seed={config.seed}"),
            *([f"--data_dir={data_dir}"] if data_dir else []),
            *(f"--rank={rank}", f"--epochs={epochs}"),
            *(["--evaluate_every=1"] if tell else []),
        ]

    def ours(*flags_of_method, tuned=False):
        def command(rank, epochs, tell):
            return [
                *defaults(rank, epochs, tell),
                f"--evaluate_every={int(tell)}",
                *("--penalty=weighted_l2", f"--regularization={config.regularization}"),
                *(f"--biases={config.biases}", "--init=uniform", f"--devices={config.devices}"),
                *flags_of_method,
                # Flags that come later win.
                *(_tuned_flags(rank) if tuned else []),
            ]

        return command

    def libmf(rank, epochs, tell):
        return [
            *(str(config.libmf), "-k", str(rank), "-t", str(epochs), "-s", str(config.devices)),
            *("-l2", str(config.regularization), "-r", "0.1"),
            *(["-p", str(folder / "test.txt")] if tell else ["--quiet"]),
            *(str(folder / "train.txt"), str(folder / "model.txt")),
        ]

    def peer(code):
        def command(rank, epochs, tell):
            del tell
            numbers = rank, epochs, config.devices, config.regularization
            path = str(folder / "train.txt")
            return [str(config.peers_python), "-c", code, path, *map(str, numbers)]

        return command

    commands = {
        "defaults": defaults,
        "adagrad": ours("--step_size=adagrad:0.1"),
        "adagrad tuned": ours(tuned=True),
        "sgd": ours("--step_size=constant:0.01"),
        "als": ours("--solver=als"),
        "als cg": ours("--solver=als", "--als_solver=cg"),
    }
    if config.libmf:
        commands["libmf"] = libmf
    if config.peers_python:
        for name, code in _PEERS.items():
            if has_package(config.peers_python, name.split()[0]):
                commands[name] = peer(code)
    if config.methods:
        unknown = set(config.methods) - set(commands)
        if unknown:
            raise ValueError(
                f"expected methods among {', '.join(commands)}, got {', '.join(sorted(unknown))};"
                " LIBMF needs --libmf, the packages --peers_python"
            )
        commands = {name: commands[name] for name in config.methods}
    return commands


def errors_told(method: str, command: list[str], output: str) -> list[float]:
    """The test RMSE after each epoch, from what a run told."""
    if method == "libmf":
        lines = re.findall(r"^\s*\d+\s+[\d.]+\s+([\d.]+)\s", output, re.MULTILINE)
        return [float(error) for error in lines]
    workdir = next(a for a in command if a.startswith("--workdir=")).partition("=")[2]
    return [line["test_rmse"] for line in read_metrics(workdir)]


def measure_machine(size: int = 1024) -> tuple[float, float]:
    """Bytes a second of a copy (read and written) and float operations a second of a product."""
    there = np.ones(size * size * 16, np.float32)
    copy = np.empty_like(there)
    x = jnp.ones((size, size))
    copied = min(common.seconds(lambda: np.copyto(copy, there), 5))
    multiplied = min(common.seconds(lambda: x @ x, 5))
    return 2 * there.nbytes / copied, 2 * size**3 / multiplied


def _is_sgd(method: str) -> bool:
    return method in ("defaults", "adagrad", "adagrad tuned", "sgd", "libmf")


def run(config: Config, workdir: str | None = None, data_dir: str | None = None) -> dict[str, Any]:
    """Times everything, prints the table and returns its rows.

    Raises:
      ValueError: a program is missing or fails.
    """
    log = RunLog(workdir, "benchmarks.factorize", config) if workdir else None
    with tempfile.TemporaryDirectory() as folder:
        commands = make_commands(config, data_dir, pathlib.Path(folder))
        table = sources.load(config.dataset, data_dir, config.seed)
        # The split that the factorizations below make, too.
        split = splits.Split(dataset=config.dataset, seed=config.seed)
        train, test = splits.split_entries(table, split, data_dir)
        for name, entries in (("train", train.entries), ("test", test)):
            lines = np.stack([entries.rows, entries.columns, entries.values], axis=1)
            np.savetxt(pathlib.Path(folder) / f"{name}.txt", lines, fmt=["%d", "%d", "%g"])
        rows = [row for rank in config.ranks for row in _time(config, commands, rank)]
    bandwidth, speed = measure_machine()
    print(f"copy {bandwidth / 1e9:.1f} GB/s, matrix product {speed / 1e9:.0f} GFLOP/s")
    print(
        f"{'method':<18}{'rank':>5}{'ms/epoch':>10}{'M updates/s':>13}{'of limit':>10}"
        f"{'epochs':>8}{'s to ' + format(config.target, 'g'):>11}{'x LIBMF':>9}"
    )
    if "defaults" in commands and config.sgd_epochs[0] < _TRIED_EPOCHS:
        print(
            f"defaults: with fewer than {_TRIED_EPOCHS} epochs, the time of its trials counts too"
        )
    for row in rows:
        same = [r["seconds"] for r in rows if r["rank"] == row["rank"] and r["method"] == "libmf"]
        row.update(
            dict.fromkeys(
                ("updates_per_second", "of_limit", "times_libmf", "seconds_to_target", "ms")
            )
        )
        if row["seconds"]:
            row["ms"] = 1e3 * row["seconds"]
            row["updates_per_second"] = len(train.entries.values) / row["seconds"]
            limit = max(16 * row["rank"] / bandwidth, 8 * row["rank"] / speed)
            row["of_limit"] = limit * row["updates_per_second"] if _is_sgd(row["method"]) else None
            row["times_libmf"] = same[0] / row["seconds"] if same and same[0] else None
            reached = row["epochs_to_target"]
            row["seconds_to_target"] = reached and reached * row["seconds"]
        millions = row["updates_per_second"] and row["updates_per_second"] / 1e6

        def shown(name, form, row=row):
            return "-" if row[name] is None else format(row[name], form)

        print(
            f"{row['method']:<18}{row['rank']:>5}{shown('ms', '.1f'):>10}"
            f"{'-' if millions is None else format(millions, '.1f'):>13}"
            f"{shown('of_limit', '.0%'):>10}"
            f"{shown('epochs_to_target', 'd'):>8}{shown('seconds_to_target', '.2f'):>11}"
            f"{shown('times_libmf', '.2f'):>9}"
        )
    results = {"rows": rows, "bytes_per_second": bandwidth, "flops_per_second": speed}
    if log:
        log.finish(results)
    return results


def _time(config: Config, commands: dict, rank: int) -> list[dict[str, Any]]:
    """A row of the table for each method, at one rank."""
    taken = {method: ([], []) for method in commands}
    for _ in range(config.rounds):
        for method, command in commands.items():
            counts = config.sgd_epochs if _is_sgd(method) else config.als_epochs
            for times, epochs in zip(taken[method], counts, strict=True):
                times.append(run_program(command(rank, epochs, False))[0])
    rows = []
    for method, (few, many) in taken.items():
        counts = config.sgd_epochs if _is_sgd(method) else config.als_epochs
        reached = None
        if _is_sgd(method) and config.target > 0:
            told = commands[method](rank, min(_CURVE, config.sgd_epochs[1]), True)
            errors = errors_told(method, told, run_program(told)[1])
            reached = next((n for n, x in enumerate(errors, 1) if x <= config.target), None)
        # On a machine with other work, too few more epochs may seem to take no time.
        longer = min(many) - min(few)
        seconds = longer / (counts[1] - counts[0]) if longer > 0 else None
        rows.append(
            {
                "method": method,
                "rank": rank,
                "seconds": seconds,
                "process_seconds": [few, many],
                "epochs_to_target": reached,
            }
        )
    return rows


def _numbers(name: str, texts: list[str], rising: bool = False) -> tuple[int, ...]:
    numbers = tuple(int(text) if text.isdecimal() else 0 for text in texts)
    if min(numbers, default=0) < 1 or (
        rising and not (len(numbers) == 2 and numbers[0] < numbers[1])
    ):
        what = "two rising numbers" if rising else "numbers"
        raise ValueError(f"--{name} takes {what} from 1, got {','.join(texts)}")
    return numbers


def main() -> None:
    few, many = _numbers("sgd_epochs", _SGD_EPOCHS.value, rising=True)
    few_als, many_als = _numbers("als_epochs", _ALS_EPOCHS.value, rising=True)
    config = Config(
        dataset=_DATASET.value,
        ranks=_numbers("ranks", _RANKS.value),
        sgd_epochs=(few, many),
        als_epochs=(few_als, many_als),
        rounds=_ROUNDS.value,
        target=_TARGET.value,
        regularization=float(_REGULARIZATION.value or 0.05),
        biases=bool(_BIASES.value),
        devices=common.DEVICES.value or 1,
        seed=common.SEED.value,
        libmf=_LIBMF.value,
        peers_python=_PEERS_PYTHON.value,
        methods=None if _METHODS.value == ["all"] else tuple(_METHODS.value),
    )
    run(config, common.WORKDIR.value, common.DATA_DIR.value)


if __name__ == "__main__":
    common.run_main(main)
