"""A fit that is saved and loaded answers as before, to the last bit."""

import json

import numpy as np
import pandas as pd
import pytest
import safetensors.numpy

from metamf_jax import MetaMFImputer
from metamf_jax.imputation import fit_file, prior
from metamf_jax.types import Entries


def low_rank(shape):
    rng = np.random.default_rng(0)
    whole = rng.normal(size=(shape[0], 2)) @ rng.normal(size=(2, shape[1]))
    whole += rng.normal(size=shape[1]) + 0.3 * rng.normal(size=shape)
    return np.where(rng.random(shape) < 0.3, np.nan, whole)


def answers(imputer, X):
    cells = np.arange(len(X)), np.arange(len(X)) % X.shape[1]
    return [
        *imputer.transform(X, return_std=True),
        *imputer.transform(X[:3] + 0.1, return_std=True),
        *imputer.predict(*cells, return_std=True),
        *imputer.predict_quantiles(*cells),
        *imputer.sample(X, imputations=2),
    ]


@pytest.mark.parametrize(
    ("shape", "options"),
    # With a Gaussian over the rows, and fitted by rows. `sampled_test` has one with draws.
    [
        ((24, 6), {"missing_values": -9.0, "bounds": {0: (None, 1.5), 3: (-3, None)}}),
        ((12, 20), {"standardize": "rows", "random_state": 3}),
    ],
)
def test_a_loaded_fit_answers_to_the_last_bit(tmp_path, shape, options):
    X = low_rank(shape)
    X = np.where(np.isnan(X), options.get("missing_values", np.nan), X)
    imputer = MetaMFImputer(**options).fit(X)
    imputer.save(tmp_path / "fit.safetensors")
    loaded = MetaMFImputer.load(tmp_path / "fit.safetensors")
    expected = imputer.get_params()
    if imputer.bounds is not None:
        # As of JSON, but that keys are numbers still.
        expected["bounds"] = {m: list(pair) for m, pair in imputer.bounds.items()}
    np.testing.assert_equal(loaded.get_params(), expected)
    for one, other in zip(answers(imputer, X), answers(loaded, X), strict=True):
        np.testing.assert_array_equal(one, other)
    assert [path.name for path in tmp_path.iterdir()] == ["fit.safetensors"]


def test_names_of_columns_are_kept(tmp_path):
    frame = pd.DataFrame(low_rank((12, 4)), columns=list("abcd"))
    imputer = MetaMFImputer().fit(frame)
    imputer.save(tmp_path / "fit.safetensors")
    loaded = MetaMFImputer.load(tmp_path / "fit.safetensors")
    assert vars(loaded)["feature_names_in_"].tolist() == list("abcd")
    with pytest.raises(ValueError, match="feature names should match"):
        loaded.transform(frame[list("abdc")])


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "fit.safetensors"
    with pytest.raises(ValueError, match="does not exist: expected a fit of the imputer"):
        MetaMFImputer.load(path)
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match="does not hold a fit of the imputer"):
        MetaMFImputer.load(path)
    with pytest.raises(ValueError, match="written by something else"):
        MetaMFImputer.load(prior.FOLDER / "general.safetensors")
    header = {"metamf_jax": "imputer", "version": "7"}
    safetensors.numpy.save_file({"a": np.zeros(1)}, path, metadata=header)
    with pytest.raises(ValueError, match="version 7, and this package reads 2: fit again"):
        MetaMFImputer.load(path)
    for tree in ({"record": "Popen", "fields": {}}, {"record": "Entries", "fields": {}}, 3):
        header |= {"version": "2", "completion": json.dumps(tree), "options": "{}"}
        safetensors.numpy.save_file({"a": np.zeros(1)}, path, metadata=header)
        with pytest.raises(ValueError, match="does not hold a fit of the imputer"):
            MetaMFImputer.load(path)


def test_what_cannot_be_saved_is_told(tmp_path):
    imputer = MetaMFImputer(random_state=np.random.RandomState(0)).fit(low_rank((6, 4)))
    with pytest.raises(ValueError, match="expected an integer or None as random_state"):
        imputer.save(tmp_path / "fit.safetensors")
    imputer.set_params(random_state=0)
    with pytest.raises(ValueError, match="there is no folder"):
        imputer.save(tmp_path / "nowhere" / "fit.safetensors")
    with pytest.raises(TypeError, match=r"a\.b is a set, which fit_file does not know"):
        fit_file._taken_apart({"b": set()}, "a", {})
    held: dict[str, np.ndarray] = {}
    entries = Entries(np.zeros(1, np.int32), np.zeros(1, np.int32), np.ones(1), (1, 1))
    assert fit_file._put_together(fit_file._taken_apart(entries, "e", held), held) == entries
