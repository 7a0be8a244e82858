"""Times the step of meta-training, and compares it with another implementation's.

Claim: on a CPU, a step on sparse matrices costs what their observed entries cost, not what dense
matrices of the same sides would.

    python -m experiments.benchmarks.meta_step --side=30 --devices=2 --peer='COMMAND'

The peer is any command whose last line holds its step time as ``... ms``; it and this program take
turns, and the least times are compared. On an accelerator give ``--batch=16,256,4096``.
"""

import dataclasses
import functools
import os
import re
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import common, presets, shared_flags
from metamf_jax import parallel
from metamf_jax.meta_learning import meta_loss, training
from metamf_jax.meta_learning.episodes import EpisodeConfig, EpisodeSource, entry_counts
from metamf_jax.meta_learning.map_estimation import MapConfig
from metamf_jax.runs.run_log import RunLog
from metamf_jax.types import Entries

_SIDE = shared_flags.side()
_ROUNDS = shared_flags.rounds()
_BATCH = flags.DEFINE_list("batch", ["16"], "Matrices a step; several are timed one by one.")
_SUPPORT = flags.DEFINE_float(
    "support", 0.1, "Share of the cells that is support; as many are query.", 0.0, 0.5
)
_STEP_FORM = flags.DEFINE_enum(
    "step_form", "plain", ["plain", "scaled", "ridge"], "Form of the inner steps."
)
_REPEATS = flags.DEFINE_integer("repeats", 100, "Timed steps.", lower_bound=1)
_MEMORY_STEPS = flags.DEFINE_list(
    "memory_steps", ["1", "10", "50"], "T for the table of memory; empty for no table."
)
_PEER = flags.DEFINE_string("peer", None, "Command to compare with.")


@dataclasses.dataclass(frozen=True)
class Config:
    """What is timed.

    Attributes:
      side: N = M.
      batches: B, one timing each.
      support: share of the cells that is support, and share that is query.
      model: sizes of the model.
      seed: of the matrices and parameters.
      repeats: timed steps.
      memory_steps: T of the table of memory.
      devices: number of devices.
    """

    side: int
    batches: tuple[int, ...]
    support: float
    model: meta_loss.ModelConfig
    seed: int
    repeats: int
    memory_steps: tuple[int, ...]
    devices: int


def step_flops(
    model: meta_loss.ModelConfig, rows: int, columns: int, support: float, query: float
) -> float:
    """Floating-point operations of one matrix's forward and backward pass.

    A multiply-add counts as two. With N rows, M columns, S support and Q query entries, C channels,
    rank K, and C' channels into a layer (1 into the first), forward:

        a layer         2 C' C (S + N + M + 1) + 4 S C
        the two heads   2 C (C + K) (N + M)
        T inner steps   T (6 S K + 5 K (N + M))
        the query       2 Q K

    and backward twice as much for the layers' and heads' products and as much for their sums,
    ``T (14 S K + 10 K (N + M))`` for the inner steps, and ``4 Q K`` for the query. The optimiser,
    which does not grow with the batch, is left out. The formula is for the ``plain`` and ``scaled``
    steps. A dense implementation computes every cell: S = Q = N M.
    """
    channels, rank, steps = model.encoder.channels, model.encoder.rank, model.inner.steps
    sides = rows + columns
    into = [1, *[channels] * (model.encoder.layers - 1)]
    products = sum(2 * c * channels * (support + sides + 1) for c in into)
    products += 2 * channels * (channels + rank) * sides
    sums = 4 * support * channels * model.encoder.layers
    inner = steps * (20 * support * rank + 15 * rank * sides)
    return 3 * products + 2 * sums + inner + 6 * query * rank


def matmul_peak() -> float:
    """Float32 operations a second of a 1024 x 1024 x 1024 product, the best of 10."""
    multiply = jax.jit(lambda a, b: jnp.matmul(a, b, precision="highest"))
    a = jnp.ones((1024, 1024))
    return 2 * 1024**3 / min(common.seconds(lambda: multiply(a, a), 10))


