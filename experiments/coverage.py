"""Whether confidence intervals after imputation hold what they say.

Claim: a nominal 95% interval of a regression's coefficients, pooled over draws of the joint model,
holds the truth in 93 to 97% of simulated tables, with a lognormal regressor in 88%; after one draw,
or after the single best answers, it does so far more rarely.

    python -m experiments.coverage --workdir=runs/coverage
    python -m experiments.coverage --preset=paper --workdir=runs/coverage

``y = 1 + x - z + noise``, x normal and z related to it: normal, lognormal, or of two values; or a
category of three levels, with ``y = 1 + x - [z = 1] + [z = 2] + noise``. Cells go missing
completely at random (``mcar``, 30% of each column) or, of y and z, by x (``mar``).
``summary.json`` holds the shares, mean estimates and fractions of missing information. The same
command goes on with a run that was stopped. A table of 100 rows takes 0.1 s of a core.
"""

import dataclasses
import os
from typing import Any, NamedTuple

import numpy as np
import scipy.stats
from absl import flags

from experiments import common
from metamf_jax.imputation import columns, mixed
from metamf_jax.imputation.pool import pool
from metamf_jax.runs.run_log import RunLog, read_metrics

_IMPUTATIONS = flags.DEFINE_integer(
    "imputations", None, "Completions of each table; default: the preset's.", lower_bound=2
)
_ROWS = flags.DEFINE_list(
    "table_rows", None, "Numbers of rows of the tables; default: the preset's."
)
_TABLES = flags.DEFINE_integer(
    "tables", None, "Simulated tables of each kind; default: the preset's.", lower_bound=1
)

MECHANISMS = "mcar", "mar"
SHAPES = "normal", "skewed", "two values", "three levels"
WAYS = "pooled", "one draw", "best answers"
# Of the constant, x and z; of three levels, of the second and the third.
_TRUTH = np.array([1.0, 1.0, -1.0])
_TRUTH_OF_LEVELS = np.array([1.0, 1.0, -1.0, 1.0])
# Tables that are done before the run can be stopped.
_BLOCK = 20
_PRESETS = {
    "smoke": {"rows": (60,), "tables": 2, "imputations": 3},
    "tiny": {"rows": (100,), "tables": 15, "imputations": 10},
    "paper": {"rows": (100, 400), "tables": 400, "imputations": 20},
    "best": {"rows": (100, 400, 1600), "tables": 1000, "imputations": 50},
}


@dataclasses.dataclass(frozen=True)
class Config:
    """The simulation.

    Attributes:
      rows: numbers of rows of the tables.
      tables: simulated of each kind.
      imputations: of each table.
      seed: of all draws.
    """

    rows: tuple[int, ...]
    tables: int
    imputations: int
    seed: int = 0


class Found(NamedTuple):
    """Of one table, of each of C coefficients; or means over tables.

    Attributes:
      held: [3, C], in each way, whether its interval held the truth.
      estimate: [C], pooled.
      missing_information: [C].
    """

    held: np.ndarray
    estimate: np.ndarray
    missing_information: np.ndarray


def simulate(rng: np.random.Generator, count: int, mechanism: str, shape: str) -> np.ndarray:
    """A table [N, 3] of y, x and z with NaN where missing, without empty rows."""
    x = rng.normal(size=count)
    z = 0.5 * x + np.sqrt(0.75) * rng.normal(size=count)
    if shape == "skewed":
        z = np.exp(0.7 * z)
    elif shape == "two values":
        z = (z > 0).astype(float)
    elif shape == "three levels":
        z = np.argmax(np.column_stack([0 * z, z, rng.normal(size=count)]), axis=1).astype(float)
    design = _design(np.column_stack([x, z]), shape)
    table = np.column_stack([design @ _truth(shape) + rng.normal(size=count), x, z])
    chance = np.full((count, 3), 0.3)
    if mechanism == "mar":
        by_x = 1 / (1 + np.exp(0.9 - 1.5 * x))
        chance = np.column_stack([by_x, np.zeros(count), by_x])
    table[rng.random(table.shape) < chance] = np.nan
    return table[~np.isnan(table).all(axis=1)]


def _truth(shape: str) -> np.ndarray:
    return _TRUTH_OF_LEVELS if shape == "three levels" else _TRUTH


def _design(x_and_z: np.ndarray, shape: str) -> np.ndarray:
    """[N, C], a column of ones first."""
    x, z = x_and_z.T
    of_z = (z[:, None] == [1, 2]) if shape == "three levels" else z[:, None]
    return np.column_stack([np.ones(len(x)), x, of_z])


def regression(table: np.ndarray, shape: str) -> tuple[np.ndarray, np.ndarray]:
    """Least squares of the first column on the others: coefficients and their variances."""
    design = _design(table[:, 1:], shape)
    inverse = np.linalg.inv(design.T @ design)
    found = inverse @ design.T @ table[:, 0]
    left = table[:, 0] - design @ found
    return found, (left @ left) / (len(table) - design.shape[1]) * np.diag(inverse)


