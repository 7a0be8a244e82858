"""Meta-training: devices, traces, early stopping, resumption, failures. Mostly on a toy model."""

import functools
import tempfile
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import parameterized

from metamf_jax import parallel, sums
from metamf_jax.meta_learning import meta_loss, padding, training
from metamf_jax.meta_learning.encoder import EncoderConfig
from metamf_jax.meta_learning.map_estimation import MapConfig
from metamf_jax.meta_learning.meta_loss import Episode, ModelConfig
from metamf_jax.meta_learning.training import TrainingConfig
from metamf_jax.runs.checkpoint import Checkpointer
from metamf_jax.types import Entries


def random_entries(rng, shape, count, shift=0.0):
    places = rng.choice(shape[0] * shape[1], count, replace=False)
    rows, columns = np.divmod(places.astype(np.int32), np.int32(shape[1]))
    return Entries(rows, columns, (shift + rng.normal(size=count)).astype(np.float32), shape)


def draw(step, batch=3, counts=(4, 9), length=12, shift=1.0):
    """A batch of that step; each matrix has another number of cells."""
    rng = np.random.default_rng([17, step])
    parts = []
    for _ in range(2):
        matrices = [
            random_entries(rng, (5, 4), int(rng.integers(*counts)), shift) for _ in range(batch)
        ]
        parts.append(padding.stack_entries(matrices, (5, 4), length))
    return Episode(*parts)


class Toy:
    """Predicts the query by ``a + b * (mean of the support)``; counts how often it is traced."""

    def __init__(self):
        self.traces = 0
        self.params = {"a": np.float32(0), "b": np.float32(0)}

    def loss(self, params, episode):
        self.traces += 1
        support, query = episode
        seen = jnp.maximum((support.rows < support.shape[0]).sum(), 1)
        mean = sums.observed_values(support).sum() / seen
        asked = query.rows < query.shape[0]
        error = jnp.where(asked, query.values - params["a"] - params["b"] * mean, 0)
        count = asked.sum()
        return (error**2).sum() / jnp.maximum(count, 1), (count > 0).astype(jnp.float32)


def start(params, config):
    return training.init_state(params, training.make_optimizer(config))


def assert_states_equal(got, expected):
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))


class TrainingTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.addCleanup(setattr, parallel, "_devices", None)

    def train(self, config, devices=2, toy=None, state=None, **options):
        """Trains a toy; returns the state and what was evaluated."""
        parallel.use_devices(devices)
        toy = toy or Toy()
        evaluations = []

        def on_evaluation(state, metrics):
            evaluations.append((int(state.step), metrics, state))

        arguments = {"draw": draw, "validation": draw(10**6, batch=4), **options}
        final = training.meta_train(
            toy.loss,
            state or start(toy.params, config),
            config=config,
            on_evaluation=arguments.pop("on_evaluation", on_evaluation),
            **arguments,
        )
        return final, evaluations

    def test_one_trace_a_bucket(self):
        toy = Toy()
        config = TrainingConfig(max_steps=12, evaluate_every=3)
        # Twelve steps of matrices of 1 to 10 cells, and four validations: each traced once.
        self.train(config, toy=toy, draw=functools.partial(draw, counts=(1, 11)))
        assert toy.traces == 2
        lengths = {0: 12, 1: 12, 2: 16, 3: 12, 4: 16, 5: 16}
        toy = Toy()
        self.train(
            TrainingConfig(max_steps=6, evaluate_every=6),
            toy=toy,
            draw=lambda step: draw(step, length=lengths[step]),
        )
        assert toy.traces == 3

    def test_loss_and_gradient_are_means_over_episodes_of_all_devices(self):
        toy = Toy()
        episodes = draw(0, batch=5)
        episodes.query.rows[3] = 5  # The fourth has no query.
        episodes.query.columns[3] = 4

        def mean(params):
            losses, weights = jax.vmap(lambda episode: toy.loss(params, episode))(episodes)
            return losses.sum() / weights.sum()

        expected, slope = jax.value_and_grad(mean)(toy.params)
        for devices in (1, 2, 8):
            parallel.use_devices(devices)
            # The gradient itself takes the place of the optimiser's step.
            identity = optax.identity()
            update = training.make_update(toy.loss, identity)
            learned = parallel.replicate((toy.params, identity.init(toy.params)))
            (params, _), loss = update(learned, training.share_episodes(episodes))
            np.testing.assert_allclose(loss, expected, rtol=1e-6)
            for name in ("a", "b"):
                np.testing.assert_allclose(params[name], slope[name], rtol=1e-5)

    def test_many_devices_equal_one_for_the_real_model(self):
        model = meta_loss.make_model(
            ModelConfig(EncoderConfig(channels=3, layers=1, rank=2), MapConfig(steps=2))
        )
        rng = np.random.default_rng(0)
        params = jax.tree.map(
            lambda x: rng.normal(0, 0.4, x.shape).astype(np.float32),
            jax.eval_shape(model.init, jax.random.key(0)),
        )
        params = params._replace(log_step_size=np.float32(-3))
        # Fewer operations to compile than Adam's.
        optimizer = optax.sgd(0.3)
        results = []
        self.enterContext(sums.using_backend("xla"))
        for devices in (1, 8):
            parallel.use_devices(devices)
            update = training.make_update(
                lambda params, episode: meta_loss.episode_loss(model, params, episode), optimizer
            )
            learned = parallel.replicate((params, optimizer.init(params)))
            for step in range(3):
                # 11 episodes on 8 devices: five of them hold one of nothing.
                learned, loss = update(learned, training.share_episodes(draw(step, batch=11)))
            results.append(jax.device_get((learned[0], loss)))
        for a, b in zip(*map(jax.tree.leaves, results), strict=True):
            assert np.isfinite(a).all()
            np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)
        moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), results[0][0], params)
        assert min(jax.tree.leaves(moved)) > 1e-4

    def test_devices_do_not_matter_for_a_whole_run(self):
        config = TrainingConfig(max_steps=8, evaluate_every=4, learning_rate=0.1)
        (one, _), (eight, _) = (self.train(config, devices=n) for n in (1, 8))
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(eight), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4)

    def test_split_batch_fills_with_nothing(self):
        parallel.use_devices(8)
        shares = training.share_episodes(draw(0, batch=11))
        for part in shares:
            assert part.rows.shape == (8, 2, 12)
            flat = part.rows.reshape(16, 12)
            np.testing.assert_array_equal(flat[11:], 5)
            np.testing.assert_array_equal(part.columns.reshape(16, 12)[11:], 4)
            np.testing.assert_array_equal(part.values.reshape(16, 12)[11:], 0)
        np.testing.assert_array_equal(
            shares.query.rows.reshape(16, 12)[:11], draw(0, batch=11).query.rows
        )

    def test_it_learns(self):
        config = TrainingConfig(max_steps=60, evaluate_every=20, learning_rate=0.05)
        final, evaluations = self.train(config)
        errors = [metrics["validation_mse"] for _, metrics, _ in evaluations]
        assert [step for step, _, _ in evaluations] == [20, 40, 60]
        # The values are 1 + noise of deviation 1, so that 2 is the error of predicting zero.
        assert errors[-1] < errors[0] < 2.1
        assert errors[-1] < 1.6
        assert int(final.step) == 60

    def test_the_last_steps_are_validated_too(self):
        _, evaluations = self.train(TrainingConfig(max_steps=7, evaluate_every=3))
        assert [step for step, _, _ in evaluations] == [3, 6, 7]

    def test_early_stopping_keeps_the_best(self):
        # Validation wants 0.4 where training goes to 1: its error falls, then rises.
        config = TrainingConfig(max_steps=500, evaluate_every=2, learning_rate=0.03, patience=8)
        validation = draw(10**6, batch=8, shift=0.4)
        final, evaluations = self.train(config, validation=validation)
        errors = np.array([metrics["validation_mse"] for _, metrics, _ in evaluations])
        best = int(errors.argmin())
        best_step, _, best_state = evaluations[best]
        assert 0 < best < len(errors) - 1
        assert int(final.best_step) == best_step
        # It went on for as long as patience says, and no longer.
        assert int(final.step) == best_step + 8
        assert training.is_finished(final, config)
        np.testing.assert_allclose(final.best_validation, errors[best], rtol=1e-6)
        assert_states_equal(final.best_params, best_state.params)
        assert final.best_params["a"] != final.params["a"]
        score = training.make_evaluate(Toy().loss)(final.best_params, validation)
        np.testing.assert_allclose(score.mean(), errors[best], rtol=1e-6)

    def test_the_last_parameters_can_be_kept(self):
        config = TrainingConfig(
            max_steps=40, evaluate_every=2, learning_rate=0.03, patience=8, keep="last"
        )
        final, evaluations = self.train(config, validation=draw(10**6, batch=8, shift=0.4))
        errors = [metrics["validation_mse"] for _, metrics, _ in evaluations]
        assert errors[-1] > min(errors)
        # Patience waits for a better validation, and every one counts as better here.
        assert int(final.step) == 40
        assert_states_equal(final.best_params, final.params)

    def test_the_running_average_is_kept(self):
        config = TrainingConfig(
            batch=3, max_steps=14, evaluate_every=1, keep="last", average_decay=0.8
        )
        final, evaluations = self.train(config)
        average = {"a": 0.0, "b": 0.0}
        for step, _, state in evaluations:
            decay = min(0.8, step / (9 + step))
            for name in average:
                average[name] = decay * average[name] + (1 - decay) * state.params[name]
        for name in average:
            np.testing.assert_allclose(final.best_params[name], average[name], rtol=1e-5)
            assert abs(final.best_params[name] - final.params[name]) > 1e-5

    def test_a_finished_run_is_left_alone(self):
        config = TrainingConfig(max_steps=4, evaluate_every=2)
        final, _ = self.train(config)

        def refuse(step):
            raise AssertionError(f"drew step {step}")

        again, evaluations = self.train(config, state=final, draw=refuse)
        assert not evaluations
        assert_states_equal(again, final)

    @parameterized.parameters("constant", "cosine")
    def test_interrupted_equals_uninterrupted_to_the_last_bit(self, schedule):
        config = TrainingConfig(
            max_steps=12, evaluate_every=4, learning_rate=0.05, schedule=schedule
        )
        expected, _ = self.train(config)
        workdir = self.enterContext(tempfile.TemporaryDirectory())
        checkpointer = Checkpointer(workdir)

        class Cut(Exception):
            pass

        def save_and_cut(state, metrics):
            checkpointer.save(int(state.step), state)
            if state.step == 8:
                raise Cut

        with pytest.raises(Cut):
            self.train(config, on_evaluation=save_and_cut)
        checkpointer = Checkpointer(workdir)
        state = checkpointer.restore(start(Toy().params, config))
        assert int(state.step) == 8
        got, evaluations = self.train(config, state=state)
        assert [step for step, _, _ in evaluations] == [12]
        assert_states_equal(got, expected)

    def test_non_finite_loss_names_the_steps(self):
        def poisoned(step):
            episodes = draw(step)
            if step == 5:
                episodes.query.values[:] = np.nan
            return episodes

        config = TrainingConfig(max_steps=12, evaluate_every=4)
        with pytest.raises(FloatingPointError, match="nan between steps 5 and 8"):
            self.train(config, draw=poisoned)

    def test_draws_come_in_order_one_ahead(self):
        drawn = []

        def slow(step):
            drawn.append(step)
            return step

        seen = []
        for step in parallel.prefetch(slow, 3, 9):
            time.sleep(0.01)
            # The next may be drawn already, no other.
            assert drawn[-1] <= step + 1
            seen.append(step)
        assert seen == drawn == list(range(3, 9))
        assert list(parallel.prefetch(slow, 4, 4)) == []

    def test_the_next_draw_runs_beside_the_step(self):
        started = threading.Event()

        def draw_step(step):
            if step == 1:
                started.set()
            return step

        batches = parallel.prefetch(draw_step, 0, 2)
        next(batches)
        assert started.wait(10)
        assert list(batches) == [1]

    def test_a_failed_draw_surfaces(self):
        def fail(step):
            if step == 6:
                raise OSError("the disk is gone")
            return draw(step)

        config = TrainingConfig(max_steps=12, evaluate_every=4)
        with pytest.raises(OSError, match="the disk is gone"):
            self.train(config, draw=fail)

    @parameterized.parameters(
        {"batch": 0},
        {"max_steps": 0},
        {"evaluate_every": 0},
        {"patience": 0},
        {"schedule": "linear"},
    )
    def test_bad_configurations_are_refused(self, **bad):
        with pytest.raises(ValueError, match=next(iter(bad))):
            TrainingConfig(**bad)

    def test_more_devices_than_there_are(self):
        with pytest.raises(ValueError, match="9 devices were asked for, but there are 8"):
            parallel.use_devices(9)