def random_source(config: Config) -> EpisodeSource:
    """Draws episodes from one large matrix of noise, as meta-training does from ratings."""
    rng = np.random.default_rng(config.seed)
    size = max(10 * config.side, 100)
    rows, columns = np.nonzero(rng.random((size, size)) < 2 * config.support)
    entries = Entries(
        rows.astype(np.int32),
        columns.astype(np.int32),
        rng.standard_normal(len(rows)).astype(np.float32),
        (size, size),
    )
    sides = (config.side, config.side)
    return EpisodeSource(entries, EpisodeConfig(rows=sides, columns=sides), config.seed)


def time_step(config: Config, batch: int) -> dict[str, float]:
    """Times preparing a batch and a step on it; milliseconds, and operations of the step."""
    model = meta_loss.make_model(config.model)
    optimizer = training.make_optimizer(training.TrainingConfig())
    source = random_source(config)
    steps = iter(range(config.repeats + 2))
    preparation = common.seconds(
        lambda: training.share_episodes(source.draw_batch(next(steps), batch)),
        min(config.repeats, 10),
    )
    drawn = source.draw_batch(0, batch)
    update = training.make_update(
        lambda params, episode: meta_loss.episode_loss(model, params, episode), optimizer
    )
    params = model.init(jax.random.key(config.seed))
    learned = parallel.replicate((params, optimizer.init(params)))
    episodes = training.share_episodes(drawn)

    def step():
        nonlocal learned
        learned, loss = update(learned, episodes)
        return loss

    start = time.perf_counter()
    jax.block_until_ready(step())
    compilation = time.perf_counter() - start
    taken = common.seconds(step, config.repeats)
    support, query = (float(entry_counts(part).mean()) for part in drawn)
    side = config.side
    return {
        "batch": batch,
        "preparation_ms": 1e3 * min(preparation),
        "compilation_s": compilation,
        "step_ms_min": 1e3 * min(taken),
        "step_ms_median": 1e3 * statistics.median(taken),
        "gflop": batch * step_flops(config.model, side, side, support, query) / 1e9,
        "dense_gflop": batch * step_flops(config.model, side, side, side**2, side**2) / 1e9,
    }


def memory_table(config: Config) -> dict[str, list[int]]:
    """Bytes of temporaries of the meta-gradient of one batch on one device, by XLA's own account.

    Returns:
      For each memory policy, one number for each T of ``config.memory_steps``; that of the implicit
      one, which has no T, is repeated.
    """
    episodes = random_source(config).draw_batch(0, config.batches[0])

    def compiled_bytes(**changes):
        inner = dataclasses.replace(config.model.inner, **changes)
        model = meta_loss.make_model(dataclasses.replace(config.model, inner=inner))

        def loss(params, episodes):
            episode_loss = functools.partial(meta_loss.episode_loss, model)
            return meta_loss.meta_loss_terms(episode_loss, params, episodes)[0]

        params = jax.eval_shape(model.init, jax.random.key(0))
        compiled = jax.jit(jax.grad(loss)).lower(params, episodes).compile()
        return common.temporary_bytes(compiled)

    found = {
        memory: [compiled_bytes(memory=memory, steps=steps) for steps in config.memory_steps]
        for memory in ("unroll", "checkpoint")
    }
    solved = compiled_bytes(memory="implicit", steps=MapConfig.steps)
    return {**found, "implicit": [solved] * len(config.memory_steps)}


def last_milliseconds(command: Sequence[str]) -> float:
    """Runs a command; the number before ``ms`` in the last line that it prints.

    Raises:
      ValueError: it failed, or printed no such line.
    """
    try:
        finished = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise ValueError(f"{shlex.join(command)} cannot be run: {error}") from error
    if finished.returncode:
        raise ValueError(
            f"{shlex.join(command)} ended with code {finished.returncode}:\n{finished.stderr}"
        )
    last = (finished.stdout.strip().splitlines() or [""])[-1]
    found = re.search(r"([\d.]+) ms\b", last)
    if found is None:
        raise ValueError(f"expected '... ms' in the last line of {shlex.join(command)}: {last!r}")
    return float(found[1])


