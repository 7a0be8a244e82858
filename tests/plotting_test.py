"""Plots are pictures: PNG files with more than paper on them."""

import matplotlib.image
import numpy as np
import pytest

from metamf_jax import plotting


def assert_picture(path, least_colours=20):
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    pixels = matplotlib.image.imread(path)
    assert min(pixels.shape[:2]) > 300
    colours = np.rint(255 * pixels[..., :3]).astype(np.int64) @ [1, 256, 65536]
    assert len(np.unique(colours)) >= least_colours
    # Something is drawn in the middle, not on the margins alone.
    height, width = pixels.shape[:2]
    middle = pixels[height // 4 : -height // 4, width // 4 : -width // 4]
    assert middle.std() > 0.005


def test_learning_curve(tmp_path):
    path = tmp_path / "curve.png"
    plotting.learning_curve(
        path, [5, 10, 15], [1.0, 0.8, 0.7], [1.1, 0.9, 0.95], 10, {"mean": 1.2, "bias": 0.85}
    )
    assert_picture(path)
    other = tmp_path / "other.png"
    plotting.learning_curve(other, [5, 10, 15], [1.0, 0.8, 0.7], [1.1, 0.5, 0.95], 10, {})
    assert path.read_bytes() != other.read_bytes()


@pytest.mark.parametrize("counts", [np.arange(5, 45), np.full(40, 7), np.arange(40) % 2])
def test_error_against_observations(tmp_path, counts):
    rng = np.random.default_rng(0)
    path = tmp_path / "errors.png"
    errors = {name: rng.uniform(0.5, 1.5, 40) for name in ("metamf", "mean", "bias")}
    plotting.error_against_observations(path, counts, errors)
    assert_picture(path)


def test_error_of_a_single_matrix(tmp_path):
    path = tmp_path / "one.png"
    plotting.error_against_observations(path, np.array([7]), {"metamf": np.array([0.5])})
    assert_picture(path)


def test_imputed_matrix(tmp_path):
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(12, 9))
    truth[rng.random(truth.shape) < 0.4] = np.nan
    path = tmp_path / "matrix.png"
    plotting.imputed_matrix(
        path,
        truth,
        np.isfinite(truth) & (rng.random(truth.shape) < 0.5),
        rng.normal(size=truth.shape),
        rng.normal(size=truth.shape),
    )
    assert_picture(path, least_colours=50)


def test_panels_of_curves(tmp_path):
    x, curves = [1, 2, 4, 8], {f"curve {n}": ([1, 2, 4, 8], [n, n + 2, 5, 3]) for n in range(1, 13)}
    panels = [
        plotting.Panel("all", "epoch", "loss", curves, y_scale="log"),
        plotting.Panel("one", "workers", "ms", {"curve 3": (x, x)}, {"curve 3": 5}, x_scale="log2"),
    ]
    path = tmp_path / "panels.png"
    plotting.panels(path, panels, "a title")
    assert_picture(path, least_colours=40)


def test_grey_pictures(tmp_path):
    rng = np.random.default_rng(0)
    picture = rng.random((12, 9))
    holes = np.where(picture < 0.5, np.nan, picture)
    rows = {"one": {"a": picture, "b": holes}, "other": {"a": picture, "b": picture.T}}
    plotting.pictures(tmp_path / "grey.png", rows)
    assert_picture(tmp_path / "grey.png", least_colours=50)


def test_error_by_method_marks_the_reference(tmp_path):
    path, other = tmp_path / "methods.png", tmp_path / "other.png"
    errors = {"metamf": (0.9, 0.01), "mean": (1.0, 0.02), "bias": (0.95, float("nan"))}
    plotting.error_by_method(path, errors, "metamf")
    assert_picture(path)
    plotting.error_by_method(other, errors, "bias")
    assert path.read_bytes() != other.read_bytes()


def test_bars_are_as_long_as_their_values(tmp_path):
    path = tmp_path / "bars.png"
    plotting.error_by_group(path, ["10 x 10"], {"mf": [(1.0, 0.0)], "metamf": [(0.5, 0.0)]})
    assert_picture(path)
    pixels = np.rint(255 * matplotlib.image.imread(path)[..., :3]).astype(int)
    blue, orange = ((pixels == color).all(axis=2) for color in ([31, 119, 180], [255, 127, 14]))
    # The median column of a bar's pixels: the legend has a few of its colour too.
    one, half = (np.median(bar.sum(axis=0)[bar.any(axis=0)]) for bar in (blue, orange))
    assert half / one == pytest.approx(0.5, abs=0.01)
