"""The encoder against NumPy, in both layouts, with poisoned padding and permuted."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from metamf_jax import bias_model
from metamf_jax.meta_learning import encoder
from metamf_jax.meta_learning.encoder import EncoderConfig
from metamf_jax.types import Entries, FactorPrior, PaddedMatrices
from tests import numpy_reference
from tests.compilation import FAST

# Precisions; per row, and a bias model that is fitted first.
VARIANTS = ("scalar", "per_row", "effects")
SHAPE = {"channels": 4, "layers": 2, "rank": 3}


def config_of(variant):
    if variant == "effects":
        return EncoderConfig(**SHAPE, precision="per_row", effects=True)
    return EncoderConfig(**SHAPE, precision=variant)


@functools.cache
def encoder_and_params(variant):
    """A tiny encoder's compiled apply, and parameters none of which is zero."""
    made = encoder.make_encoder(config_of(variant))
    params = jax.eval_shape(made.init, jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(0, 0.6, x.shape).astype(np.float32), params)
    return jax.jit(made.apply, compiler_options=FAST), params


@functools.cache
def gradient_function(variant):
    """The gradient of a function of the whole prior by parameters and observed values."""
    apply = encoder.make_encoder(config_of(variant)).apply

    def total(params, values, observations):
        if isinstance(observations, Entries):
            seen = Entries(observations.rows, observations.columns, values, observations.shape)
        else:
            seen = observations._replace(values=values)
        return sum((leaf**2).sum() for leaf in apply(params, seen))

    return jax.jit(jax.grad(total, argnums=(0, 1)), compiler_options=FAST)


