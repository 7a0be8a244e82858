"""Matrix factorization that learns how to factorize."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from metamf_jax.imputation.estimator import MetaMFImputer
    from metamf_jax.imputation.pool import pool

__all__ = ["MetaMFImputer", "pool"]


def __getattr__(name: str):
    # Imported when asked for: the imputer needs scikit-learn, which the rest does not.
    if name == "MetaMFImputer":
        from metamf_jax.imputation.estimator import MetaMFImputer

        return MetaMFImputer
    if name == "pool":
        from metamf_jax.imputation.pool import pool

        return pool
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
