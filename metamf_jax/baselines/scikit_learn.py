"""What the imputers of scikit-learn need: a dense matrix with gaps."""

import importlib
from types import ModuleType
from typing import Any

import numpy as np

from metamf_jax.types import Entries


def module(name: str) -> ModuleType:
    """``sklearn.<name>``, imported when first used: it takes a second."""
    return importlib.import_module(f"sklearn.{name}")


def impute(imputer: Any, support: Entries, query: Entries) -> np.ndarray:
    """The query entries [Q] of the matrix that the imputer completes; NumPy, without padding."""
    matrix = np.full(support.shape, np.nan)
    matrix[support.rows, support.columns] = support.values
    # An imputer cannot fill a matrix without entries; zero is the mean of standardised values.
    completed = imputer.fit_transform(matrix) if len(support.rows) else np.zeros(support.shape)
    return completed[query.rows, query.columns].astype(np.float32)
