"""What is expected of a matrix's hyperparameters, learned from a corpus of matrices.

    Lambda ~ W(d, diag(t)^-1),   d = K + 1 + degrees,   t = d [f / sqrt(K), .., f / sqrt(K), e]
    B | Lambda ~ MN(B_0, S^-1, Lambda^-1),   s_g ~ Gamma(a_g, b_g),   alpha ~ Gamma(a, b)

so that products ``u . v`` have about the deviation f and effects the variance e, whatever the rank.
``B_0`` is zero but for the effects, and there for the intercept and the counts: what the popular is
liked the more. Nothing here changes when the factors are rotated, and nothing is read of values but
by the sampler: no entry counts twice.
"""

import dataclasses
import os

import numpy as np

from metamf_jax.posterior.hyperprior import SidePrior, Wishart
from metamf_jax.runs import files

Pair = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class LearnedHyperprior:
    """Of matrices standardised each by itself; pairs are of rows and columns.

    Attributes:
      degrees: of freedom beyond K + 1.
      interaction: ``f``, about the deviation of ``u . v``.
      effects: ``e``, about the effects' variances beside what the features tell.
      effect_means: for each side the effects' expected coefficients: of the intercept and of the
        first features, as many as there are numbers.
      strengths: for each side ``(a_g, b_g)`` of the first groups of features.
      noise: ``(a, b)``.
      shares: shapes of the priors of shares of the noise.
    """

    degrees: float
    interaction: float
    effects: Pair
    effect_means: tuple[tuple[float, ...], tuple[float, ...]]
    strengths: tuple[tuple[Pair, ...], tuple[Pair, ...]]
    noise: Pair
    shares: Pair

    def __post_init__(self):
        positive = self.degrees, self.interaction, *self.effects, *self.noise
        gammas = [x for of_side in self.strengths for pair in of_side for x in pair]
        numbers = [*positive, *gammas, *self.shares, *self.effect_means[0], *self.effect_means[1]]
        if not np.isfinite(numbers).all() or min(*positive, *gammas) <= 0 or min(self.shares) < 0:
            raise ValueError(
                "expected finite numbers, variances, shapes and rates positive, got "
                f"{dataclasses.asdict(self)}"
            )

    def of_side(self, side: int, rank: int) -> SidePrior:
        """The prior of one side's factors, 0 for rows and 1 for columns."""
        degrees = rank + 1 + self.degrees
        scales = np.full(rank + 1, self.interaction / max(rank, 1) ** 0.5)
        scales[-1] = self.effects[side]
        return SidePrior(
            Wishart(degrees, degrees * scales),
            np.array(self.effect_means[side]),
            self.strengths[side],
        )

    def in_units_of_noise(self) -> "LearnedHyperprior":
        """The same where the noise's deviation is the unit, as it is of latent ordinal values."""
        shape, rate = self.noise
        root = (shape / rate) ** 0.5
        first, second = (tuple(root * x for x in means) for means in self.effect_means)
        return dataclasses.replace(
            self,
            interaction=root * self.interaction,
            effects=(root**2 * self.effects[0], root**2 * self.effects[1]),
            effect_means=(first, second),
            noise=(shape, shape),
        )


def save(path: str | os.PathLike, learned: LearnedHyperprior) -> None:
    """Writes a JSON file."""
    files.write_record(path, learned)


def load(path: str | os.PathLike) -> LearnedHyperprior:
    """Reads what `save` wrote.

    Raises:
      ValueError: there is no such file, or it does not hold a learned hyperprior.
    """
    return files.read_record(path, LearnedHyperprior, "a learned hyperprior")
