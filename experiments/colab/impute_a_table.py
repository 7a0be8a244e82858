# %% [markdown]
# # Impute a table in five lines
#
# `MetaMFImputer` fills in missing cells from priors learned on other matrices. Nothing is trained
# on the table, and every imputed cell comes with an error bar. In Colab, install the package first:
# `%pip install "metamf_jax[cpu,baselines] @ git+URL"`, with the URL of its repository.

# %%
from typing import Any

import numpy as np
import pandas as pd
from sklearn.datasets import load_iris

from metamf_jax import MetaMFImputer

# %% [markdown]
# Remove a third of the cells of a table that everybody knows.

# %%
iris: Any = load_iris()
whole = pd.DataFrame(iris["data"], columns=iris["feature_names"])
holes = whole.mask(np.random.default_rng(0).random(whole.shape) < 1 / 3)

# %% [markdown]
# The five lines are two: fit, and fill in. `set_output` gives a data frame back.

# %%
imputer = MetaMFImputer().set_output(transform="pandas").fit(holes)
completed = imputer.transform(holes)

# %% [markdown]
# How far off is it, beside the column means, and how honest are the error bars? The imputer has
# already asked itself, on observed cells that it held out.

# %%
rows, columns = np.nonzero(holes.isna().to_numpy())
truth, means = whole.to_numpy()[rows, columns], holes.mean().to_numpy()[columns]
values, errors = imputer.predict(rows, columns, return_std=True)
print(f"root mean square error {np.sqrt(((values - truth) ** 2).mean()):.3f}")
print(f"of the column means    {np.sqrt(((means - truth) ** 2).mean()):.3f}")
print(f"held-out check         {imputer.check_.rmse:.3f}")
print(f"in the 90% intervals   {(np.abs(values - truth) < 1.645 * errors).mean():.1%}")
assert not completed.isna().to_numpy().any()
