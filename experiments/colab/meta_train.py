# %% [markdown]
# # Meta-train on your own matrices
#
# An encoder learns, from sub-matrices of one part of your data, a prior for matrices from another
# part that shares neither rows nor columns with the first. Here the data are synthetic ratings; put
# the path of your own table in place of `"synthetic"`.

# %%
import dataclasses
import pathlib
import tempfile

import numpy as np

from experiments import presets, train
from metamf_jax import MetaMFImputer
from metamf_jax.data import sources

# %%
# "smoke" shows the way in seconds; "tiny" takes minutes and is good.
config = train.Config(
    dataset="synthetic", preset="smoke", seed=0, split_seed=0, **presets.TRAIN["smoke"]
)
config = dataclasses.replace(config, scored_matrices=5)
workdir = pathlib.Path(tempfile.mkdtemp())

# %%
summary = train.run(config, workdir, plots=False)
summary["results"]

# %% [markdown]
# The prior lies in the workdir, and imputes any table.

# %%
table = sources.load("synthetic", seed=1)
imputer = MetaMFImputer(weights=workdir).fit(table.entries)
rows, columns = np.array([0, 1]), np.array([2, 3])
print(imputer.predict(rows, columns, return_std=True))
