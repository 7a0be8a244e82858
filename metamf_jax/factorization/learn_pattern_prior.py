"""Learns a `PatternPrior` through the converged solution that uses it, by implicit gradients.

Of every matrix some entries are held out. ``F = (U, V)`` is where ALS converges on the others under
the prior ``theta``; the loss ``L`` is the squared error of the held-out ones. At ``F`` the gradient
``d(F, theta)`` of half the objective vanishes, hence

    dL/dtheta = (direct part) - w . dd/dtheta,    H w = dL/dF,    H = dd/dF

A weight ``l_n`` of the penalty enters ``d`` as ``l_n u_n``, a value ``x_nm`` as ``-v_m`` for row n
and ``-u_n`` for column m; the rest is the chain rule. ``H w = dL/dF`` is solved by conjugate
gradients. Rotations of the factors change neither loss nor objective, so that the system is
singular but consistent; conjugate gradients end where they meet no positive curvature.

The same converged solution, and no fixed number of steps, is what `experiments.factorize` uses, so
that the strengths need no early stopping to be right.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import scipy.sparse

from metamf_jax.factorization import als, pattern_prior
from metamf_jax.factorization.objective import Objective, trainable
from metamf_jax.factorization.pattern_prior import NUM_FEATURES, Pattern, PatternPrior
from metamf_jax.types import Entries, Factors

_OBJECTIVE = Objective("squared", "prior", biases=True)
_FIRST_DECAY, _SECOND_DECAY, _TINY = 0.8, 0.95, 1e-8


@dataclasses.dataclass(frozen=True)
class LearnConfig:
    """How long, and how finely.

    Attributes:
      rank: K of the factors.
      steps: of Adam.
      rate: its first step size, which falls to zero linearly.
      first_sweeps, sweeps: of ALS in the first step, and in each of the others, which go on from
        the factors of the one before.
      conjugate_steps: at most. Where the optimum is flat, more of them follow directions in which
        ALS has not converged: on a synthetic matrix of 360 entries 60 gave gradients 40 times those
        of 10.
      precisions: whether strengths and powers are learned too; else they stay those of `root_l2`.
      seed: of where the factors start.
    """

    rank: int = 16
    steps: int = 40
    rate: float = 0.1
    first_sweeps: int = 30
    sweeps: int = 8
    conjugate_steps: int = 20
    precisions: bool = True
    seed: int = 0


class Matrix(NamedTuple):
    """One to learn from, values centred.

    Attributes:
      train, held_out: its entries.
      pattern: of the former.
      unit: root mean square of their values.
    """

    train: Entries
    held_out: Entries
    pattern: Pattern
    unit: float


def centred(train: Entries, held_out: Entries) -> Matrix:
    """Subtracts the mean of the training values from both."""
    mean = np.asarray(train.values, np.float64).mean()
    train, held_out = (
        dataclasses.replace(x, values=(np.asarray(x.values) - mean).astype(np.float32))
        for x in (train, held_out)
    )
    unit = float(np.sqrt(np.square(train.values, dtype=np.float64).mean())) or 1.0
    return Matrix(train, held_out, pattern_prior.pattern_of(train), unit)


# The start is `root_l2` of strength one.
_START = np.append(np.zeros(2 * NUM_FEATURES), [0.0, 0.0, 0.5, 0.5])


def prior_of(theta: np.ndarray, saw: str = "") -> PatternPrior:
    """From the ten numbers that are learned: means, logarithms of strengths, powers."""
    means, rest = theta[: 2 * NUM_FEATURES].reshape(2, -1), theta[2 * NUM_FEATURES :]
    return PatternPrior(
        (tuple(means[0].tolist()), tuple(means[1].tolist())),
        (float(np.exp(rest[0])), float(np.exp(rest[1]))),
        (float(rest[2]), float(rest[3])),
        saw,
    )


def learn(
    matrices: Sequence[Matrix],
    config: LearnConfig | None = None,
    saw: str = "",
    on_step: Callable[[int, float, PatternPrior], None] = lambda step, loss, learned: None,
) -> PatternPrior:
    """Learns the prior of matrices like these.

    Args:
      matrices: from `centred`.
      config: how long.
      saw: what they are, in words.
      on_step: called after each step with its number from 1, the loss before it, mean over matrices
        of the squared error in units of the values' mean square, and what is learned so far.
    """
    config = config or LearnConfig()
    rng = np.random.default_rng(config.seed)
    states = [_start(rng, matrix, config.rank) for matrix in matrices]
    theta, first, second = _START.copy(), np.zeros(len(_START)), np.zeros(len(_START))
    for step in range(config.steps):
        losses, gradients = [], []
        for i, matrix in enumerate(matrices):
            sweeps = config.sweeps if step else config.first_sweeps
            states[i] = solve(matrix, theta, states[i], sweeps)
            loss, gradient = loss_and_gradient(matrix, theta, states[i], config.conjugate_steps)
            losses.append(loss)
            gradients.append(gradient)
        slope = np.mean(gradients, axis=0)
        if not config.precisions:
            slope[2 * NUM_FEATURES :] = 0
        first = _FIRST_DECAY * first + (1 - _FIRST_DECAY) * slope
        second = _SECOND_DECAY * second + (1 - _SECOND_DECAY) * slope**2
        least = first / (1 - _FIRST_DECAY ** (step + 1))
        spread = np.sqrt(second / (1 - _SECOND_DECAY ** (step + 1)))
        rate = config.rate * (1 - step / config.steps)
        theta = theta - rate * least / (spread + _TINY)
        on_step(step + 1, float(np.mean(losses)), prior_of(theta, saw))
    return prior_of(theta, saw)


def _start(rng: np.random.Generator, matrix: Matrix, rank: int) -> Factors:
    size = np.sqrt(matrix.unit) / rank**0.5
    sides = [rng.uniform(0, size, (n, rank)).astype(np.float32) for n in matrix.train.shape]
    u, v = (np.column_stack([x, np.zeros((len(x), 2), np.float32)]) for x in sides)
    u[:, -1], v[:, -2] = 1, 1
    return Factors(u, v)


def solve(matrix: Matrix, theta: np.ndarray, factors: Factors, sweeps: int) -> Factors:
    """Where so many sweeps of ALS lead under a prior."""
    prior = prior_of(theta)
    left = pattern_prior.subtract(matrix.train, prior.offsets(matrix.pattern, matrix.unit))
    rank = factors.u.shape[1] - 2
    of_factors = prior.factors(left, rank, 1.0, matrix.unit)
    solver = als.make_solver(_OBJECTIVE, left, of_factors, als.AlsConfig(), rank + 2)
    state = solver.init(factors)
    for sweep in range(sweeps):
        state = solver.epoch(state, sweep + 1, 0.0)
    u, v = (np.asarray(x) for x in solver.factors(state))
    return Factors(u, v)


def loss_and_gradient(
    matrix: Matrix, theta: np.ndarray, factors: Factors, conjugate_steps: int
) -> tuple[float, np.ndarray]:
    """The held-out loss at the converged factors, and its gradient [10] in what is learned."""
    prior = prior_of(theta)
    offsets = prior.offsets(matrix.pattern, matrix.unit)
    weights = prior.factors(matrix.train, 1, 1.0, matrix.unit)
    train = _Listed(pattern_prior.subtract(matrix.train, offsets), factors)
    held = _Listed(pattern_prior.subtract(matrix.held_out, offsets), factors)
    scale = -2 / (len(held.residual) * matrix.unit**2)
    loss = float((held.residual**2).sum() * -scale / 2)
    slope = held.pull(scale * held.residual)
    precisions = weights.u_precision.astype(float), weights.v_precision.astype(float)
    w = _conjugate_gradients(lambda x: train.hessian(x, precisions), slope, conjugate_steps)
    # Of the values: by how much fitted ones move along w.
    moved = train.derivative(w)
    gradient = []
    for side, phi in enumerate(matrix.pattern):
        size = len(phi)
        direct = np.bincount(held.ids[side], scale * held.residual, size)
        through = np.bincount(train.ids[side], moved, size)
        gradient.append(matrix.unit * (direct - through) @ phi)
    of_weights = []
    for side, precision in enumerate(precisions):
        of_weights.append(-(w[side] * train.factors[side]).sum(axis=1) * precision)
    logs = [np.log(np.maximum(n, 1)) for n in pattern_prior.counts_of(matrix.train)]
    strengths = [x.sum() for x in of_weights]
    powers = [(x * log).sum() for x, log in zip(of_weights, logs, strict=True)]
    return loss, np.concatenate([*gradient, strengths, powers])


class _Listed:
    """Entries beside factors, in float64: what derivatives of their squared error need."""

    def __init__(self, entries: Entries, factors: Factors):
        self.ids = np.asarray(entries.rows), np.asarray(entries.columns)
        self.shape = entries.shape
        self.factors = tuple(np.asarray(x, np.float64) for x in factors)
        self.free = trainable(_OBJECTIVE, self.factors[0].shape[1])
        # [E, K]
        self.u, self.v = (f[i] for f, i in zip(self.factors, self.ids, strict=True))
        self.residual = np.asarray(entries.values, np.float64) - (self.u * self.v).sum(axis=1)

    def _sparse(self, values: np.ndarray) -> scipy.sparse.csr_array:
        return scipy.sparse.csr_array((values, self.ids), shape=self.shape)

    def pull(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sums over each row's (column's) entries of a number [E] times the other's factors."""
        matrix = self._sparse(values)
        u, v = self.factors
        return (matrix @ v) * self.free[0], (matrix.T @ u) * self.free[1]

    def derivative(self, w: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        """How fitted values [E] move along w."""
        of_rows = (w[0][self.ids[0]] * self.v).sum(axis=1)
        return of_rows + (self.u * w[1][self.ids[1]]).sum(axis=1)

    def hessian(self, w: tuple[np.ndarray, np.ndarray], precisions) -> tuple:
        """The Hessian of half the objective times w."""
        along, matrix = self.pull(self.derivative(w)), self._sparse(self.residual)
        crossed = (matrix @ w[1]) * self.free[0], (matrix.T @ w[0]) * self.free[1]
        u, v = (
            a - c + p[:, None] * x for a, c, p, x in zip(along, crossed, precisions, w, strict=True)
        )
        return u, v


def _dot(a, b) -> float:
    return float(sum((x * y).sum() for x, y in zip(a, b, strict=True)))


def _plus(a, rate: float, b) -> tuple[np.ndarray, np.ndarray]:
    return a[0] + rate * b[0], a[1] + rate * b[1]


def _conjugate_gradients(times, target, steps: int, tolerance: float = 1e-4):
    """Solves ``times(w) = target`` for a pair of arrays, from zero."""
    w = np.zeros_like(target[0]), np.zeros_like(target[1])
    residual = direction = target
    square = first = _dot(residual, residual)
    for _ in range(steps):
        image = times(direction)
        curvature = _dot(direction, image)
        if curvature <= 0 or square <= tolerance**2 * first:
            break
        rate = square / curvature
        w = _plus(w, rate, direction)
        residual = _plus(residual, -rate, image)
        new = _dot(residual, residual)
        direction = _plus(residual, new / square, direction)
        square = new
    return w
