"""Serial NumPy versions of the algorithms, written from their equations alone."""

import numpy as np

FLOOR = 1e-6


def _half_slope(loss, x, p):
    return {
        "squared": lambda: p - x,
        "squared_all": lambda: -x,
        "absolute": lambda: 0.5 * np.sign(p - x),
        "logistic": lambda: -0.5 * x / (1 + np.exp(x * p)),
        "gkl": lambda: -0.5 * x / max(p, FLOOR),
    }[loss]()


def sgd(objective, per_row, step, u, v, squares, points, terms, u_sum, v_sum):
    """SGD over points [(n, m, x), ..] in order; float64, in place.

    `u_sum` and `v_sum` are what the points see of all cells: U^T U and V^T V, or column sums.
    """
    sides = (u, squares[0], terms.u, v_sum), (v, squares[1], terms.v, u_sum)
    free = np.ones((2, u.shape[1]))
    if objective.biases:
        free[0, -1] = free[1, -2] = 0
    for n, m, x in points:
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
