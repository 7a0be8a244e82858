"""Matrix factorization that learns how to factorize."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from metamf_jax.imputation.estimator import MetaMFImputer

__all__ = ["MetaMFImputer"]


def __getattr__(name: str):
    # Imported when asked for: it needs scikit-learn, which the rest of the package does not.
    if name == "MetaMFImputer":
        from metamf_jax.imputation.estimator import MetaMFImputer

        return MetaMFImputer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
