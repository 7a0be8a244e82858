"""Strict settings for every test: 8 fake CPU devices, no silent rank promotion.

JAX_PLATFORMS=cuda runs them on a GPU: those that fit are listed in `launch.gpu_check`.

Compiled programs are kept for the session and shared with the processes that tests start: most
tests compile what another one has compiled.
"""

import functools
import os
import shutil
import tempfile

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The workers of xdist share that of the process that starts them.
os.environ["METAMF_COMPILATION_CACHE"] = (
    os.environ["METAMF_COMPILATION_CACHE"]
    if "PYTEST_XDIST_WORKER" in os.environ
    else tempfile.mkdtemp()
)

import jax

from metamf_jax.runs import compilation_cache

compilation_cache.use()
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
# Starts the backend, so that `parallel.use_devices` chooses among the 8 and never makes fewer.
assert jax.default_backend() != "cpu" or len(jax.local_devices()) == 8


def pytest_unconfigure():
    """Leaves no traces."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        shutil.rmtree(os.environ["METAMF_COMPILATION_CACHE"], ignore_errors=True)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """Gives workdir and output of a run of `train` or `factorize` that nothing happened to."""
    from tests.experiments_test import start

    @functools.cache
    def run(name):
        workdir = tmp_path_factory.mktemp("undisturbed") / name
        ended = start(name, workdir)
        assert ended.code == 0, ended.err
        return workdir, ended

    return run