def reference(params, matrix, variant):
    """The encoder of methods' equations, matrix by matrix in float64."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params["params"])
    observed = matrix.observed[:, :, None]
    z = np.where(matrix.observed, matrix.values, 0).astype(np.float64)[:, :, None]

    def means(z):
        rows = z.sum(1) / np.maximum(observed.sum(1), 1)
        columns = z.sum(0) / np.maximum(observed.sum(0), 1)
        return rows, columns, z.sum((0, 1)) / max(observed.sum(), 1)

    def log_counts(counts):
        return np.log(1 + counts) - 1

    row_counts, column_counts = (log_counts(matrix.observed.sum(axis)) for axis in (1, 0))
    if variant == "effects":
        shrinkage = bias_model.Shrinkage(*np.exp(params["log_shrinkage"]))
        fitted = bias_model.fit_effects(matrix, shrinkage, sweeps=4)
        mean, of_rows, of_columns = (np.float64(part) for part in fitted)
        inputs = (
            z[:, :, 0] - mean - of_rows[:, None] - of_columns,
            (mean + of_rows)[:, None],
            row_counts[:, None],
            of_columns,
            column_counts,
        )
        z = np.stack([np.broadcast_to(part, observed.shape[:2]) for part in inputs], axis=2)
        z = np.where(observed, z, 0)
    for layer in range(2):
        p = params[f"ExchangeableLayer_{layer}"]
        rows, columns, everything = means(z)
        z = (
            z @ p["cell"]
            + (rows @ p["row"])[:, None, :]
            + (columns @ p["column"])[None, :, :]
            + everything @ p["all"]
            + p["bias"]
        )
        z = np.where(observed, np.maximum(z, 0), 0)
    rows, columns, everything = means(z)
    if variant == "effects":
        shared = np.append(everything, log_counts(observed.sum()) / 3)
        rows, columns = (
            np.column_stack([pooled, effects, counts, np.tile(shared, (len(pooled), 1))])
            for pooled, effects, counts in (
                (rows, of_rows, row_counts),
                (columns, of_columns, column_counts),
            )
        )

    def head(name, x):
        # Flax numbers the layers in the order of their construction, the outer one first.
        second, first = params[name]["Dense_0"], params[name]["Dense_1"]
        hidden = np.maximum(x @ first["kernel"] + first["bias"], 0)
        return hidden @ second["kernel"] + second["bias"]

    log_u = np.full(len(rows), params["log_precision"])
    log_v = np.full(len(columns), params["log_precision"])
    if variant != "scalar":
        log_u = log_u + head("u_log_precision", rows)[:, 0]
        log_v = log_v + head("v_log_precision", columns)[:, 0]
    return FactorPrior(head("u_mean", rows), head("v_mean", columns), np.exp(log_u), np.exp(log_v))


def assert_close(got, expected):
    for name, a, b in zip(FactorPrior._fields, got, expected, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5, err_msg=name)


def assert_equal(got, expected):
    for name, a, b in zip(FactorPrior._fields, got, expected, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)


def with_poison(observations, poison):
    """The same matrix with this at unobserved and padding cells."""
    if isinstance(observations, Entries):
        outside = observations.rows == observations.shape[0]
        values = np.where(outside, poison, observations.values).astype(np.float32)
        return Entries(observations.rows, observations.columns, values, observations.shape)
    return observations._replace(
        values=np.where(observations.observed, observations.values, poison).astype(np.float32)
    )


class EncoderTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.padded, self.entries = numpy_reference.random_matrix(0)

    @parameterized.parameters(*VARIANTS)
    def test_both_layouts_equal_numpy(self, variant):
        apply, params = encoder_and_params(variant)
        expected = reference(params, self.padded, variant)
        assert_close(apply(params, self.padded), expected)
        assert_close(apply(params, self.entries), expected)

    @parameterized.parameters(*VARIANTS)
    def test_permuted_matrix_gives_permuted_prior(self, variant):
        apply, params = encoder_and_params(variant)
        rng = np.random.default_rng(1)
        rows, columns = rng.permutation(6), rng.permutation(5)
        permuted = PaddedMatrices(*(x[rows][:, columns] for x in self.padded))
        # Row n of the old matrix is where(rows == n) of the new; padding stays one past the end.
        listed = Entries(
            np.append(np.argsort(rows), 6).astype(np.int32)[self.entries.rows],
            np.append(np.argsort(columns), 5).astype(np.int32)[self.entries.columns],
            self.entries.values,
            self.entries.shape,
        )
        u_mean, v_mean, u_precision, v_precision = apply(params, self.padded)
        expected = u_mean[rows], v_mean[columns], u_precision[rows], v_precision[columns]
        assert_close(apply(params, permuted), expected)
        assert_close(apply(params, listed), expected)

    def test_order_of_the_list_does_not_matter(self):
        apply, params = encoder_and_params("per_row")
        order = np.random.default_rng(2).permutation(len(self.entries.rows))
        shuffled = Entries(
            self.entries.rows[order],
            self.entries.columns[order],
            self.entries.values[order],
            self.entries.shape,
        )
        assert_close(apply(params, shuffled), apply(params, self.entries))

    @parameterized.product(variant=VARIANTS, poison=[np.nan, 1e30, np.inf])
    def test_poisoned_padding_changes_nothing(self, variant, poison):
        apply, params = encoder_and_params(variant)
        gradient = gradient_function(variant)
        for observations in (self.padded, self.entries):
            clean, poisoned = with_poison(observations, 0), with_poison(observations, poison)
            assert_equal(apply(params, poisoned), apply(params, clean))
            got = gradient(params, poisoned.values, poisoned)
            expected = gradient(params, clean.values, clean)
            for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
                assert np.isfinite(a).all()
                np.testing.assert_array_equal(a, b)
            # What is not observed has no influence; what is observed has.
            unobserved = (
                observations.rows == 6
                if isinstance(observations, Entries)
                else ~observations.observed
            )
            np.testing.assert_array_equal(np.asarray(got[1])[unobserved], 0)
            assert (np.asarray(got[1])[~unobserved] != 0).any()

    @parameterized.parameters(*VARIANTS)
    def test_rows_folded_in_get_the_prior_they_would_have_had(self, variant):
        made = encoder.make_encoder(config_of(variant))
        _, params = encoder_and_params(variant)
        encode = jax.jit(made.encode, compiler_options=FAST)
        whole, effects, context = encode(params, self.padded)
        few = [4, 0, 3]
        part, part_effects, _ = encode(
            params, PaddedMatrices(*(x[few] for x in self.padded)), context
        )
        np.testing.assert_allclose(part.u_mean, whole.u_mean[np.array(few)], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(part.u_precision, whole.u_precision[np.array(few)], rtol=1e-4)
        if variant == "effects":
            np.testing.assert_allclose(
                part_effects.rows, effects.rows[np.array(few)], rtol=1e-4, atol=1e-5
            )
        else:
            assert effects is None
            assert part_effects is None

    def test_what_does_not_fit_is_refused(self):
        made = encoder.make_encoder(config_of("scalar"))
        _, params = encoder_and_params("scalar")
        encode = functools.partial(jax.eval_shape, made.encode, params)
        values, observed = self.padded
        for batch in (
            PaddedMatrices(values[None], observed[None]),
            PaddedMatrices(values, observed[:-1]),
            dataclasses.replace(self.entries, values=self.entries.values[None]),
            dataclasses.replace(self.entries, rows=self.entries.rows[:-1]),
        ):
            with pytest.raises(AssertionError, match=r"shape|rank"):
                encode(batch)
        *_, context = encode(self.padded)
        with pytest.raises(AssertionError, match="shape"):
            encode(PaddedMatrices(values[:, :-1], observed[:, :-1]), context)

    def test_rows_without_cells_are_finite_and_alike(self):
        apply, params = encoder_and_params("per_row")
        observed = self.padded.observed.copy()
        observed[[1, 4], :] = observed[:, [0, 3]] = False
        sparse = self.padded._replace(observed=observed)
        prior = apply(params, sparse)
        assert_close(prior, reference(params, sparse, "per_row"))
        np.testing.assert_array_equal(prior.u_mean[1], prior.u_mean[4])
        np.testing.assert_array_equal(prior.v_precision[0], prior.v_precision[3])
        empty = self.padded._replace(observed=np.zeros_like(observed))
        assert_close(apply(params, empty), reference(params, empty, "per_row"))
        gradient = gradient_function("per_row")(params, empty.values, empty)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))

    def test_precisions(self):
        apply, params = encoder_and_params("scalar")
        prior = apply(params, self.padded)
        scalar = np.exp(params["params"]["log_precision"])
        np.testing.assert_allclose(prior.u_precision, np.full(6, scalar), rtol=1e-6)
        np.testing.assert_allclose(prior.v_precision, np.full(5, scalar), rtol=1e-6)
        apply, params = encoder_and_params("per_row")
        prior = apply(params, self.padded)
        assert (np.asarray(prior.u_precision) > 0).all()
        assert len(np.unique(prior.u_precision)) > 1
        assert len(np.unique(prior.v_precision)) > 1

    def test_initial_prior_has_precision_one_and_the_key_decides(self):
        made = encoder.make_encoder(EncoderConfig(channels=4, layers=1, rank=3))
        init = jax.jit(made.init, compiler_options=FAST)
        first, again, other = (init(jax.random.key(seed)) for seed in (0, 0, 1))
        for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True):
            np.testing.assert_array_equal(a, b)
        cells = [p["params"]["ExchangeableLayer_0"]["cell"] for p in (first, other)]
        assert (cells[0] != cells[1]).any()
        assert first["params"]["log_precision"] == 0

    def test_parameters_serve_every_size(self):
        made = encoder.make_encoder(EncoderConfig(**SHAPE))
        params = jax.eval_shape(made.init, jax.random.key(0))
        for shape in ((1, 1), (2, 9), (30, 4)):
            matrix = PaddedMatrices(jnp.zeros(shape), jnp.zeros(shape, bool))
            prior = jax.eval_shape(made.apply, params, matrix)
            assert [leaf.shape for leaf in prior] == [
                (shape[0], 3),
                (shape[1], 3),
                shape[:1],
                shape[1:],
            ]

    @parameterized.parameters(
        {"channels": 0}, {"layers": 0}, {"rank": 0}, {"precision": "per_column"}
    )
    def test_bad_configurations_are_refused(self, **bad):
        with pytest.raises(ValueError, match=next(iter(bad))):
            EncoderConfig(**bad)
