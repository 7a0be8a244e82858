"""Learns a hyperprior from a corpus of matrices: empirical Bayes by stochastic approximation EM.

Every matrix has a chain of its own. In turn all chains draw a few times under the hyperprior
learned so far, what their draws tell of its numbers is averaged, over the last turns by steps that
decay, and the hyperprior becomes the likeliest one given the averages: means for the effects'
coefficients, a Gamma distribution for each strength and the noise, one for shares, and a Wishart
distribution for the precisions, isotropic in the factors, so that no rotation matters.

Delyon, Lavielle, Moulines, Convergence of a stochastic approximation version of the EM algorithm,
Annals of Statistics 1999.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import scipy.optimize
import threadpoolctl
from scipy.special import digamma, gammaln

from metamf_jax.posterior import fit, gibbs
from metamf_jax.posterior.gibbs import Data, GibbsConfig, Side, State
from metamf_jax.posterior.learned_hyperprior import LearnedHyperprior
from metamf_jax.types import Entries

# The intercept and the two features of counts have means, the counts and the vectors strengths.
_NUM_MEANS, _NUM_GROUPS = 3, 2
# No more is trusted to a corpus than so many degrees of freedom, and shapes of so much.
_MOST_DEGREES, _MOST_SHAPE = 100.0, 50.0
# In the first turns the hyperprior is flat, and a turn's draws are all of the average: learned from
# the small factors that chains start with it would keep them small (their products a third smaller
# after 26 turns).
_SWEEPS_OF_A_TURN, _FIRST_TURNS, _KEPT, _DECAY = 4, 5, 0.4, 0.7


@dataclasses.dataclass(frozen=True)
class LearnConfig:
    """How long.

    Attributes:
      turns: of sweeps and maximisation.
      burn_in: of these, those before the steps decay.
      seed: of all draws.
    """

    turns: int = 50
    burn_in: int = 20
    seed: int = 0


class Told(NamedTuple):
    """What draws of one matrix tell, or averages of it; rows and columns along the first axis.

    Attributes:
      means: [2, 3], the effects' coefficients of the intercept and the counts.
      factors: [2], the mean of the diagonal of ``Lambda`` that belongs to factors.
      effects: [2], the element that belongs to effects.
      log_det: [2], ``log |Lambda|``.
      strengths, log_strengths: [2, 2], of the counts and of the vectors.
      shares: [2], the mean of ``p - log p``.
      alpha, log_alpha: of the noise.
    """

    means: np.ndarray
    factors: np.ndarray
    effects: np.ndarray
    log_det: np.ndarray
    strengths: np.ndarray
    log_strengths: np.ndarray
    shares: np.ndarray
    alpha: np.ndarray
    log_alpha: np.ndarray


class _Chain(NamedTuple):
    data: Data
    rank: int
    state: State


def learn(
    matrices: Sequence[Entries],
    ranks: Sequence[int],
    num_vectors: int,
    config: LearnConfig | None = None,
    on_turn: Callable[[int, LearnedHyperprior], None] = lambda turn, learned: None,
) -> LearnedHyperprior:
    """Learns the hyperprior of matrices like these.

    Args:
      matrices: in units of their own, each standardised by itself.
      ranks: of their factors, at least 1.
      num_vectors: of the pattern of each.
      config: how long.
      on_turn: called after each turn.
    """
    config = config or LearnConfig()
    models = [GibbsConfig(rank) for rank in ranks]
    keys = [jax.random.fold_in(jax.random.key(config.seed), i) for i in range(len(matrices))]
    chains = [
        _start(jax.random.fold_in(key, 0), matrix, model, num_vectors)
        for key, matrix, model in zip(keys, matrices, models, strict=True)
    ]
    average, learned = None, None
    for turn in range(config.turns):
        found = []
        # Threads of BLAS gain nothing on such small matrices, and lose much beside each other.
        with threadpoolctl.threadpool_limits(1, user_api="blas"):
            for i, chain in enumerate(chains):
                known = learned if turn >= _FIRST_TURNS else None
                model = gibbs.with_learned(chain.rank, known) if known else models[i]
                key = jax.random.fold_in(keys[i], turn + 1)
                chains[i], told = _sweeps(key, chain, model)
                found.append(told)
        latest = Told(*(np.stack(x) for x in zip(*found, strict=True)))
        step = _step(turn, config.burn_in)
        average = (
            latest
            if average is None
            else jax.tree.map(
                lambda old, new, step=step: (1 - step) * old + step * new, average, latest
            )
        )
        learned = likeliest(average, np.array(ranks, float))
        on_turn(turn, learned)
    assert learned is not None
    return learned


def _start(key: jax.Array, matrix: Entries, model: GibbsConfig, num_vectors: int) -> _Chain:
    entries = fit.standardised(matrix, fit.scale_of(matrix.values))
    data = fit.prepare(entries, model, fit.features_of(matrix, num_vectors))
    return _Chain(data, model.rank, gibbs.init(key, data, model))


def _step(turn: int, burn_in: int) -> float:
    """How much of the average a turn's draws take."""
    if turn < _FIRST_TURNS:
        return 1.0
    return _KEPT / max(1, turn - burn_in + 1) ** _DECAY


