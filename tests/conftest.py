"""Strict settings for every test: 8 fake CPU devices, no silent rank promotion."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The tests leave no traces in a home; those that need the cache give it a folder.
os.environ["METAMF_COMPILATION_CACHE"] = "off"

import jax

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
# Starts the backend, so that `parallel.use_devices` chooses among the 8 and never makes fewer.
assert len(jax.local_devices()) == 8
