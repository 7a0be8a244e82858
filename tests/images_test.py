"""Images come as grey 0..1, damage is what was asked for, and PSNR is its definition."""

import matplotlib.image
import numpy as np
import pytest

from metamf_jax.data import images


def test_the_drawn_image_is_no_low_rank_matrix():
    image = images.load_image(images.DRAWN, 64)
    assert image.shape == (64, 64)
    assert image.dtype == np.float32
    assert image.min() >= 0
    assert image.max() == 1
    values = np.linalg.svd(image - image.mean(), compute_uv=False)
    share = np.cumsum(values**2) / np.sum(values**2)
    assert share[3] < 0.97
    assert share[31] > 0.99


@pytest.mark.parametrize("channels", [0, 1, 3, 4])
def test_files_become_grey_and_are_averaged(channels, tmp_path):
    pixels = np.zeros((9, 13, max(channels, 1)), np.uint8)
    pixels[:, 6:8] = 255
    pixels[..., 3:] = 255  # Opaque.
    path = tmp_path / "x.png"
    if channels in (0, 1):
        matplotlib.image.imsave(path, pixels[..., 0], cmap="gray")
    else:
        matplotlib.image.imsave(path, pixels)
    image = images.load_image(path, 4)
    # Squares of 2 x 2 pixels of the first 8 x 12, cut to the middle four: white is one square.
    np.testing.assert_allclose(image, np.tile([0, 0, 1, 0], (4, 1)), atol=1e-6)


def test_damage():
    image = np.full((200, 100), 0.5, np.float32)
    entries = images.damaged(image, 0.1, 0.75, np.random.default_rng(0))
    assert entries.shape == image.shape
    np.testing.assert_allclose(len(entries.values), 5000, rtol=0.05)
    np.testing.assert_allclose(entries.values.std(), 0.1, rtol=0.05)
    whole = images.damaged(image, 0, 0, np.random.default_rng(0))
    np.testing.assert_array_equal(whole.values, image.ravel())
    with pytest.raises(ValueError, match=r"from 0 to 0\.99, got 0\.1 and 1"):
        images.damaged(image, 0.1, 1.0, np.random.default_rng(0))


def test_psnr():
    image = np.array([[0.0, 1.0], [0.5, 0.5]])
    other = np.array([[-3.0, 1.0], [0.6, 0.4]])  # Cut to 0 at the first pixel.
    np.testing.assert_allclose(images.psnr(image, other), 10 * np.log10(1 / 0.005))


def test_mistakes(tmp_path, monkeypatch):
    (tmp_path / "no.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"no.png cannot be read as an image"):
        images.load_image(tmp_path / "no.png")
    with pytest.raises(FileNotFoundError, match=r"gone.png: no such image; expected drawn, china"):
        images.load_image("gone.png")
    monkeypatch.setitem(images.SAMPLES, "camera", ("no_such_library.data", "camera", None))
    with pytest.raises(ValueError, match="comes with no_such_library, which is not installed"):
        images.load_image("camera")
