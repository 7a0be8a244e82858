"""The image binary as a user runs it, and that it restores."""

import json

import numpy as np

from experiments import image_denoising
from metamf_jax.data import images
from tests.experiments_test import launch
from tests.plotting_test import assert_picture


def test_smoke_run_draws(tmp_path):
    ended = launch(image_denoising, "--preset=smoke", f"--workdir={tmp_path}")
    assert ended.code == 0, ended.err
    results = json.loads((tmp_path / "summary.json").read_text())["results"]
    assert results["restored"]["both"].keys() == {"1", "4"}
    for name in ("restored", "psnr"):
        assert_picture(tmp_path / "plots" / f"{name}.png")


def test_a_picture_of_rank_two_comes_back():
    y, x = np.meshgrid(*(2 * [np.linspace(0, 1, 40)]), indexing="ij")
    image = 0.3 + 0.4 * y * x + 0.1 * np.sin(6 * x)  # So that nothing has to be cut to 0..1.
    entries = images.damaged(image, 0.05, 0.4, np.random.default_rng(0))
    found = []
    for rank in (3, 12):
        weight = image_denoising.penalty(entries, 0.05, 0.25)
        restored = image_denoising.restore(entries, rank, weight, 10, 0, 12)
        found.append(images.psnr(image, restored))
        assert np.linalg.matrix_rank(restored - entries.values.mean(), tol=1e-3) <= rank
    noisy = images.psnr(image, image + 0.05 * np.random.default_rng(0).normal(size=image.shape))
    # Closer than the noisy whole, though 40% are missing; a higher rank fits the noise.
    assert found[0] > noisy + 3
    assert found[0] > found[1]


def test_mistakes(tmp_path):
    for arguments, message in (
        ((), "--workdir is needed"),
        (("--image=gone.png", f"--workdir={tmp_path / 'x'}"), "gone.png: no such image"),
        (("--missing=1", f"--workdir={tmp_path / 'x'}"), "a missing part from 0 to 0.99"),
    ):
        ended = launch(image_denoising, "--preset=smoke", *arguments)
        assert ended.code == 1
        assert ended.err.startswith("error: ")
        assert message in ended.err
        assert ended.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
