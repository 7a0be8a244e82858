"""User AutoRec (Sedhain et al., WWW 2015): `autorec_item` with rows and columns exchanged."""

import jax

from metamf_jax import sums
from metamf_jax.baselines import autorec_item
from metamf_jax.baselines.method import Setting
from metamf_jax.types import Entries

GRID = autorec_item.GRID


def predict(support: Entries, query: Entries, setting: Setting) -> jax.Array:
    """Predicts the query entries [Q] of one matrix from its support."""
    seen, asked = sums.transpose(support), sums.transpose(query)
    assert isinstance(seen, Entries)
    assert isinstance(asked, Entries)
    return autorec_item.predict(seen, asked, setting)