def _sweeps(key: jax.Array, chain: _Chain, model: GibbsConfig) -> tuple[_Chain, Told]:
    state, told = chain.state, []
    for sweep in range(_SWEEPS_OF_A_TURN):
        state = gibbs.sweep(jax.random.fold_in(key, sweep), state, chain.data, model)
        told.append(_told(state))
    return chain._replace(state=state), Told(*(np.mean(x, axis=0) for x in zip(*told, strict=True)))


def _told(state: State) -> Told:
    sides = state.rows, state.columns

    def both(function: Callable[[Side], object]) -> np.ndarray:
        return np.array([function(side) for side in sides])

    strengths = both(lambda side: side.prior.strengths[:_NUM_GROUPS])
    return Told(
        means=both(lambda side: side.prior.coefficients[:_NUM_MEANS, -1]),
        factors=both(lambda side: np.diag(side.prior.precision)[:-1].mean()),
        effects=both(lambda side: side.prior.precision[-1, -1]),
        log_det=both(lambda side: np.linalg.slogdet(side.prior.precision)[1]),
        strengths=strengths,
        log_strengths=np.log(strengths),
        shares=both(lambda side: (side.shares - np.log(side.shares)).mean()),
        alpha=np.array(state.alpha),
        log_alpha=np.log(state.alpha),
    )


def likeliest(told: Told, ranks: np.ndarray) -> LearnedHyperprior:
    """The likeliest hyperprior given what matrices tell.

    Args:
      told: [T, ..], of T matrices.
      ranks: [T].
    """
    degrees, interaction, effects = _wishart(told, ranks)
    mean = Told(*(x.mean(axis=0) for x in told))
    strengths = tuple(
        tuple(likeliest_gamma(m, log) for m, log in zip(*of_side, strict=True))
        for of_side in zip(mean.strengths, mean.log_strengths, strict=True)
    )
    shares = [_shape(x - 1) for x in mean.shares]
    return LearnedHyperprior(
        degrees=degrees,
        interaction=interaction,
        effects=(effects[0], effects[1]),
        effect_means=(tuple(mean.means[0].tolist()), tuple(mean.means[1].tolist())),
        strengths=(strengths[0], strengths[1]),
        noise=likeliest_gamma(float(mean.alpha), float(mean.log_alpha)),
        shares=(shares[0], shares[1]),
    )


def _wishart(told: Told, ranks: np.ndarray) -> tuple[float, float, tuple[float, ...]]:
    """Degrees beyond K + 1, ``f`` and ``e``; given the first the others are known."""
    # [T], of both sides alike.
    of_factors = np.sqrt(told.factors.prod(axis=1))

    def scales(beyond: float):
        d = ranks + 1 + beyond
        f = (d * ranks).sum() / (d * np.sqrt(ranks) * of_factors).sum()
        return d, f, d.sum() / (d @ told.effects)

    def loss(beyond: float) -> float:
        d, f, e = scales(beyond)
        of_rank = [log_gamma(x / 2, int(k) + 1) for x, k in zip(d, ranks, strict=True)]
        total = 2 * (np.array(of_rank) + d * (ranks + 1) / 2 * np.log(2)).sum()
        for side in range(2):
            log_scales = ranks * np.log(d * f / np.sqrt(ranks)) + np.log(d * e[side])
            trace = d * f * np.sqrt(ranks) * of_factors + d * e[side] * told.effects[:, side]
            inside = (d - ranks - 2) / 2 * told.log_det[:, side]
            total -= (inside - trace / 2 + d / 2 * log_scales).sum()
        return float(total)

    found: Any = scipy.optimize.minimize_scalar(loss, bounds=(0.5, _MOST_DEGREES), method="bounded")
    beyond = float(found.x)
    _, f, e = scales(beyond)
    return beyond, float(f), tuple(e.tolist())


def log_gamma(x: float, size: int) -> float:
    """Of the multivariate gamma function, without its constant."""
    return float(gammaln(x - np.arange(size) / 2).sum())


def likeliest_gamma(mean: float, mean_log: float) -> tuple[float, float]:
    """Shape and rate of the likeliest Gamma distribution."""
    # The equation of shares: of numbers over their mean.
    shape = _shape(float(np.log(mean)) - mean_log)
    return shape, float(shape / mean)


def _shape(gap: float) -> float:
    """``a`` with ``log a - digamma(a) = gap``, no more than the most."""
    if np.log(_MOST_SHAPE) - digamma(_MOST_SHAPE) >= gap:
        return _MOST_SHAPE
    found = scipy.optimize.root_scalar(
        lambda a: np.log(a) - digamma(a) - gap, bracket=(1e-2, _MOST_SHAPE)
    )
    return float(found.root)
