"""The configuration of one posterior, and what it has where nothing is said."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from metamf_jax.factorization import step_size
from metamf_jax.posterior import learned_hyperprior
from metamf_jax.posterior.chains import ChainsConfig
from metamf_jax.posterior.gibbs import GibbsConfig
from metamf_jax.posterior.langevin import LangevinConfig

# What a solver sets where neither preset nor flag does: an epoch goes a part of a sweep's way.
SOLVERS = {"gibbs": {}, "dsgld": {"burn_in": 120, "thin": 3, "blocks": 8}}

# What a preset sets where no flag does.
PRESETS = {
    "smoke": {"rank": 4, "draws": 8, "burn_in": 2, "pattern_features": 4},
    "tiny": {},
    "paper": {},
    "best": {"rank": 48, "draws": 200, "chains": 4, "pattern_features": 512},
}

# Of the precision's prior. Where the noise's deviation is the unit, factors are larger: on a tenth
# of u1's training entries 2, 4, 6 and 12 had errors of 0.8843, 0.8832, 0.8826 and 0.8853.
_FACTOR_SCALES = {"gaussian": 2.0, "ordinal": 5.0}

# Shapes of the noise of rows and columns where nothing was learned.
_SHARES = 2.0, 3.0


@dataclasses.dataclass(frozen=True)
class Config:
    """One posterior; the names are those of the flags.

    `prior` is the file of a learned hyperprior; `row_noise` and `column_noise` are None for what it
    says, or for 2 and 3 without one.
    `pattern_features` is None for a number that is chosen from the number of entries; `blocks`,
    `block_store` and `step_size` are read by ``dsgld`` alone. `start` is a file of factors.
    """

    dataset: str = "synthetic"
    test_input: str | None = None
    split: str = "random"
    fold: str = "u1"
    test_fraction: float = 0.1
    solver: str = "gibbs"
    rank: int = 32
    draws: int = 100
    burn_in: int = 30
    thin: int = 1
    chains: int = 2
    pattern_features: int | None = None
    row_features: str | None = None
    column_features: str | None = None
    row_noise: float | None = None
    column_noise: float | None = None
    prior: str | None = None
    likelihood: str = "gaussian"
    entry_features: Sequence[str] = ()
    step_size: str = "constant:1"
    blocks: int = 1
    block_store: str | None = None
    start: str | None = None
    evaluate_every: int = 1
    backend: str = "auto"
    seed: int = 0

    @property
    def model(self) -> GibbsConfig:
        """What is sampled, and by which steps.

        Raises:
          ValueError: a number out of range, or a rule for the steps or a model that the sampler has
            not, or what a block store has not.
        """
        self._check_store()
        if self.start is not None and self.likelihood != "gaussian":
            raise ValueError("--start has factors of values: leave out it or --likelihood=ordinal")
        learned = None if self.prior is None else learned_hyperprior.load(self.prior)
        if learned is not None and self.likelihood == "ordinal":
            learned = learned.in_units_of_noise()
        expected = learned.shares if learned else _SHARES
        given = zip((self.row_noise, self.column_noise), expected, strict=True)
        noises = (shape if noise is None else noise for noise, shape in given)
        shared: dict[str, Any] = dict(
            zip(("rank", "row_noise", "column_noise"), (self.rank, *noises), strict=True)
        )
        if self.solver == "gibbs":
            return GibbsConfig(
                **shared,
                factor_scale=_FACTOR_SCALES[self.likelihood],
                likelihood=self.likelihood,
                learned=learned,
            )
        if self.likelihood != "gaussian" or self.entry_features:
            raise ValueError(
                f"--solver={self.solver} samples Gaussian values without effects of entries:"
                " --likelihood=ordinal and --entry_features are read by --solver=gibbs"
            )
        rule = step_size.parse(self.step_size)
        if rule.name not in ("constant", "decay"):
            raise ValueError(
                f"--solver={self.solver} takes --step_size=constant:E or decay:E:POWER, got"
                f" {self.step_size!r}"
            )
        power = rule.power if rule.name == "decay" else 0.0
        return LangevinConfig(**shared, learned=learned, step=rule.value, decay=power)

    def _check_store(self) -> None:
        if self.block_store is None:
            return
        if self.solver != "dsgld":
            raise ValueError(
                f"--solver={self.solver} samples from memory: leave --block_store out, or take"
                " --solver=dsgld"
            )
        if self.split != "random" or self.test_input is not None:
            raise ValueError(
                f"a block store has a random split, got split {self.split!r} and test input"
                f" {self.test_input}"
            )
        if self.pattern_features:
            raise ValueError(
                "singular vectors of the pattern are found in memory: with --block_store expected"
                f" --pattern_features=0, got {self.pattern_features}"
            )

    @property
    def lengths(self) -> ChainsConfig:
        """For how long."""
        return ChainsConfig(self.chains, self.burn_in, self.draws, self.thin, self.seed)
