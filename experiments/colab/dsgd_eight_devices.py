# %% [markdown]
# # DSGD on eight devices
#
# Distributed stochastic gradient descent cuts a matrix into blocks; blocks that share neither rows
# nor columns are worked on in parallel. Any machine can pretend to have eight devices. The factors
# are the same, to the last bit, as on one.

# %%
import tempfile

from experiments import factorize
from metamf_jax import parallel

parallel.use_devices(8)

# %%
config = factorize.Config(solver="dsgd", blocks=8, rank=4, epochs=3, step_size="constant:0.02")
folders = {count: tempfile.mkdtemp() for count in (1, 8)}
results = {
    count: factorize.run(config, folder, num_devices=count)["results"]
    for count, folder in folders.items()
}

# %%
for count, result in results.items():
    print(count, "devices:", {name: result[name] for name in list(result)[:4]})
