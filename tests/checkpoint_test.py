"""Run states and parameter files: round trips, and refusal of what does not fit."""

import json
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from metamf_jax.runs import checkpoint
from metamf_jax.runs.checkpoint import Checkpointer


class State(NamedTuple):
    step: np.ndarray
    params: dict


def state(step, shape=(2, 3), name="w"):
    rng = np.random.default_rng(step)
    return State(
        np.int32(step),
        {
            "layer": {name: rng.normal(size=shape).astype(np.float32)},
            "count": jnp.int32(7),
            # Neither is a number that rounding through text would keep.
            "odd": np.float32([np.inf, np.nan, 1e-42, -0.0]),
        },
    )


def assert_same_bits(got, expected):
    assert type(got) is type(expected)
    for a, b in (
        (got.step, expected.step),
        (got.params["layer"]["w"], expected.params["layer"]["w"]),
        (got.params["count"], expected.params["count"]),
        (got.params["odd"], expected.params["odd"]),
    ):
        a, b = np.asarray(a), np.asarray(b)
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert a.tobytes() == b.tobytes()


def saved(workdir, *states):
    checkpointer = Checkpointer(workdir)
    for one in states:
        checkpointer.save(int(one.step), one)


def restored(workdir, like):
    return Checkpointer(workdir).restore(like)


def test_the_newest_state_comes_back_bit_for_bit(tmp_path):
    saved(tmp_path, state(5), state(10), state(15))
    assert_same_bits(restored(tmp_path, state(0)), state(15))
    # Only two are kept.
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "10.safetensors",
        "15.safetensors",
    ]


def test_an_empty_workdir_has_no_state(tmp_path):
    assert restored(tmp_path, state(0)) is None


def test_a_half_written_state_is_passed_over(tmp_path):
    saved(tmp_path, state(5))
    # What a kill leaves.
    part = tmp_path / "checkpoints" / ".10.safetensors.123.part"
    part.write_bytes(b"half")
    assert_same_bits(restored(tmp_path, state(0)), state(5))
    saved(tmp_path, state(10))
    assert not part.exists()


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (state(0, shape=(2, 4)), r"params/layer/w has shape \(2, 3\), expected \(2, 4\)"),
        (state(0, name="kernel"), r"params/layer/kernel has shape None, expected \(2, 3\)"),
    ],
)
def test_a_state_of_another_structure_is_refused(tmp_path, other, message):
    saved(tmp_path, state(5))
    with pytest.raises(
        ValueError, match=rf"(?s)checkpoint 5 under .* does not fit this run.*{message}"
    ):
        restored(tmp_path, other)


PARAMS = {
    "encoder": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3).T, "bias": np.zeros(0)},
    "scale": np.float32(-2.5),
}


def written(tmp_path, params=PARAMS):
    path = tmp_path / "model.safetensors"
    checkpoint.save_params(path, params, {"rank": 3, "range": [0.5, 5.0]})
    return path


def test_parameters_come_back(tmp_path):
    path = written(tmp_path)
    got = checkpoint.load_params(path, PARAMS)
    # A transposed view and a scalar are stored as they are seen.
    np.testing.assert_array_equal(got["encoder"]["kernel"], PARAMS["encoder"]["kernel"])
    assert got["encoder"]["bias"].shape == (0,)
    assert got["scale"].shape == ()
    assert got["scale"] == np.float32(-2.5)
    assert checkpoint.read_params_metadata(path) == {"rank": 3, "range": [0.5, 5.0]}
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


def test_others_can_read_the_file(tmp_path):
    with safetensors.safe_open(written(tmp_path), framework="numpy") as file:
        assert set(file.keys()) == {"encoder/kernel", "encoder/bias", "scale"}
        assert json.loads(file.metadata()["metamf_jax"])["rank"] == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda p: p["encoder"].update(kernel=np.zeros((3, 4), np.float32)),
            r"kernel has shape \(3, 2\) of float32 there, and shape \(3, 4\) of float32",
        ),
        (lambda p: p["encoder"].pop("bias"), r"encoder/bias has shape \(0,\) .* and no values"),
        (
            lambda p: p.update(more=np.zeros(2, np.int32)),
            r"more has no values there, and shape \(2,\) of int32",
        ),
        (lambda p: p.update(scale=np.int32(1)), r"scale .* of float32 there, .* \(\) of int32"),
    ],
)
def test_another_architecture_is_refused(tmp_path, change, message):
    like = {"encoder": dict(PARAMS["encoder"]), "scale": PARAMS["scale"]}
    change(like)
    with pytest.raises(ValueError, match=r"another architecture: .*" + message):
        checkpoint.load_params(written(tmp_path), like)


def test_parameters_that_are_not_finite_are_refused(tmp_path):
    path = written(tmp_path, {**PARAMS, "scale": np.float32(np.nan)})
    with pytest.raises(ValueError, match=r"model.safetensors: scale holds numbers that are not"):
        checkpoint.load_params(path, PARAMS)


def test_missing_and_foreign_files_are_named(tmp_path):
    path = tmp_path / "model.safetensors"
    with pytest.raises(ValueError, match=r"model.safetensors does not exist"):
        checkpoint.read_params_metadata(path)
    path.write_bytes(b"not such a file at all")
    for read in (
        checkpoint.read_params_metadata,
        lambda path: checkpoint.load_params(path, PARAMS),
    ):
        with pytest.raises(ValueError, match=r"model.safetensors does not hold parameters"):
            read(path)
    safetensors.numpy.save_file({"w": np.zeros(2)}, path)
    with pytest.raises(ValueError, match=r"does not hold parameters of this package"):
        checkpoint.read_params_metadata(path)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = written(tmp_path)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        checkpoint.save_params(path, PARAMS, {"rank": object()})
    assert path.read_bytes() == before
