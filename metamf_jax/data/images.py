"""Grey images as matrices: a test image drawn here, samples, files; noise and missing pixels."""

import importlib.util
import os
from typing import Final

import matplotlib.image
import numpy as np

from metamf_jax.types import Entries

# Sample images of other libraries, by name: (module, function, argument).
SAMPLES: Final = {
    "china": ("sklearn.datasets", "load_sample_image", "china.jpg"),
    "flower": ("sklearn.datasets", "load_sample_image", "flower.jpg"),
    "camera": ("skimage.data", "camera", None),
}
DRAWN: Final = "drawn"

# Weights of red, green and blue in the luminance, ITU-R BT.601.
_LUMINANCE = np.array([0.299, 0.587, 0.114])


def load_image(name_or_path: str | os.PathLike, side: int = 256) -> np.ndarray:
    """The image drawn here, a sample of an installed library, or a user's file.

    Args:
      name_or_path: `DRAWN`, a name in `SAMPLES`, or the path of a PNG file (or of whatever else the
        installed Pillow reads). Colours become their luminance.
      side: larger images are averaged over squares of whole pixels, as far as both sides keep this
        length, and then cut to the ``side`` pixels in the middle.

    Returns:
      [H, W] float32, from 0 (black) to 1.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a file that is no image, or a sample whose library is not installed.
    """
    name = os.fspath(name_or_path)
    if name == DRAWN:
        return drawn_image(side)
    if name in SAMPLES:
        module, function, argument = SAMPLES[name]
        if importlib.util.find_spec(module.split(".")[0]) is None:
            raise ValueError(
                f"the image {name!r} comes with {module.split('.')[0]}, which is not installed;"
                f" take {DRAWN!r} or a file"
            )
        load = getattr(importlib.import_module(module), function)
        pixels = load(argument) if argument else load()
    else:
        if not os.path.exists(name):
            raise FileNotFoundError(
                f"{name}: no such image; expected {DRAWN}, {', '.join(SAMPLES)} or a PNG file"
            )
        try:
            pixels = matplotlib.image.imread(name)
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(f"{name} cannot be read as an image ({error}); give a PNG") from error
    return _smaller(_grey(pixels), side)


def _grey(pixels: np.ndarray) -> np.ndarray:
    """[H, W] or [H, W, 1 .. 4] of integers or of 0..1, to [H, W] float32 of 0..1."""
    full = np.iinfo(pixels.dtype).max if np.issubdtype(pixels.dtype, np.integer) else 1
    pixels = np.asarray(pixels, np.float64) / full
    if pixels.ndim == 3:
        pixels = pixels[..., :3] @ _LUMINANCE if pixels.shape[2] > 2 else pixels[..., 0]
    return pixels.astype(np.float32)


def _smaller(image: np.ndarray, side: int) -> np.ndarray:
    factor = max(1, min(image.shape) // side)
    height, width = (size // factor * factor for size in image.shape)
    squares = image[:height, :width].reshape(height // factor, factor, width // factor, factor)
    image = squares.mean(axis=(1, 3))
    top, left = (max(0, (size - side) // 2) for size in image.shape)
    return np.ascontiguousarray(image[top : top + side, left : left + side])


def drawn_image(side: int = 256) -> np.ndarray:
    """A scene with what low rank likes (walls, windows) and dislikes (a disc, slopes, waves).

    Args:
      side: H = W.

    Returns:
      [side, side] float32, from 0 to 1.
    """
    y, x = np.meshgrid(*(2 * [(np.arange(side) + 0.5) / side]), indexing="ij")
    image = 0.55 + 0.35 * (1 - y) + 0.05 * np.sin(9 * x + 4 * y)  # Sky.
    image[np.hypot(x - 0.78, y - 0.2) < 0.11] = 1.0
    ridge = 0.5 + 0.12 * np.sin(5 * x + 0.6) - 0.1 * np.abs(x - 0.35)
    image = np.where(y > ridge, 0.45 - 0.25 * (y - ridge), image)
    for left, top, width, shade in ((0.06, 0.38, 0.2, 0.25), (0.3, 0.25, 0.16, 0.62)):
        right, ground = left + width, 0.82
        wall = (x > left) & (x < right) & (y > top) & (y < ground)
        image[wall] = shade + 0.06 * np.sin(40 * np.pi * y[wall])
        columns = np.mod((x - left) / width * 4, 1)
        windows = wall & (columns > 0.3) & (columns < 0.75) & (np.mod(y * 16, 1) > 0.45)
        image[windows] = 0.92 - 0.5 * shade
    roof = (y < 0.25) & (y > 0.25 - 0.9 * (0.1 - np.abs(x - 0.38))) & (y > 0.14)
    image[roof] = 0.12
    water = y > 0.82
    image[water] = 0.35 + 0.2 * np.sin(60 * (y + 0.15 * np.sin(7 * x)))[water] * (1 - x[water])
    return np.clip(image, 0, 1).astype(np.float32)


def damaged(image: np.ndarray, noise: float, missing: float, rng: np.random.Generator) -> Entries:
    """Adds noise and leaves pixels out.

    Args:
      image: [H, W].
      noise: standard deviation of the Gaussian noise, in units of white.
      missing: part of the pixels left out, 0 to 0.99.
      rng: draws both.

    Returns:
      The pixels kept, as the entries of an H x W matrix; values may leave 0..1.

    Raises:
      ValueError: a noise or part out of range.
    """
    if not (0 <= noise < np.inf and 0 <= missing <= 0.99):
        raise ValueError(
            f"expected a noise of at least 0 and a missing part from 0 to 0.99, got {noise} and"
            f" {missing}"
        )
    noisy = image + noise * rng.standard_normal(image.shape)
    rows, columns = np.nonzero(rng.random(image.shape) >= missing)
    return Entries(
        rows.astype(np.int32),
        columns.astype(np.int32),
        noisy[rows, columns].astype(np.float32),
        (image.shape[0], image.shape[1]),
    )


def psnr(image: np.ndarray, other: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of an image of 0..1, the other one cut to that range."""
    error = np.mean((np.asarray(image, np.float64) - np.clip(other, 0, 1)) ** 2)
    return float(-10 * np.log10(max(error, 1e-20)))