def analyse(table: np.ndarray, shape: str, imputations: int, seed: int) -> Found:
    """Imputes a table and analyses it in all ways."""
    # Levels are counted from 0, as the values that stand for them are.
    types = {"x2": "nominal"} if shape == "three levels" else None
    values, described = columns.of_matrix(table, types=types)
    config = mixed.MixedConfig(num_draws=max(100, 5 * imputations), seed=seed)
    model = mixed.fit_draws(values, described, config)
    fits = [regression(each, shape) for each in mixed.impute(model, values, imputations)]
    truth = _truth(shape)
    degrees = len(table) - len(truth)
    pooled = pool([fit[0] for fit in fits], [fit[1] for fit in fits], degrees)
    half = scipy.stats.t.ppf(0.975, degrees)
    held = [(pooled.low < truth) & (pooled.high > truth)]
    for estimate, variance in (fits[0], regression(mixed.answer(model, values).values, shape)):
        held.append(np.abs(estimate - truth) < half * np.sqrt(variance))
    return Found(np.array(held), pooled.estimate, pooled.missing_information)


def run(config: Config, workdir: str | os.PathLike) -> dict[str, Any]:
    """Simulates all kinds of tables; returns what ``summary.json`` holds."""
    log = RunLog(workdir, "coverage", config)
    done = len(read_metrics(workdir))
    log.resume_at(done - 1)
    cases = [(m, s, n) for m in MECHANISMS for s in SHAPES for n in config.rows]
    # Every kind has some tables before any has more.
    blocks = [
        (kind, range(first, min(first + _BLOCK, config.tables)))
        for first in range(0, config.tables, _BLOCK)
        for kind in range(len(cases))
    ]
    for step, (kind, numbers) in enumerate(blocks[done:], done):
        found = [_one(config, kind, *cases[kind], number) for number in numbers]
        log.metrics(step, _line(_mean(found)))
    lines = read_metrics(workdir)
    log.print("truth in nominal 95% intervals: constant, x, z")
    results = {}
    for kind, (mechanism, shape, count) in enumerate(cases):
        of_kind = [step for step, (other, _) in enumerate(blocks) if other == kind]
        found = _mean(
            [_found(lines[step], len(_truth(shape))) for step in of_kind],
            [len(blocks[step][1]) for step in of_kind],
        )
        name = f"{mechanism}, {shape}, {count} rows"
        told = ", ".join(
            f"{way} " + " ".join(f"{share:.3f}" for share in shares)
            for way, shares in zip(WAYS, found.held, strict=True)
        )
        log.print(f"{name}: {told}")
        results[name] = {
            "held": dict(zip(WAYS, found.held.tolist(), strict=True)),
            "estimate": found.estimate.tolist(),
            "missing_information": found.missing_information.tolist(),
        }
    return log.finish(results)


def _one(config: Config, kind: int, mechanism: str, shape: str, count: int, number: int) -> Found:
    rng = np.random.default_rng([config.seed, kind, number])
    return analyse(simulate(rng, count, mechanism, shape), shape, config.imputations, number)


def _mean(found: list[Found], weights: list[int] | None = None) -> Found:
    return Found(*(np.average(part, axis=0, weights=weights) for part in zip(*found, strict=True)))


def _line(found: Found) -> dict[str, float]:
    """Of ``metrics.jsonl``."""
    line = {}
    for c in range(len(found.estimate)):
        line |= {f"held/{way}/{c}": float(found.held[w, c]) for w, way in enumerate(WAYS)}
        line[f"estimate/{c}"] = float(found.estimate[c])
        line[f"missing_information/{c}"] = float(found.missing_information[c])
    return line


def _found(line: dict[str, float], size: int) -> Found:
    """What `_line` wrote, of so many coefficients."""
    held = np.array([[line[f"held/{way}/{c}"] for c in range(size)] for way in WAYS])
    rest = (
        np.array([line[f"{name}/{c}"] for c in range(size)])
        for name in ("estimate", "missing_information")
    )
    return Found(held, *rest)


def main() -> None:
    workdir = common.needed(common.WORKDIR)
    config = Config(seed=common.SEED.value, **_PRESETS[common.PRESET.value])
    if _IMPUTATIONS.value is not None:
        config = dataclasses.replace(config, imputations=_IMPUTATIONS.value)
    if _ROWS.value is not None:
        config = dataclasses.replace(config, rows=tuple(map(int, _ROWS.value)))
    if _TABLES.value is not None:
        config = dataclasses.replace(config, tables=_TABLES.value)
    run(config, workdir)


if __name__ == "__main__":
    common.run_main(main)