def compare(peer: str, ours: Sequence[str], rounds: int) -> dict[str, Any]:
    """Runs two commands in turn; what each printed in each round, in milliseconds."""
    times = {"peer": [], "ours": []}
    for _ in range(rounds):
        times["peer"].append(last_milliseconds(shlex.split(peer)))
        times["ours"].append(last_milliseconds(ours))
        print(f"peer {times['peer'][-1]:.2f} ms, ours {times['ours'][-1]:.2f} ms", flush=True)
    ratio = min(times["peer"]) / min(times["ours"])
    print(
        f"least of {rounds}: peer {min(times['peer']):.2f} ms, ours {min(times['ours']):.2f} ms, "
        f"{ratio:.2f} times as fast"
    )
    return {"peer_ms": times["peer"], "ours_ms": times["ours"], "speedup": ratio}


def run(config: Config, workdir: str | os.PathLike | None = None, comparison=None) -> dict:
    """Measures and prints.

    Args:
      config: what is measured.
      workdir: where ``summary.json`` goes, if anywhere.
      comparison: results of `compare`, to be kept with the others.

    Returns:
      The results.
    """
    log = RunLog(workdir, "benchmarks.meta_step", config) if workdir else None
    peak = matmul_peak()
    print(f"{config.devices} {jax.devices()[0].device_kind} device(s), {os.cpu_count()} cores")
    print(f"float32 matmul: {peak / 1e9:.0f} GFLOP/s")
    results: dict[str, Any] = {"matmul_gflop_per_s": peak / 1e9}
    if comparison:
        results["comparison"] = comparison
    if config.memory_steps:
        results["temporary_bytes"] = memory_table(config)
        print(f"temporaries in MB, batch {config.batches[0]}")
        print(f"{'T':<12}" + "".join(f"{steps:>9}" for steps in config.memory_steps))
        for memory, sizes in results["temporary_bytes"].items():
            print(f"{memory:<12}" + "".join(f"{size / 1e6:>9.2f}" for size in sizes))
    results["steps"] = []
    for batch in config.batches:
        found = time_step(config, batch)
        found["share_of_peak"] = found["gflop"] / (found["step_ms_min"] / 1e3) / (peak / 1e9)
        results["steps"].append(found)
        print(
            f"batch {batch}, {config.side} x {config.side}: preparation "
            f"{found['preparation_ms']:.2f} ms, first call {found['compilation_s']:.1f} s, "
            f"{found['gflop']:.3f} GFLOP ({found['dense_gflop']:.3f} if dense), "
            f"{found['share_of_peak']:.0%} of the matmul rate at the least of "
            f"{found['step_ms_min']:.2f} ms; median:\n{found['step_ms_median']:.2f} ms a step"
        )
    if log:
        log.finish(results)
    return results


def _integers(flag: flags.FlagHolder) -> tuple[int, ...]:
    try:
        numbers = tuple(int(text) for text in flag.value)
    except ValueError:
        numbers = (0,)
    if min(numbers, default=1) < 1:
        raise ValueError(f"--{flag.name} takes numbers from 1, such as 16,256; got {flag.value}")
    return numbers


def main() -> None:
    if not _BATCH.value:
        raise ValueError("--batch needs at least one number")
    model = presets.TRAIN[common.PRESET.value]["model"]
    inner = dataclasses.replace(model.inner, step_form=_STEP_FORM.value)
    config = Config(
        side=_SIDE.value or 30,
        batches=_integers(_BATCH),
        support=_SUPPORT.value,
        model=dataclasses.replace(model, inner=inner),
        seed=common.SEED.value,
        repeats=_REPEATS.value,
        memory_steps=_integers(_MEMORY_STEPS),
        devices=len(parallel.devices()),
    )
    comparison = None
    if _PEER.value:
        ours = [sys.executable, "-m", "experiments.benchmarks.meta_step", "--memory_steps="]
        ours += [f"--side={config.side}", f"--batch={config.batches[0]}"]
        ours += [f"--support={config.support}", f"--devices={config.devices}"]
        ours += [f"--step_form={_STEP_FORM.value}", f"--repeats={config.repeats}"]
        ours += [f"--preset={common.PRESET.value}", f"--seed={config.seed}"]
        comparison = compare(_PEER.value, ours, _ROUNDS.value)
    with common.profiled(common.WORKDIR.value):
        run(config, common.WORKDIR.value, comparison)


if __name__ == "__main__":
    flags.set_default(common.PRESET, "paper")
    common.run_main(main)
