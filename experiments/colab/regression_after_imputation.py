# %% [markdown]
# # A regression on a table with blanks
#
# Filling in each blank once makes a table look more certain than it is: the imputed cells agree
# with the model better than real ones would, and standard errors come out too small. Several
# *draws* of the blanks, each analysed by itself and pooled by Rubin's rules, tell the truth. In
# Colab, install the package first: `%pip install "metamf_jax[cpu] @ git+URL"`, with the URL of its
# repository.

# %%
import numpy as np
import pandas as pd

from metamf_jax import pool
from metamf_jax.imputation import frames, mixed

# %% [markdown]
# A survey of 150 people. `health` is a sum of `age`, of whether somebody smokes, and of chance; a
# third of the cells is missing, more of `health` where people are old.

# %%
TRUTH = {"constant": 1.0, "age": -0.5, "smokes": -1.0}


def survey(seed):
    rng = np.random.default_rng(seed)
    age, smokes = rng.normal(size=150), rng.random(150) < 0.4
    health = 1 - 0.5 * age - smokes + rng.normal(size=150)
    frame = pd.DataFrame({"health": health, "age": age, "smokes": smokes.astype("O")})
    frame.loc[rng.random(150) < 1 / (1 + np.exp(0.7 - age)), "health"] = np.nan
    frame.loc[rng.random(150) < 0.3, "smokes"] = None
    return frame


# %% [markdown]
# The five lines: what the columns are, one joint model of them, several completed frames of the
# same types, a regression on each, and the pooled answer.


# %%
def regression(frame):
    """Least squares: estimates and their variances."""
    design = np.column_stack([np.ones(len(frame)), frame["age"], frame["smokes"].astype(float)])
    inverse = np.linalg.inv(design.T @ design)
    found = inverse @ design.T @ frame["health"].to_numpy()
    left = frame["health"].to_numpy() - design @ found
    return found, (left @ left) / (len(frame) - 3) * np.diag(inverse)


def completed(frame, imputations):
    described = frames.describe(frame)
    values = frames.encode(frame, described)
    model = mixed.fit(values, described, mixed.MixedConfig(burn_in=40, num_draws=imputations * 5))
    return [frames.decode(frame, described, x) for x in mixed.impute(model, values, imputations)]


fits = [regression(each) for each in completed(survey(0), 20)]
found = pool(*map(np.array, zip(*fits, strict=True)), complete_degrees=147)
told = pd.DataFrame(found._asdict(), index=list(TRUTH)).assign(truth=TRUTH)
print(told[["truth", "estimate", "low", "high", "missing_information"]].round(2))

# %% [markdown]
# Does the 95% interval hold what it says? Over some simulated surveys, pooled draws beside a single
# one. `python -m experiments.coverage` asks that of many more, and of other reasons to be missing.

# %%
pooled, single = [], []
truth = np.array(list(TRUTH.values()))
for seed in range(20):
    fits = [regression(each) for each in completed(survey(seed), 8)]
    found = pool(*map(np.array, zip(*fits, strict=True)), complete_degrees=147)
    pooled.append((found.low < truth) & (truth < found.high))
    single.append(np.abs(fits[0][0] - truth) < 1.96 * np.sqrt(fits[0][1]))
print(
    f"truth in the 95% interval: pooled {np.mean(pooled):.0%}, a single draw {np.mean(single):.0%}"
)
