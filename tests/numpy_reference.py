"""Slow, plain NumPy versions of the methods, in float64 and with hand-written gradients."""

import numpy as np

from metamf_jax.types import Entries, FactorPrior, PaddedMatrices


def random_matrix(seed, num_rows=6, num_columns=5, density=0.5, padding=3):
    """The same random matrix as (PaddedMatrices, Entries with poisoned padding), unobserved NaN."""
    rng = np.random.default_rng(seed)
    observed = rng.random((num_rows, num_columns)) < density
    values = np.where(observed, rng.normal(size=observed.shape), np.nan).astype(np.float32)
    rows, columns = np.nonzero(observed)
    order = rng.permutation(len(rows))
    rows, columns = rows[order], columns[order]
    poison = np.resize([np.nan, 1e30, np.inf], padding)
    entries = Entries(
        rows=np.append(rows, np.full(padding, num_rows)).astype(np.int32),
        columns=np.append(columns, np.full(padding, num_columns)).astype(np.int32),
        values=np.append(values[rows, columns], poison).astype(np.float32),
        shape=(num_rows, num_columns),
    )
    return PaddedMatrices(values, observed), entries


def random_prior(seed, num_rows=6, num_columns=5, rank=3):
    """A prior with distinct means and precisions."""
    rng = np.random.default_rng(seed)
    return FactorPrior(
        0.5 * rng.normal(size=(num_rows, rank)).astype(np.float32),
        0.5 * rng.normal(size=(num_columns, rank)).astype(np.float32),
        rng.uniform(0.5, 2, num_rows).astype(np.float32),
        rng.uniform(0.5, 2, num_columns).astype(np.float32),
    )


def energy(matrix, u, v, prior):
    """The MAP energy."""
    residuals = np.where(matrix.observed, matrix.values - u @ v.T, 0)
    return 0.5 * (
        (residuals**2).sum()
        + (prior.u_precision[:, None] * (u - prior.u_mean) ** 2).sum()
        + (prior.v_precision[:, None] * (v - prior.v_mean) ** 2).sum()
    )


def map_steps(matrix, prior, step_size, steps, form):
    """Steps of the MAP inner loop, cell by cell."""
    values = np.asarray(matrix.values, np.float64)
    prior = FactorPrior(*(np.asarray(x, np.float64) for x in prior))
    u, v = prior.u_mean.copy(), prior.v_mean.copy()
    divisors = np.ones(len(u)), np.ones(len(v))
    if form == "scaled":
        divisors = matrix.observed.sum(1), matrix.observed.sum(0)
    elif form == "curvature":
        divisors = matrix.observed @ (v**2).sum(1), matrix.observed.T @ (u**2).sum(1)
    if form != "plain":
        divisors = divisors[0] + prior.u_precision, divisors[1] + prior.v_precision
    for _ in range(steps):
        if form == "ridge":
            u = ridge_rows(values, matrix.observed, v, prior.u_mean, prior.u_precision)
            v = ridge_rows(values.T, matrix.observed.T, u, prior.v_mean, prior.v_precision)
            continue
        u_gradient = prior.u_precision[:, None] * (u - prior.u_mean)
        v_gradient = prior.v_precision[:, None] * (v - prior.v_mean)
        for n, m in zip(*np.nonzero(matrix.observed), strict=True):
            error = values[n, m] - u[n] @ v[m]
            u_gradient[n] -= error * v[m]
            v_gradient[m] -= error * u[n]
        u = u - step_size * u_gradient / divisors[0][:, None]
        v = v - step_size * v_gradient / divisors[1][:, None]
    return u, v


def ridge_rows(values, observed, v, mean, precision):
    """Each row's closed-form ridge solution around its prior mean."""
    solutions = []
    for n in range(len(values)):
        seen = observed[n]
        matrix = v[seen].T @ v[seen] + precision[n] * np.eye(v.shape[1])
        solutions.append(
            np.linalg.solve(matrix, v[seen].T @ values[n, seen] + precision[n] * mean[n])
        )
    return np.array(solutions)


GKL_FLOOR = 1e-6


def _half_slope(loss, x, p):
    return {
        "squared": lambda: p - x,
        "squared_all": lambda: -x,
        "absolute": lambda: 0.5 * np.sign(p - x),
        "logistic": lambda: -0.5 * x / (1 + np.exp(x * p)),
        "gkl": lambda: -0.5 * x / max(p, GKL_FLOOR),
    }[loss]()


def sgd(objective, per_row, step, u, v, squares, entries, terms, u_sum, v_sum):
    """SGD over entries [(n, m, x), ..] in order; float64, in place.

    `u_sum` and `v_sum` are what the entries see of all cells: U^T U and V^T V, or column sums.
    """
    sides = (u, squares[0], terms.u, v_sum), (v, squares[1], terms.v, u_sum)
    free = np.ones((2, u.shape[1]))
    if objective.biases:
        free[0, -1] = free[1, -2] = 0
    for n, m, x in entries:
        old = u[n].copy(), v[m].copy()
        slope = _half_slope(objective.loss, x, old[0] @ old[1])
        for s, i in enumerate((n, m)):
            factors, memory, side, opposite = sides[s]
            mean = 0 if side.mean is None else side.mean[i]
            rest = side.weight[i] * (old[s] - mean)
            if objective.loss == "squared_all":
                rest = rest + opposite @ old[s]
            elif objective.loss == "gkl":
                rest = rest + opposite / 2
            gradient = (slope * old[1 - s] + rest / side.count[i]) * free[s]
            if objective.loss == "gkl":
                falling = side.weight[i] * old[s] + opposite / 2
                gradient = gradient * old[s] / falling
            rate = step
            if per_row:
                rate = step / np.sqrt(memory[i])
                memory[i] += (gradient**2).mean()
            factors[i] = old[s] - rate * gradient
            if objective.loss == "gkl":
                factors[i] = np.maximum(factors[i], 0)


def cell_sum(objective, factors):
    """What the all-cell term needs of one side."""
    if objective.loss == "squared_all":
        return factors.T @ factors
    return factors.sum(0) if objective.loss == "gkl" else None


def multiplicative_updates(x, u, v, iterations):
    """Non-negative factors of the dense x under the generalised KL divergence (Lee, Seung)."""
    for _ in range(iterations):
        u = u * ((x / (u @ v.T)) @ v) / v.sum(0)
        v = v * ((x / (u @ v.T)).T @ u) / u.sum(0)
    return u, v
